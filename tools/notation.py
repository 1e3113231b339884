"""Write docs/notation.md: every symbol with its code name, shape and unit, read from the code.

    python -m tools.notation

Meaning and shape are those of the docstrings and annotations that the code is checked by. Written
here are the symbols, the words of the paper's abstract, and the units.
"""

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType

from anchor_lab.experiments.page import render
from anchor_ref import (
    anchor,
    attention,
    config,
    heads,
    measure,
    online_softmax,
    outliers,
    plan,
    regions,
    sparse,
    stripes,
    tail,
)
from tools.notebooks import ROOT

PAGE = ROOT / "docs" / "notation.md"
MODULES = {
    module.__name__.removeprefix("anchor_ref."): module
    for module in (
        *(anchor, attention, config, heads, measure),
        *(online_softmax, outliers, plan, regions, sparse, stripes, tail),
    )
}
SCORE = "natural log"

# Symbol, the word of the paper's abstract for it, place in `anchor_ref`, unit.
SYMBOLS = {
    "Sizes": (
        ("b", "–", "config.AnchorConfig.block_size", "queries"),
        ("s", "–", "config.AnchorConfig.step", "blocks"),
        ("S", "–", "config.AnchorConfig.group_size", "queries"),
        ("θ", "difference", "config.AnchorConfig.theta", SCORE),
        ("–", "–", "config.AnchorConfig.init_blocks", "blocks of b keys"),
        ("–", "–", "config.AnchorConfig.window_blocks", "blocks of b keys"),
        ("–", "–", "config.AnchorConfig.tail", "queries"),
        ("R", "–", "config.AnchorConfig.outliers", "queries"),
        ("θ₂", "–", "config.AnchorConfig.outlier_theta", SCORE),
    ),
    "Inputs and output": (
        ("q_i", "–", "anchor.compute_anchor.q", "–"),
        ("k_j", "–", "anchor.compute_anchor.k", "–"),
        ("v_j", "–", "anchor.compute_anchor.v", "–"),
        ("1/√D", "–", "anchor.compute_anchor.scale", f"{SCORE} per unit of q·k"),
        ("s_ij", "score", "heads.scaled_scores.return", SCORE),
        ("out_i", "–", "sparse.attend_stripes.return", "that of v"),
    ),
    "Who sees whom": (
        ("g", "–", "regions.Group.rows", "queries"),
        ("t", "–", "regions.Group.blocks", "queries"),
        ("I", "–", "regions.Group.init", "keys"),
        ("–", "–", "regions.Group.window_start", "key position"),
        ("C_g", "–", "regions.Group.candidates", "keys"),
        ("–", "–", "regions.Group.tail", "queries"),
    ),
    "Stage 1: pattern-based anchor computation": (
        ("a_i", "anchor", "plan.AnchorTrace.row_anchor", SCORE),
        ("m", "–", "online_softmax.SoftmaxState.max", SCORE),
        ("l", "–", "online_softmax.SoftmaxState.sum", "weight of the largest key"),
        ("acc", "–", "online_softmax.SoftmaxState.acc", "l times that of v"),
    ),
    "Stage 2: difference-aware stripe sparsity identification": (
        ("ā_t, q̄_t", "–", "stripes.identify_stripes.ā_t", "those of a_i and q_i"),
        ("–", "stripe", "plan.StripePlan.indices", "key position"),
        ("–", "–", "plan.StripePlan.counts", "stripes"),
        ("–", "–", "plan.StripePlan.offsets", "place in indices"),
    ),
    "What is measured": (
        ("–", "recall", "measure.Evaluation.recall", "share of the row's mass"),
        ("–", "1 − sparsity", "measure.Evaluation.density", "share of causal pairs"),
        ("–", "–", "measure.Evaluation.executed_density", "share of causal pairs"),
        ("–", "–", "measure.Evaluation.identification_cost", "share of causal pairs"),
        ("–", "–", "measure.Evaluation.output_error", "share of the output's norm"),
    ),
}

# What the letters in shapes stand for.
DIMENSIONS = {
    "B": "batch",
    "Hq": "query heads, a multiple of Hkv",
    "Hkv": "key heads; query head h reads key head h // (Hq / Hkv)",
    "N": "tokens",
    "Nq": "queries, the last Nq of the Nk tokens",
    "Nk": "keys",
    "D": "dimension of a head",
    "H": "heads, of queries or of keys",
    "G": "groups",
    "T": "blocks of a group",
    "C": "candidates of a group",
    "S": "boundaries of packed sequences",
    "M": "keys of one product",
    "R": "rows of one product, or outlier rows",
    "K": "dimension that a product sums over",
    "rN": "rows of the r = Hq / Hkv query heads that share a key head, one head after the other",
    "rows": "any leading dimensions, one entry for each query",
    "batch": "any leading dimensions",
    "heads": "any dimensions, one entry for each head",
    "pairs": "any dimensions, one entry for each pair",
    "total": "stripes of all batch entries, heads and groups",
}


def page() -> str:
    """The whole page."""
    tables = {title: [_row(*symbol) for symbol in rows] for title, rows in SYMBOLS.items()}
    folder = Path(__file__).parent
    return render("notation.md.j2", folder, tables=tables, letters=list(DIMENSIONS.items()))


def _row(symbol: str, paper: str, place: str, unit: str) -> list[str]:
    shape, meaning = look_up(place)
    code = f"`{re.sub(r'[.](return|ā_t)$', '', place)}`"
    cells = (symbol, paper, code, shape, unit, meaning)
    return [cell.replace("|", r"\|") for cell in cells]


def look_up(place: str) -> tuple[str, str]:
    """Shape and meaning of `module.Class.attribute`, `module.function.argument` or `….return`."""
    module, owner_name, name = place.split(".")
    owner = getattr(MODULES[module], owner_name)
    if isinstance(member := getattr(owner, name, None), property):
        return "–", _first_sentence(inspect.getdoc(member))
    if is_dataclass(owner):
        annotation = {field.name: field.type for field in fields(owner)}[name]
    else:
        signature = inspect.signature(owner)
        arguments = {name: argument.annotation for name, argument in signature.parameters.items()}
        annotation = (arguments | {"return": signature.return_annotation}).get(name)
    return _shape(annotation), _first_sentence(_entry(inspect.getdoc(owner), name))


def letters() -> set[str]:
    """Every letter in the shapes of the reference's public functions and data types."""
    found = set()
    for module in MODULES.values():
        for annotation in _annotations(module):
            for dimension in getattr(annotation, "dim_str", "").split():
                letter = dimension.lstrip("*")
                if letter.isidentifier() and letter != "_":
                    found.add(letter)
    return found


def _annotations(module: ModuleType):
    for name, owner in vars(module).items():
        if name.startswith("_") or getattr(owner, "__module__", None) != module.__name__:
            continue
        if is_dataclass(owner):
            yield from (field.type for field in fields(owner))
        elif inspect.isfunction(owner):
            signature = inspect.signature(owner)
            yield signature.return_annotation
            for parameter in signature.parameters.values():
                # X | None keeps its parts in __args__
                yield from getattr(parameter.annotation, "__args__", (parameter.annotation,))


def _shape(annotation) -> str:
    """`[B, Hq, N]` of a tensor; the type's name of anything else; a dash of what has none."""
    if annotation is None:
        return "–"
    if (dimensions := getattr(annotation, "dim_str", None)) is not None:
        return f"`[{', '.join(dimensions.replace('*', '...').split())}]`"
    return f"`{getattr(annotation, '__name__', annotation)}`"


def _entry(text: str, name: str) -> str:
    """What a docstring says of an argument, an attribute, a return, or a letter of its formula.

    A function without a `Returns` returns what its formula says; a formula's further letters are
    explained in a line that begins with "with".
    """
    if name == "return":
        found = re.search(r"^Returns:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        return inspect.cleandoc(found.group(1)) if found else text
    for match in re.finditer(r"^    (\w[\w, ]*): ((?:.+)(?:\n {8}.+)*)", text, re.MULTILINE):
        if name in match.group(1).split(", "):
            return match.group(2)
    if found := re.search(rf"^with (?=.*{name}).*$", text, re.MULTILINE):
        return found.group().removeprefix("with ")
    raise ValueError(f"name must be documented, found no entry for {name!r} in:\n{text}")


def _first_sentence(text: str) -> str:
    words = re.sub(r"(^|,? )`\[[^`]*\]`", "", " ".join(text.split())).lstrip(",; ")
    return re.split(r"(?<=[\w)\]`])\. (?=[A-Z])", words)[0].rstrip(".")


def main(path: Path = PAGE) -> None:
    path.write_text(page())


if __name__ == "__main__":
    main()
