"""Our kernels beside cuDNN, FlashAttention, FlexAttention and block-sparse kernels, in one run.

    python -m anchor_lab side_by_side                    writes side_by_side.json, .md and .png
    python -m anchor_lab side_by_side --parts planted    one part; the same file takes the others
    python -m anchor_lab side_by_side --retry            what failed again, once a package is there
    python -m anchor_lab side_by_side --table            .md and .png from side_by_side.json

Five parts:

planted      5 % planted stripes, 32/8 heads of 128 and 9/3 of 64: the project's whole call with
             and without a tail, dense attention by everyone, and block-sparse kernels over the
             blocks of 128 x 128 that hold a pair that the project keeps
made_for     5 % of the keys heavy once as single keys, once as whole blocks of 128: what columns
             and what blocks are made for; the project's call, cuDNN, and the blocks that
             FlashPrefill V2 chooses
recall       heads of SmolLM2 at 8192 tokens, and one of its layers at 32 768 by YaRN: for every
             block method of the laboratory the sparsest configuration whose blocks reach a mean
             recall of .95 and of .98 over the rows beyond the first group, run by each
             block-sparse kernel; AnchorAttention at equal recall by its own
loss         the loss of SmolLM2 on 8192 tokens with a method in every layer: where the published
             ones lose what AnchorAttention loses at θ = 12 and at θ = 9
equal_loss   these configurations on layers of the model, as in `recall`

Times are the device's, of a call with everything ready, after the L2 cache was emptied. Choosing
the blocks is not among them: the methods here are readable PyTorch, and their own code for it may
be fast. AnchorAttention's time is that of the whole call, its choice included.

flash-attn-4 and FlashInfer are not installed with this project: where they are importable they
take part, and elsewhere their rows say why not. Estimated for an H200, not measured: planted 150
s, and two to four minutes more where FlashInfer compiles; made_for 60 s, recall 70 s, loss 70 s,
equal_loss 40 s.
On a CPU `--quick` runs every part at small sizes.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

import anchor_ref
from anchor_lab.experiments.attention.instruments import attempt
from anchor_lab.experiments.attention.jobs import Case, kernels
from anchor_lab.experiments.crossover.measure import Instruments
from anchor_lab.experiments.environment import cuda_facts, environment, kernels_version
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.side_by_side import executors
from anchor_lab.experiments.side_by_side.blocks import BlockMap, of_ours
from anchor_lab.experiments.side_by_side.ladders import OURS, PUBLISHED, knob_of, ladders
from anchor_lab.experiments.side_by_side.losses import (
    GOALS,
    at_equal_loss,
    losses_of,
    measure_losses,
)
from anchor_lab.experiments.side_by_side.made_for import measure_inputs
from anchor_lab.experiments.side_by_side.rungs import Rungs
from anchor_lab.experiments.side_by_side.sources import (
    KEPT,
    Activations,
    Reader,
    head_columns,
    nine_heads,
)
from anchor_lab.experiments.side_by_side.timing import HostInstruments, compute_dtype, timed
from anchor_lab.experiments.store import Store
from anchor_models import planted_stripes
from anchor_models.backend import TAIL
from anchor_models.smollm2 import NAME
from anchor_ref.config import AnchorConfig

KEY = (
    "part", "source", "n", "q_heads", "kv_heads", "head_dim", "method", "goal", "way", "setting"
)  # fmt: skip
PARTS = ("planted", "made_for", "recall", "loss", "equal_loss")
DENSE, SAME_BLOCKS = "dense", "the same blocks"


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        shapes: (Hq, Hkv, D) of the planted inputs.
        planted: their lengths.
        made_for: lengths of inputs for columns and for blocks, of the first shape.
        config: block, group and, for planted inputs, θ.
        tails: of our calls.
        bundled: tokens of the bundled heads.
        stretched: tokens that one layer of the model reads, and which layer.
        read: tokens of the loss, and the layers that are timed at equal loss.
        recalls: means over heads and rows beyond the first group.
        cell_s: seconds of repeats of one number.
    """

    shapes: tuple[tuple[int, int, int], ...]
    planted: tuple[int, ...]
    made_for: tuple[int, ...]
    config: AnchorConfig
    tails: tuple[int, ...]
    bundled: int
    stretched: tuple[int, tuple[int, ...]]
    read: tuple[int, tuple[int, ...]]
    recalls: tuple[float, ...]
    cell_s: float


FULL = Sizes(
    shapes=((32, 8, 128), (9, 3, 64)),
    planted=(8192, 16_384, 32_768, 131_072),
    made_for=(32_768, 131_072),
    config=AnchorConfig(),
    tails=(0, TAIL),
    bundled=8192,
    stretched=(32_768, (15,)),
    read=(8192, (3, 9, 15, 21, 27)),
    recalls=(0.95, 0.98),
    cell_s=0.1,
)
QUICK = Sizes(
    shapes=((4, 2, 16),),
    planted=(512,),
    made_for=(2048,),
    config=AnchorConfig(step=1),
    tails=(0, 64),
    bundled=512,
    stretched=(384, (1,)),
    read=(384, (2,)),
    recalls=(0.95,),
    cell_s=0.0,
)


def options(parser: argparse.ArgumentParser) -> None:
    """--parts, --executors, --retry, --model"""
    everyone = list(dict.fromkeys([*executors.DENSE, *executors.BLOCKS]))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--executors", nargs="+", choices=everyone, default=everyone)
    parser.add_argument("--retry", action="store_true", help="what failed again")
    parser.add_argument("--model", help=f"of the layers and the loss; default {NAME}")


def measure(options: argparse.Namespace) -> int:
    """Measure what is missing.

    Returns:
        0; 2 with a line on stderr where equal losses are asked for before there are any.

    Raises:
        OtherResults: the file is of another device, of other kernels or libraries.
    """
    device, cuda = options.device, torch.device(options.device).type == "cuda"
    model = options.model or ("bundled" if options.quick else NAME)
    settings = {
        "model": model,
        "kernels": kernels_version(),
        **(cuda_facts() if cuda else environment(device)),
    }
    run = {
        "date": settings.pop("date"),
        "command": options.command,
        "packages": executors.versions(),
    }
    store = Store(options.out, KEY, settings, run)
    if "equal_loss" in options.parts and "loss" not in options.parts and not losses_of(store.rows):
        print("the part loss must come before equal_loss: there are no losses", file=sys.stderr)
        return 2
    sizes = QUICK if options.quick else FULL
    instruments = Instruments(sizes.cell_s) if cuda else HostInstruments()
    bench = Bench(store, sizes, instruments, device, options.executors, options.retry)
    bench.collect(Reader(model, device), options.parts)
    return 0


@dataclass(frozen=True)
class Bench:
    """What all parts share.

    Attributes:
        store: of the rows.
        sizes: what is measured.
        instruments: with `times` and `settle`.
        device: where.
        wanted: names of executors.
        retry: whether what failed is tried again.
        long_s: seconds after which a failure is not repeated in this run.
        broken: such failures, by executor, kind of call and head size.
    """

    store: Store
    sizes: Sizes
    instruments: object
    device: str
    wanted: Sequence[str]
    retry: bool = False
    long_s: float = 5.0
    broken: dict[tuple, dict] = field(default_factory=dict)

    @torch.no_grad()
    def collect(self, reader: Reader, parts: Sequence[str]) -> None:
        """All parts that are missing."""
        if "planted" in parts:
            self.planted()
        if "made_for" in parts:
            measure_inputs(self)
        if "recall" in parts:
            count, layers = self.sizes.stretched
            self.at_equal_recall(nine_heads(self.sizes.bundled, self.dtype, self.device))
            self.with_layers(reader, "recall", count, layers, self.at_equal_recall)
        if "loss" in parts:
            self.losses(reader)
        if "equal_loss" in parts:
            count, layers = self.sizes.read
            self.with_layers(reader, "equal_loss", count, layers, self.at_equal_loss)

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.device)

    def case(self, q, k, v, scale: float, config: AnchorConfig | None = None) -> Case:
        backend = kernels() if torch.device(self.device).type == "cuda" else anchor_ref
        return Case(q, k, v, scale, config or self.sizes.config, backend)

    def dense(self) -> dict[str, Callable]:
        return {name: make for name, make in executors.DENSE.items() if name in self.wanted}

    def blocks(self) -> dict[str, Callable]:
        return {name: make for name, make in executors.BLOCKS.items() if name in self.wanted}

    def is_left(self, key: dict) -> bool:
        """Whether there is no row with this key, or one that failed and is tried again."""
        wanted = self.store.key_of(key)
        found = [row for row in self.store.rows if self.store.key_of(row) == wanted]
        return not found or (self.retry and found[0]["status"] == "error")

    def add(self, key: dict, measured: Callable[[], dict], **about) -> None:
        """A row, of what was measured or of what kept it from that.

        A failure that took long, as a compiler's does, is taken for all heads of that size.
        """
        kind = key["way"], key["method"] == DENSE, key["head_dim"]
        started = time.monotonic()
        found = self.broken.get(kind) or attempt(measured)
        if found["status"] == "error" and time.monotonic() - started >= self.long_s:
            self.broken[kind] = found
        self.store.add([{**key, **about, **found}])
        if found["status"] != "ok":
            self.instruments.settle()

    def planted(self) -> None:
        """A row for each shape, length and way."""
        ways = [
            *((OURS, f"tail {tail}") for tail in self.sizes.tails),
            *((DENSE, name) for name in self.dense()),
            *((SAME_BLOCKS, name) for name in self.blocks()),
        ]
        inputs = [(shape, n) for shape in self.sizes.shapes for n in self.sizes.planted]
        for shape, n in progress(inputs):
            where = {"part": "planted", "source": "planted", "n": n, **head_columns(shape)}
            keys = [{**where, "method": method, "way": way} for method, way in ways]
            if left := [key for key in keys if self.is_left(key)]:
                self.of_planted(shape, n, left)

    def of_planted(self, shape: tuple[int, int, int], n: int, left: list[dict]) -> None:
        """The rows that are missing of one set of inputs."""
        x = planted_stripes(
            n, **head_columns(shape), density=KEPT, dtype=self.dtype, device=self.device
        )
        case = self.case(x.q, x.k, x.v, shape[2] ** -0.5)
        kept = case.always_pairs + case.stripe_pairs
        kept_share, blocks = kept / case.dense_pairs, None
        for key in left:
            about = {"density": 1.0}
            if key["method"] == OURS:
                tail = int(key["way"].removeprefix("tail "))
                about["density"] = kept_share if not tail else _with_tail(case, tail)
                make = executors.ours(case, tail)
                self.add(key, lambda make=make: timed(case, make, self.instruments), **about)
            elif key["method"] == DENSE:
                make = executors.DENSE[key["way"]]
                self.add(key, lambda make=make: timed(case, make(case), self.instruments), **about)
            else:
                blocks = blocks or of_ours(case)
                self.of_blocks(case, blocks, key, density=blocks.density)

    def of_blocks(self, case: Case, blocks: BlockMap, key: dict, **about) -> None:
        """The row of a block-sparse executor."""

        def measured() -> dict:
            run = executors.BLOCKS[key["way"]](case, blocks)
            return timed(case, run, self.instruments, blocks)

        self.add(key, measured, **about)

    def of_ours(self, x: Activations, key: dict, theta: float, **about) -> None:
        """A row for each tail at one θ; pairs and recall are those without a tail."""
        case = self.case(x.q, x.k, x.v, x.scale, replace(self.sizes.config, theta=theta))
        for tail in self.sizes.tails:
            run = executors.ours(case, tail)
            self.add(
                {**key, "way": f"tail {tail}"},
                lambda run=run: timed(case, run, self.instruments),
                **about,
            )

    def of_dense(self, x: Activations, part: str) -> None:
        """Dense attention by everyone on real activations."""
        case = self.case(x.q, x.k, x.v, x.scale)
        for name, make in self.dense().items():
            key = {**_where(part, x), "method": DENSE, "way": name}
            if self.is_left(key):
                self.add(
                    key,
                    lambda make=make: timed(case, make(case), self.instruments),
                    density=1.0,
                    recall=1.0,
                )

    def at_equal_recall(self, x: Activations) -> None:
        """For each method and recall a row for each executor."""
        self.of_dense(x, "recall")
        for name, ladder in progress(list(ladders(self.sizes.config).items())):
            rungs = Rungs(ladder, x, self.sizes.config.group_size, name == OURS)
            for recall in self.sizes.recalls:
                goal = f"recall {recall:g}"
                if self.lacks("recall", x, name, goal):
                    self.run(x, "recall", name, goal, rungs, rungs.first_with(recall))

    def at_equal_loss(self, x: Activations) -> None:
        """For each published method and θ a row for each executor, with ours beside them."""
        self.of_dense(x, "equal_loss")
        found = ladders(self.sizes.config)
        for name in (*PUBLISHED, OURS):
            for theta in GOALS:
                goal = f"loss at θ = {theta:g}"
                if not self.lacks("equal_loss", x, name, goal):
                    continue
                place = at_equal_loss(self.store.rows, name, found[name], theta)
                rungs = Rungs(found[name], x, self.sizes.config.group_size, name == OURS)
                self.run(x, "equal_loss", name, goal, rungs, place)

    def lacks(self, part: str, x: Activations, name: str, goal: str) -> bool:
        """Whether a row of a method at a goal is missing."""
        ways = [f"tail {t}" for t in self.sizes.tails] if name == OURS else list(self.blocks())
        key = {**_where(part, x), "method": name, "goal": goal}
        return any(self.is_left({**key, "way": way}) for way in ways)

    def run(self, x, part: str, name: str, goal: str, rungs: Rungs, place: int | None) -> None:
        """The rows of one configuration; those of one that there is not say so."""
        key = {**_where(part, x), "method": name, "goal": goal}
        if place is None:
            ways = [f"tail {t}" for t in self.sizes.tails] if name == OURS else self.blocks()
            message = f"no configuration reaches it, {knob_of(name, rungs.ladder[-1]):g} included"
            self.store.add(
                [{**key, "way": way, "status": "out of reach", "message": message} for way in ways]
            )
            return
        method = rungs.ladder[place]
        about = {"knob": knob_of(name, method), "recall": round(rungs.recall(place), 4)}
        about |= {"density": rungs.density(place), "scored": rungs.scored(place)}
        if name == OURS:
            self.of_ours(x, key, method.config.theta, **about)
            return
        case, blocks = self.case(x.q, x.k, x.v, x.scale), rungs.blocks(place)
        for way in self.blocks():
            if self.is_left({**key, "way": way}):
                self.of_blocks(case, blocks, {**key, "way": way}, **about)

    def with_layers(self, reader, part: str, count: int, layers, measured: Callable) -> None:
        """Measure on layers of the model; a row says why where there is no model."""
        try:
            found: Iterator[Activations] = reader.layers(count, layers)
            for x in found:
                measured(x)
        except FileNotFoundError as error:
            self.no_model(part, count, error)

    def losses(self, reader: Reader) -> None:
        """Rows of the losses; one says why where there is no model."""
        count, _ = self.sizes.read
        try:
            tokens = reader.tokens(count)
        except FileNotFoundError as error:
            self.no_model("loss", count, error)
            return
        measure_losses(self.store, reader.model, tokens, self.sizes.config, PUBLISHED)

    def no_model(self, part: str, count: int, error: Exception) -> None:
        row = {"part": part, "source": "model", "n": count, "status": "error"}
        self.store.add([{**row, "message": f"{type(error).__name__}: {error}"}])


def _where(part: str, x: Activations) -> dict:
    shape = x.q.shape[1], x.k.shape[1], x.q.shape[3]
    return {"part": part, "source": x.name, "n": x.q.shape[2], **head_columns(shape)}


def _with_tail(case: Case, tail: int) -> float:
    """Share of the causal pairs that is kept with a tail."""
    other = replace(case, config=replace(case.config, tail=tail))
    return (other.always_pairs + other.stripe_pairs) / case.dense_pairs
