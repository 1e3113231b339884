"""All methods on every head of the bundled model, on prose and on a retrieval prompt.

Then on planted stripes: two heads of which everything is known. The work is that of
`anchor-ref compare`, once for each input. Minutes on a GPU; a CPU, which sorts every row for the
oracles of single keys, takes hours.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from anchor_lab.experiments.compare.measure import (
    GROUP,
    compare_layer,
    group_for,
    label_configurations,
    sweeps,
)
from anchor_lab.experiments.environment import sources_version
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.store import Store
from anchor_lab.methods import Method
from anchor_lab.methods.corrections import CORRECTIONS
from anchor_lab.sources import Source, planted, read_by_model
from anchor_models import load_bundled
from anchor_models.models import BUNDLED, device_name
from anchor_models.texts import DOCUMENT, RETRIEVAL, read_text

LENGTH = 8192  # the shortest prompt that has four groups of the published size
KEY = ("text", "method", "configuration", "layer", "head")
TEXT_COLUMNS = ("text", "method", "configuration")
PACKAGES = Path(__file__).parents[3]  # where they lie side by side, installed or not
# What the numbers of a table come from; texts and weights have hashes of their own.
MEASURING = (
    *("anchor_ref/*.py", "anchor_models/*.py", "anchor_lab/methods/*.py"),
    *("anchor_lab/analysis/curves.py", "anchor_lab/sources.py"),
    "anchor_lab/experiments/compare/measure.py",
)


def describe(
    source: Source, group_size: int, tail: int = 0, correction: str | None = None
) -> dict:
    """What all rows of a table share: source, device, groups, tail, versions, code.

    Between two releases the version stays the same, and a corrected method must not add its rows
    to a table of the wrong one: so the code has a hash.

    Args:
        source: what is compared.
        group_size: queries of a group.
        tail: last queries that keep every key with any method.
        correction: of `CORRECTIONS`, what stands for dropped keys with any method; None for
            nothing, of which a table says nothing.
    """
    packages = ("anchor-attention", "torch", *source.packages)
    return {
        **source.about,
        "device": device_name(source.device),
        "group_size": group_size,
        "tail": tail,
        **({"correction": correction} if correction else {}),
        "versions": {package: version(package) for package in packages},
        "code": sources_version(PACKAGES, MEASURING),
    }


def open_table(path: Path, settings: dict) -> Store:
    """The table of a comparison, to go on with.

    Args:
        path: .csv or .csv.gz.
        settings: what `describe` says, of each source if there are several.

    Raises:
        ValueError: see `Store`.
    """
    return Store(path, KEY, settings, text=TEXT_COLUMNS)


def run_comparison(
    source: Source,
    table: Store,
    sweeps: dict[str, list[Method]],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    watch: Callable[[list], Iterable] = iter,
    tail: int = 0,
    group_size: int = GROUP,
    correction: str | None = None,
):
    """Measure what the table lacks, and keep it after every layer and method.

    Args:
        source: whose queries, keys and values.
        table: to fill, from `open_table`.
        sweeps: configurations of each method, as `measure.sweeps` gives them.
        layers, heads: the source's indices; None for all.
        watch: wraps the list of (layer, method) that are left, such as tqdm.
        tail, group_size, correction: as `describe` has them.

    Returns:
        The rows asked for as a pandas frame, those of earlier runs included.

    Raises:
        TypeError, ValueError: see `capture_qkv` and `compare_layer`; or a layer or head does not
            exist, or a layer left to measure is no causal attention over all keys.
    """
    import pandas as pd

    layers = _chosen("layers", layers, source.layers)
    heads = _chosen("heads", heads, source.heads)
    labels = {name: label_configurations(sweep) for name, sweep in sweeps.items()}
    added = CORRECTIONS[correction]() if correction else None

    def lacks(layer: int, method: str, head: int) -> bool:
        one = {"text": source.name, "layer": layer, "method": method, "head": head}
        return not all(table.holds(**one, configuration=label) for label in labels[method])

    left = {
        (layer, name): missing
        for layer in layers
        for name in sweeps
        if (missing := [head for head in heads if lacks(layer, name, head)])
    }
    if left:
        # On disk, and layer by layer in memory: a long prompt in a large model is many GiB.
        with tempfile.TemporaryDirectory(dir=table.path.parent, prefix="capture-") as folder:
            captured = source.capture(sorted({layer for layer, _ in left}), Path(folder))
            for x in captured.values():
                x.causal()  # refused now, not after the layers before it
            for layer, name in watch(list(left)):
                x = captured[layer].to(source.device)
                some = left[layer, name]
                asked = (x, name, sweeps[name], some, source.name, tail, group_size, added)
                table.add(compare_layer(*asked))
    return pd.DataFrame(
        row
        for row in table.rows
        if row["text"] == source.name
        and row["layer"] in layers
        and row["head"] in heads
        and row["configuration"] in labels.get(row["method"], ())
    )


def shown(left: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The layers and methods that are left, with progress on stderr."""
    with progress(left, unit="method") as bar:
        for layer, method in bar:
            bar.set_postfix_str(f"layer {layer}, {method}")
            yield layer, method


def measure(options: argparse.Namespace) -> int:
    """Both texts and the planted stripes, into one table."""
    length = 512 if options.quick else LENGTH
    model, tokenizer = load_bundled(device=options.device)
    texts = [read_text(name, tokenizer, length) for name in (DOCUMENT, RETRIEVAL)]
    sources = [read_by_model(model, BUNDLED, text) for text in texts]
    sources.append(planted(length, device=options.device))
    about = {one.name: describe(one, group_for(one.length)) for one in sources}
    table = open_table(options.out, about)
    for source in sources:
        few = options.quick or source is sources[-1]  # planted heads are all alike
        run_comparison(
            source,
            table,
            sweeps(group_size=about[source.name]["group_size"]),
            source.layers[:1] if options.quick else None,
            source.first_readers() if few else None,
            shown,
            group_size=about[source.name]["group_size"],
        )
    return 0


def _chosen(name: str, asked: Sequence[int] | None, there: Sequence[int]) -> list[int]:
    chosen = sorted(set(there if asked is None else asked))
    if not chosen:
        raise ValueError(f"{name} must name at least one, got none")
    if wrong := [index for index in chosen if index not in there]:
        first, last = there[0], there[-1]
        whole = list(there) == list(range(first, last + 1))
        allowed = f"in {first}..{last}" if whole else f"of {', '.join(map(str, there))}"
        raise ValueError(f"{name} must be {allowed}, got {wrong[0]}")
    return chosen
