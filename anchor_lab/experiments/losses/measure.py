"""What does a whole model lose with each method, for as many pairs and for as much work?

    python -m anchor_lab losses                       writes losses.json, .md and .png
    python -m anchor_lab losses --time-s 450          begins nothing later; the same call goes on
    python -m anchor_lab losses --parts methods       one part; the same file takes the other
    python -m anchor_lab losses --methods XAttention  one method, and AnchorAttention's levels
    python -m anchor_lab losses --text emma.txt --out results/losses/emma.json
    python -m anchor_lab losses --length 32768 --out results/losses/long.json
    python -m anchor_lab losses --table               .md and .png from losses.json

SmolLM2-135M-Instruct reads 8192 tokens of prose, code and a chat full of lists, or of a text that
somebody brings, in float32, with a method in the place of every layer's attention, no tail and no
correction. What counts is the loss of its predictions in the rows beyond the first 2048 above that
of dense attention.

AnchorAttention is read at several θ. What it keeps and what it costs at θ = 12, as published, and
at θ = 9 are the levels for all others: of each sweep the two neighbouring configurations between
which a level lies are found by bisection. Every configuration that was read stays as a row.
--methods without AnchorAttention reads the two levels of it and no other θ, so that runs side by
side, each with methods and a file of its own, repeat little; their rows may be put into one file.
Oracles look at all scores before they choose, and save no work: pairs are all they are compared
by.

Which tokens lose: those that follow the same two tokens as at an earlier place, the latest such
place more than 2048 tokens back, or nearer; and those that are new. And by where in its group of
2048 rows the row lies that predicts them: a group's first rows see a window of few keys.

Two parts:

methods    all but those of the next; TriangleMix with its share of shallow layers as the knob
sorting    the oracles that sort every row of every head

--length beyond 8192 tokens is read by YaRN and in pieces of 512 rows (pieces.py), by default with
the published methods and AnchorBlocks, the stripes of ours as whole blocks: oracles and the other
variants take too long for what they tell.

Expected on an H200, from counting and not measured: 900 to 3500 launches a layer to choose and to
make masks for 64 blocks of rows, 9 µs each, or what they move at 3.5 TB/s where that is longer,
and 0.2 ms for the attention of such a block: 20 to 45 ms a layer, 1.1 to 2 s for the three texts.
methods: six readings of each of 22 and four of each of four oracles, 190 s. sorting: 0.4 to 0.8 s
a layer, four readings of each of three, 200 s.

At 32 768 tokens, likewise: 1.45e10 pairs a layer in three texts of nine heads. Masks and attention
move 15 to 20 bytes a pair, 60 to 80 ms, and multiply 3.7 TFLOP in float32, 90 ms at 40 TFLOP/s
(512 rows of three heads, nine times: 216 tiles of 64 rows, enough for 132 multiprocessors; 128
rows were not). Choosing takes 2600 launches, 23 ms, for most; FlashPrefillV2 15 000, 140 ms; SALE
and SkipSoftmax, which score every pair, 45 bytes of it, 190 ms. So .2 to .4 s a layer, 5 to 12 s a
reading, and 80 readings 8 to 16 minutes. At once in memory: about 10 GB, mostly scores or masks of
512 rows (1.8 GB in float32) and the layers' own; texts need not be read one by one.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.experiments.compare.figure import ORACLES, OURS, VARIANTS
from anchor_lab.experiments.compare.measure import GROUP, label_configurations, sweeps
from anchor_lab.experiments.environment import cuda_facts, environment, sources_version
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.losses import pieces
from anchor_lab.experiments.losses.spending import spending
from anchor_lab.experiments.losses.tokens import CLASSES, classes_of
from anchor_lab.experiments.outliers.measure import hash_of
from anchor_lab.experiments.outliers.reading import losses_after
from anchor_lab.experiments.outliers.texts import own_text, texts_of
from anchor_lab.experiments.rivals.page import published
from anchor_lab.experiments.smollm2.measure import weights_hash
from anchor_lab.experiments.store import Store
from anchor_lab.methods import METHODS, Method, TriangleMix
from anchor_models.models import load_pretrained
from anchor_models.smollm2 import NAME, stretch
from anchor_ref import AnchorConfig

KEY = ("method", "configuration")
DENSE, MIX = "Dense", "TriangleMix"
WHOLE_BLOCKS = "AnchorBlocks"  # the variant that a claim about losses is decided by
TEXTS = ("prose", "code", "chat")
PARTS = ("methods", "sorting")
SORTING = ("TokenTopK", "TokenTopCdf", "HeadAveragedTopK")
BUDGETS = ("density", "total_cost")
GOALS = (12.0, 9.0)  # θ of AnchorAttention, whose budgets the others get
THETAS = (-float("inf"), 5.0, 7.0, 9.0, 12.0, 15.0)
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75)  # of TriangleMix: shallow layers; .5 as published
RUNS = 32  # of tokens, whose mean losses are kept: what the intervals are drawn from
WORST = 0.01  # of the tokens
EIGHTHS = 8  # of a group

PACKAGES = Path(__file__).parents[3]
_MODULES = ("measure", "pieces", "spending", "tokens")
# What decides the numbers; texts and weights have hashes of their own.
MEASURING = (
    *("anchor_ref/*.py", "anchor_lab/methods/*.py", "anchor_lab/experiments/outliers/reading.py"),
    *(f"anchor_lab/experiments/losses/{name}.py" for name in _MODULES),
)


@dataclass(frozen=True)
class Sizes:
    """What is read.

    Attributes:
        tokens: N, more than a group.
        texts: some of `TEXTS`.
        thetas: of AnchorAttention, `GOALS` among them.
        methods: the others.
    """

    tokens: int
    texts: tuple[str, ...]
    thetas: tuple[float, ...]
    methods: tuple[str, ...]


def in_order() -> tuple[str, ...]:
    """All methods but dense attention and ours: published, variants, oracles, those that sort."""
    kinds = {
        **dict.fromkeys(VARIANTS, 1),
        **dict.fromkeys(ORACLES, 2),
        **dict.fromkeys(SORTING, 3),
    }
    others = [name for name in (*METHODS, MIX) if name not in (DENSE, OURS)]
    return tuple(sorted(others, key=lambda name: kinds.get(name, 0)))


FULL = Sizes(8192, TEXTS, THETAS, in_order())
LONG = tuple(name for name in in_order() if name in (*published(in_order()), WHOLE_BLOCKS))
QUICK = Sizes(
    2304, TEXTS[1:], (-float("inf"), *sorted(GOALS)), ("StreamingLLM", "SkipSoftmax", MIX)
)


def options(parser: argparse.ArgumentParser) -> None:
    """--model, --text, --length, --parts, --methods, --time-s"""
    add = parser.add_argument
    add("--model", default=NAME, help=f"another causal model; default {NAME}")
    add("--text", type=own_text, help="a UTF-8 file to read in place of the three texts")
    add("--length", type=int, help=f"tokens of each text; default {FULL.tokens}")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add(
        "--methods",
        nargs="+",
        choices=(OURS, *FULL.methods),
        help="default all; of AnchorAttention, where it is not named, the levels alone",
    )
    add("--time-s", type=float, default=float("inf"), help="begin nothing later")


def measure(chosen: argparse.Namespace) -> int:
    """Read what is missing.

    Returns:
        0; 1 when the time was over before all was there; 2 with a line on stderr for a length
        that no text has or that leaves nothing to measure.

    Raises:
        OtherResults: the file was made with something else.
    """
    sizes, device = sizes_of(chosen), chosen.device
    least = GROUP + 1 + RUNS  # a prediction beyond the first group for each run
    if sizes.tokens < least:
        print(f"--length must be at least {least}, got {sizes.tokens}", file=sys.stderr)
        return 2
    model, tokenizer = load_pretrained(chosen.model, torch.float32, device)
    try:
        ids = texts_of(sizes.texts, tokenizer, sizes.tokens, chosen.text)
    except ValueError as problem:
        if chosen.text is not None or chosen.length is None:
            raise
        print(f"--length must be of texts that are there: {problem}", file=sys.stderr)
        return 2
    tokens = torch.tensor(list(ids.values()), device=device)
    settings = {
        "model": chosen.model,
        "weights": weights_hash(model),
        "tokens": sizes.tokens,
        "positions": model.config.max_position_embeddings,
        "texts": {kind: hash_of(torch.tensor([one])) for kind, one in ids.items()},
        "dtype": "float32",
        "runs": RUNS,
        "code": sources_version(PACKAGES, MEASURING),
        **environment(device, ("torch", "transformers")),
        **(cuda_facts() if torch.device(device).type == "cuda" else {}),
    }
    run = {"date": settings.pop("date"), "command": chosen.command}
    store = Store(chosen.out, KEY, settings, run)
    until = time.monotonic() + chosen.time_s
    rows = pieces.ROWS if sizes.tokens > FULL.tokens else None
    reader = Reader(model, tokens, tuple(ids), GROUP, rows)
    parts = {name: PARTS[name in SORTING] for name in sizes.methods}
    wanted = ladders(sizes.thetas, [name for name in parts if parts[name] in chosen.parts])
    if fill(store, wanted, reader.row, until):
        return 0
    print("not all is there: call again to go on", file=sys.stderr)
    return 1


def sizes_of(chosen: argparse.Namespace) -> Sizes:
    """What --quick, --length and --methods ask for."""
    sizes = QUICK if chosen.quick else FULL
    if chosen.length is not None:
        some = LONG if chosen.length > FULL.tokens else FULL.methods
        methods = tuple(name for name in sizes.methods if name in some)
        sizes = replace(sizes, tokens=chosen.length, methods=methods)
    if chosen.methods is None:
        return sizes
    return replace(
        sizes,
        thetas=sizes.thetas if OURS in chosen.methods else tuple(sorted(GOALS)),
        methods=tuple(name for name in chosen.methods if name != OURS),
    )


Ladder = dict[str, Method | TriangleMix | None]  # by configuration, from the sparsest on


def ladders(thetas: Sequence[float], methods: Sequence[str]) -> dict[str, Ladder]:
    """Dense attention, ours at some θ, and the sweeps of others, by name."""
    ours = [METHODS[OURS](AnchorConfig(theta=theta)) for theta in thetas]
    found: dict[str, Ladder] = {
        DENSE: {"default": None},
        OURS: {theta_label(one.config.theta): one for one in ours},
    }
    for name in methods:
        if name == MIX:
            found[name] = {f"share={share:g}": TriangleMix(share=share) for share in SHARES}
        else:
            (sweep,) = sweeps([name]).values()
            found[name] = dict(zip(label_configurations(sweep), sweep, strict=True))
    return found


def theta_label(theta: float) -> str:
    """What a row of ours is called."""
    return f"theta={theta:g}"


def fill(
    store: Store,
    wanted: dict[str, Ladder],
    read: Callable[[Method | TriangleMix | None], dict],
    until: float,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Read what is missing; whether all is there at the end.

    Args:
        store: gets a row for each method and configuration that is read.
        wanted: of `ladders`; all of dense attention and ours is read, of others what levels need.
        read: a row without its key, with `BUDGETS`.
        until: nothing is begun later.
        clock: tells the time.
    """

    def row(name: str, label: str) -> dict:
        if not store.holds(method=name, configuration=label):
            if clock() > until:
                raise _TimeIsOverError
            found = read(wanted[name][label])
            store.add([{"method": name, "configuration": label, **found}])
        return row_of(store.rows, name, label)

    try:
        for name in (DENSE, OURS):
            for label in wanted[name]:
                row(name, label)
        goals = [
            (budget, row(OURS, theta_label(theta))[budget])
            for theta in GOALS
            for budget in BUDGETS
        ]
        for name in progress([name for name in wanted if name not in (DENSE, OURS)]):
            labels = list(wanted[name])
            for budget, level in goals:
                if not compared(name, budget):
                    continue
                bracket(
                    lambda place, name=name, labels=labels, budget=budget: row(
                        name, labels[place]
                    )[budget],
                    len(labels),
                    level,
                )
    except _TimeIsOverError:
        return False
    return True


def compared(name: str, budget: str) -> bool:
    """Whether a method is compared by a budget: oracles save no work."""
    return budget == "density" or name not in ORACLES


class _TimeIsOverError(Exception):
    """Nothing more is begun."""


def row_of(rows: Sequence[dict], name: str, label: str) -> dict:
    """The row of a method and configuration, which is there."""
    return next(x for x in rows if (x["method"], x["configuration"]) == (name, label))


def bracket(value: Callable[[int], float], count: int, level: float) -> tuple[int, int]:
    """Neighbours between which a level lies, by bisection.

    Args:
        value: of place 0, ..., count - 1; does not fall.
        count: at least 1.
        level: of the value.

    Returns:
        (last place below the level, first one at it or above), -1 and `count` where there is none.
    """
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if value(middle) >= level else (middle, high)
    return low, high


class Reader:
    """Reads all texts at once, and compares with dense attention.

    Args:
        model: a transformers causal model, in eval mode.
        tokens: `[B, N]`, a text each.
        texts: what they are called.
        group_size: rows of the first group, whose predictions do not count.
        rows: that attend at once, see `pieces`; None for the way of `method_attention`.
    """

    def __init__(
        self,
        model,
        tokens: Tensor,
        texts: Sequence[str],
        group_size: int,
        rows: int | None = None,
    ):
        self.model, self.tokens, self.texts, self.first = model, tokens, tuple(texts), group_size
        self.rows = rows
        model.set_attn_implementation("sdpa")
        with nullcontext() if rows is None else pieces.reading(model, None):
            self.dense = self.losses()
        self.classes = [classes_of(ids, group_size)[group_size:] for ids in tokens.tolist()]
        row = torch.arange(group_size, tokens.shape[1] - 1)
        self.eighths = row % group_size * EIGHTHS // group_size

    @torch.no_grad()
    def losses(self) -> Float[Tensor, "B L"]:
        """Of the predictions beyond the first group, nats, on the CPU."""
        with stretch(self.model, self.tokens.shape[1]):
            hidden = self.model.base_model(input_ids=self.tokens, use_cache=False)
        hidden = hidden.last_hidden_state
        found = [losses_after(self.model, *x) for x in zip(hidden, self.tokens, strict=True)]
        return torch.stack(found)[:, self.first :].double()

    def row(self, method: Method | TriangleMix | None) -> dict:
        """What is lost, by text, and what was spent.

        Returns:
            `BUDGETS` and "executed_density"; and by text, in nats above dense attention: "runs",
            means of `RUNS` runs of tokens; "classes", sums over the tokens of each of `CLASSES`;
            "eighths", sums over the rows of each eighth of their group; "worst", the sum of the
            `WORST` of all tokens that lose most. For None, dense attention itself, sums are of its
            own losses, "counts" says how many tokens there are of each class.
        """
        if method is None:
            spent, lost, more = dict.fromkeys((*BUDGETS, "executed_density"), 1.0), self.dense, {}
            counts = [torch.bincount(x, minlength=len(CLASSES)).tolist() for x in self.classes]
            more = {"counts": dict(zip(self.texts, counts, strict=True))}
        else:
            with spending(self.model, method, self.rows) as costs:
                read = self.losses()
            spent, lost, more = costs.means(), read - self.dense, {}
        sums = [
            _sums(one, classes, len(CLASSES))
            for one, classes in zip(lost, self.classes, strict=True)
        ]
        worst = lost.topk(max(1, round(WORST * lost.shape[1])), dim=1).values.sum(1)
        runs = [[x.mean().item() for x in one.tensor_split(RUNS)] for one in lost]
        by_text = {
            "runs": [[round(x, 5) for x in one] for one in runs],
            "classes": sums,
            "eighths": [_sums(one, self.eighths, EIGHTHS) for one in lost],
            "worst": [round(x, 3) for x in worst.tolist()],
        }
        return {
            **{name: round(x, 5) for name, x in spent.items()},
            **{name: dict(zip(self.texts, x, strict=True)) for name, x in by_text.items()},
            **more,
        }


def _sums(losses: Float[Tensor, "L"], kinds: Int[Tensor, "L"], count: int) -> list[float]:
    """Of the losses of each kind."""
    sums = torch.zeros(count, dtype=losses.dtype).index_add(0, kinds, losses)
    return [round(x, 3) for x in sums.tolist()]
