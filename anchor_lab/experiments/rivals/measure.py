"""All methods in a real language model: how many pairs does recall cost each?

    python -m anchor_lab rivals                        writes rivals.csv.gz, .md and .png
    python -m anchor_lab rivals --time-s 450           begins nothing later; the same call goes on
    python -m anchor_lab rivals --lengths 8192 --methods FlexPrefill XAttention
    python -m anchor_lab rivals --table                .md and .png from rivals.csv.gz

Every configuration of every method's sweep on all heads of every third layer of
SmolLM2-135M-Instruct. At 8192 tokens each of these layers reads three texts of different kinds:
prose, code, a chat full of lists. At 32 768, by YaRN, each reads one of them: the first prose, the
next code, then chat, and so on. There the oracles, which bound others and are nobody's method, are
swept with every second of their configurations.

Recall and output error are those of the rows beyond the first 2048, which methods with groups keep
whole. Sixteen blocks of 128 rows, one from each sixteenth of the prompt and others in every layer,
stand for all rows; the last block is none of them: what a method keeps of it for its own sake
counts neither way.
Executed pairs and pairs scored to choose are exact where a method has tiles; elsewhere those kept
are executed. Scores are float32, no tail, no correction.

Expected on an H200, from counting and not measured: launches at 9 µs each, or what they move at
3.5 TB/s where that is longer. At 8192 tokens a layer's 254 choices, for its three texts at once,
take 2.5 s and their rows 5 s, most of it the sorting of oracles: 10 layers 75 s. At 32 768 the
choices take 10 s, of which those that form all scores half, and the rows 4 s: 10 layers 145 s.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anchor_lab.experiments.compare.figure import ORACLES
from anchor_lab.experiments.compare.measure import GROUP, label_configurations, sweeps
from anchor_lab.experiments.environment import cuda_facts, environment, sources_version
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.outliers.measure import hash_of
from anchor_lab.experiments.outliers.texts import tokens_of
from anchor_lab.experiments.sampled_rows import evaluate_rows, spread_blocks
from anchor_lab.experiments.smollm2.measure import weights_hash
from anchor_lab.experiments.store import Store
from anchor_lab.methods import METHODS, Method
from anchor_models import Captured, capture_qkv
from anchor_models.models import load_pretrained
from anchor_models.smollm2 import NAME, stretch

KEY = ("length", "text", "layer", "method", "configuration")
TEXT_COLUMNS = ("text", "method", "configuration")
TEXTS = ("prose", "code", "chat")
MEASURES = (  # recall and output error are of the rows beyond the first group
    *("recall_mean", "recall_p10", "recall_least", "density"),
    *("executed_density", "identification_cost", "total_cost", "output_error"),
)
BLOCKS = 16  # of 128 rows

PACKAGES = Path(__file__).parents[3]
# What decides the numbers; texts and weights have hashes of their own.
MEASURING = (
    *("anchor_ref/*.py", "anchor_lab/methods/*.py", "anchor_lab/experiments/sampled_rows.py"),
    "anchor_lab/experiments/rivals/measure.py",
)


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        lengths: with the texts that a layer reads at each: all, or one in turn.
        every: how many layers, the first among them.
        step: of the configurations of an oracle, where layers read one text.
        ends: whether of each sweep only first and last configuration are looked at.
    """

    lengths: dict[int, str]
    every: int
    step: int
    ends: bool = False


ALL, IN_TURN = "all", "in turn"
FULL = Sizes({8192: ALL, 32_768: IN_TURN}, every=3, step=2)
QUICK = Sizes({2304: ALL, 2560: IN_TURN}, every=100, step=2, ends=True)


def options(parser: argparse.ArgumentParser) -> None:
    """--model, --lengths, --methods, --time-s"""
    add = parser.add_argument
    add("--model", default=NAME, help=f"another causal model; default {NAME}")
    add("--lengths", nargs="+", type=int, help="of those measured by default; default all")
    add("--methods", nargs="+", choices=list(METHODS), help="default all")
    add("--time-s", type=float, default=float("inf"), help="begin nothing later")


def measure(chosen: argparse.Namespace) -> int:
    """Measure what is missing.

    Returns:
        0; 1 when the time was over before all was there; 2 with a line on stderr for a length that
        is not of this experiment.

    Raises:
        OtherResults: the file was made with something else.
    """
    sizes, device = (QUICK if chosen.quick else FULL), chosen.device
    lengths = chosen.lengths or list(sizes.lengths)
    if wrong := sorted(set(lengths) - set(sizes.lengths)):
        there = ", ".join(map(str, sizes.lengths))
        print(f"--lengths must be of {there}, got {wrong[0]}", file=sys.stderr)
        return 2
    cuda = torch.device(device).type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    model, tokenizer = load_pretrained(chosen.model, dtype, device)
    longest = max(sizes.lengths)
    texts = {
        kind: torch.tensor([tokens_of(kind, tokenizer, longest)], device=device) for kind in TEXTS
    }
    settings = {
        "model": chosen.model,
        "weights": weights_hash(model),
        "texts": {kind: hash_of(tokens) for kind, tokens in texts.items()},
        "dtype": str(dtype).removeprefix("torch."),
        "blocks": BLOCKS,
        "code": sources_version(PACKAGES, MEASURING),
        **environment(device, ("torch", "transformers")),
        **(cuda_facts() if cuda else {}),
    }
    del settings["date"]  # of the first run alone: the table does not know of runs
    store = Store(chosen.out, KEY, settings, text=TEXT_COLUMNS)
    until = time.monotonic() + chosen.time_s
    for n in lengths:
        plan = cells(n, sizes, model.config.num_hidden_layers, chosen.methods)
        if not fill(store, model, texts, n, plan, until):
            print("not all is there: call again to go on", file=sys.stderr)
            return 1
    return 0


@dataclass(frozen=True)
class Cell:
    """A layer that reads some texts, and the methods that choose in it, by their sweeps.

    Attributes:
        phase: of its blocks of rows, see `spread_blocks`.
    """

    layer: int
    phase: float
    texts: tuple[str, ...]
    methods: dict[str, dict[str, Method]]


def cells(n: int, sizes: Sizes, layers: int, methods: Sequence[str] | None = None) -> list[Cell]:
    """What is measured at one length.

    Args:
        n: N, of `sizes.lengths`.
        sizes: as they say.
        layers: of the model.
        methods: some of `METHODS`; None for all.

    Returns:
        A cell for each layer; its configurations by label, see `label_configurations`.
    """
    in_turn = sizes.lengths[n] == IN_TURN
    chosen = {}
    for name, sweep in sweeps(methods).items():
        labelled = dict(zip(label_configurations(sweep), sweep, strict=True))
        labels = list(labelled)
        if sizes.ends:
            labels = [*labels[:1], *labels[1:][-1:]]
        elif in_turn and name in ORACLES:
            labels = labels[:: sizes.step]
        chosen[name] = {label: labelled[label] for label in labels}
    there = range(0, layers, sizes.every)
    return [
        Cell(
            layer,
            place / len(there),
            (TEXTS[place % len(TEXTS)],) if in_turn else TEXTS,
            chosen,
        )
        for place, layer in enumerate(there)
    ]


def fill(
    store: Store, model, texts: dict[str, Tensor], n: int, plan: Sequence[Cell], until: float
) -> bool:
    """Measure what is missing of some cells; whether all is there at the end.

    Rows are kept when a layer is done, or the time is over: the file is written whole.
    """

    def lacks(cell: Cell, text: str, name: str) -> bool:
        key = {"length": n, "text": text, "layer": cell.layer, "method": name}
        return not all(store.holds(**key, configuration=label) for label in cell.methods[name])

    left = [
        (cell, missing)
        for cell in plan
        if (
            missing := {
                name: some
                for name in cell.methods
                if (some := [text for text in cell.texts if lacks(cell, text, name)])
            }
        )
    ]
    if not left:
        return True
    if time.monotonic() > until:
        return False
    captured = captures(model, texts, n, left)
    for cell, missing in progress(left):
        rows: list[dict] = []
        try:
            for name, some in missing.items():
                if time.monotonic() > until:
                    return False
                one = [captured[text][cell.layer].to(model.device) for text in some]
                found = of_layer(one, cell.methods[name], cell.phase)
                key = {"length": n, "layer": cell.layer, "method": name}
                rows += [{**key, "text": some[place], **row} for place, row in found]
        finally:
            store.add([{name: row[name] for name in (*KEY, *MEASURES)} for row in rows])
    return True


def captures(model, texts: dict[str, Tensor], n: int, left) -> dict[str, dict[int, Captured]]:
    """What the layers that are left are given, by text."""
    wanted: dict[str, set[int]] = {}
    for cell, missing in left:
        for some in missing.values():
            for text in some:
                wanted.setdefault(text, set()).add(cell.layer)
    with stretch(model, n):
        return {
            text: capture_qkv(model, texts[text][:, :n], sorted(layers))
            for text, layers in wanted.items()
        }


def of_layer(
    captured: Sequence[Captured],
    methods: dict[str, Method],
    phase: float = 0.0,
    blocks: int = BLOCKS,
    group_size: int = GROUP,
) -> Iterator[tuple[int, dict]]:
    """What one layer's heads keep, lose and pay with each configuration, all texts at once.

    Args:
        captured: of one layer, one prompt each, all of one length.
        methods: configurations by label.
        phase: of the blocks, see `spread_blocks`.
        blocks: of 128 rows, that stand for all.
        group_size: rows of the first group.

    Yields:
        (place of the text, row): means over heads, and "recall_least" of a head.
    """
    x = [one.causal() for one in captured]
    q, k, v = (torch.cat([getattr(one, name) for one in x]).float() for name in "qkv")
    scale, n = x[0].scaling, q.shape[2]
    with torch.no_grad():
        selections = [method.select(q, k, scale) for method in methods.values()]
    looked = evaluate_rows(q, k, v, selections, scale, spread_blocks(n, blocks, phase), group_size)
    for label, one in zip(methods, looked, strict=True):
        recall = one.recall.double().mean(-1)  # [texts, Hq]
        found = {
            "recall_mean": recall.mean(-1),
            "recall_p10": one.recall_p10.mean(-1),
            "recall_least": recall.amin(-1),
            "density": one.density.mean(-1),
            "executed_density": one.executed_density.mean(-1),
            "identification_cost": one.identification_cost.mean(-1),
            "total_cost": one.total_cost.mean(-1),
            "output_error": one.output_error.mean(-1),
        }
        columns = {name: values.tolist() for name, values in found.items()}
        for place in range(len(x)):
            row = {name: round(values[place], 5) for name, values in columns.items()}
            yield place, {"configuration": label, **row}
