"""From which length on does AnchorAttention pay, and does a model know it?

    python -m anchor_lab crossover            writes crossover.json, .md and .png, and the fit
    python -m anchor_lab crossover --table    .md and .png from crossover.json
    python -m anchor_lab.experiments.crossover.fit    cost.json of `anchor_models` from it

Calls of one layer as a model makes them, then prefills of whole models:

calls      attention by the name that transformers calls, "sdpa" and "anchor_attention", planted
           stripes in bfloat16: heads, length, share of the candidates kept, tail; and chunks,
           whose queries are not all keys. Milliseconds of the device alone, with all of a call
           queued before it begins
host       milliseconds in which the host issues some of these calls, without waiting; those of
           the same heads take turns
layer      whole dense prefills: a short one of SmolLM2, where the host is the bound, for what it
           needs for a layer, and long ones of both models below, for what the device does there
           beside attention
prefill    SmolLM2 on a stretch of this repository, and half the layers of an 8B model with random
           weights, whose queries are scaled until θ = 12 keeps the share that it keeps in SmolLM2
           at that length: sdpa, AnchorAttention where a gain is expected, and always

Between calls and prefills the cost model of `anchor_models.integration.cost` is fitted, and
written where "auto" reads it. Six minutes on an H200; the same command goes on where a run was cut
off.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch

from anchor_lab.experiments.attention.instruments import CudaInstruments, quantiles
from anchor_lab.experiments.crossover.fit import kept_law, write_cost
from anchor_lab.experiments.environment import cuda_facts, kernels_version
from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.random_model import random_llama, scale_queries
from anchor_lab.experiments.smollm2.prompts import needle, repository_text
from anchor_lab.experiments.store import Store
from anchor_models import load_pretrained, planted_stripes
from anchor_models.backend import TAIL
from anchor_models.integration import cost
from anchor_models.parallel.cost import ModelShape
from anchor_models.smollm2 import NAME, stretch

KEY = (
    "part", "way", "model", "q_heads", "kv_heads", "head_dim", "queries", "keys", "kept", "tail"
)  # fmt: skip
PARTS = ("calls", "host", "layer", "prefill")
THETA = 12.0
WAYS = {"sdpa": None, "auto": "auto", "always": "always"}  # of a prefill: `when`
BUSY_CYCLES = 4_000_000  # about 2 ms, in which the host queues a whole call
LAYERS = 10_000  # more than calls of a cell: each is another layer of one pass
ISSUED = 20  # calls in a row: the device's queue must not fill up
TURNS = 15
SHARE, MOST = 15, 60  # a whole prefill gets so many times the budget of a call, in so many turns


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        heads: (Hq, Hkv, D) of the calls.
        dense, anchor: lengths of the calls; the shortest of ours are longer than a group.
        chunks: (Nq, Nk).
        kept: shares of planted candidates.
        tails: rows that see every key.
        models: (name, longest prefill).
        lengths: of the prefills.
        issued: length of the prompts whose calls the host is timed at.
        short: length of the prefill that the host bounds.
        long: lengths of those that the device bounds.
        shape: of the model with random weights.
        cell_s: seconds of repeats of one number.
    """

    heads: tuple[tuple[int, int, int], ...]
    dense: tuple[int, ...]
    anchor: tuple[int, ...]
    chunks: tuple[tuple[int, int], ...]
    kept: tuple[float, ...]
    tails: tuple[int, ...]
    lengths: tuple[int, ...]
    issued: int
    short: int
    long: tuple[int, ...]
    shape: ModelShape
    cell_s: float


POWERS = tuple(2**n for n in range(8, 18))
FULL = Sizes(
    heads=((9, 3, 64), (32, 8, 64), (16, 8, 128), (32, 8, 128)),
    dense=tuple(sorted({*POWERS, 3072, 6144, 12_288})),
    anchor=tuple(n for n in sorted({*POWERS, 3072, 6144, 12_288}) if n > 2048),
    chunks=((2048, 8192), (2048, 32_768), (8192, 32_768), (4096, 65_536)),
    kept=(0.02, 0.05, 0.2, 0.5),
    tails=(0, TAIL),
    lengths=tuple(n for n in POWERS if n <= 65_536),
    issued=4096,
    short=256,
    long=(16_384, 32_768),
    shape=ModelShape(16, 4096, 14_336, 32, 8, 128, 32_000),
    cell_s=0.1,
)
QUICK = Sizes(
    heads=((2, 1, 16),),
    dense=(256, 2304),
    anchor=(2304,),
    chunks=((256, 2304),),
    kept=(0.05, 0.5),
    tails=(0, 64),
    lengths=(256, 2304),
    issued=2304,
    short=64,
    long=(2304,),
    shape=ModelShape(2, 32, 48, 4, 2, 8, 32_000),
    cell_s=0.0,
)


@dataclass(frozen=True)
class Cell:
    """A call to time: fields as in `KEY`; `kept` and `tail` of ours alone."""

    way: str
    q_heads: int
    kv_heads: int
    head_dim: int
    queries: int
    keys: int
    kept: float | None = None
    tail: int | None = None


class Instruments(CudaInstruments):
    """Clock of the current CUDA device, and of the host that feeds it."""

    def _once(self, run: Callable[[], object]) -> float:
        """Milliseconds of the device: all of a call is queued while it is busy with another."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(BUSY_CYCLES)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def host(self, ways: Sequence[Callable[[], AbstractContextManager]]) -> list[float]:
        """Milliseconds in which the host issues a call of each way, medians of rows of them.

        Args:
            ways: as in `whole`.
        """
        turns = [[self._issue(way) for way in ways] for _ in range(TURNS)]
        return [statistics.median(taken) for taken in zip(*turns, strict=True)]

    def _issue(self, way: Callable[[], AbstractContextManager]) -> float:
        with way() as run:
            run()  # like the first layer of a pass, it looks around
            return self._rows(run)

    def _rows(self, run: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(ISSUED):
            run()
        taken = time.perf_counter() - started
        torch.cuda.synchronize()
        return taken / ISSUED * 1e3

    def whole(self, ways: Sequence[Callable[[], AbstractContextManager]]) -> list[list[float]]:
        """Milliseconds of the wall for each way, until the device has no more to do.

        Args:
            ways: each makes a context that gives what to run. They take turns: the machine may be
                slower for seconds at a time, and is so for all of them then.
        """
        taken: list[list[float]] = [[] for _ in ways]
        for way in ways:
            with way() as run:
                run()
        while len(taken[0]) < 3 or (
            sum(map(sum, taken)) < 1e3 * SHARE * len(ways) * self.budget_s and len(taken[0]) < MOST
        ):
            for mine, way in zip(taken, ways, strict=True):
                with way() as run:
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                    run()
                    torch.cuda.synchronize()
                    mine.append((time.perf_counter() - started) * 1e3)
        return taken


def options(parser: argparse.ArgumentParser) -> None:
    """--parts, --model"""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", default=NAME, help=f"of layer and prefill; default {NAME}")


def measure(options: argparse.Namespace) -> int:
    """Measure what is missing; returns the exit status, 0."""
    settings = {**cuda_facts(), "kernels": kernels_version()}
    settings["transformers"] = version("transformers")
    settings["generation"] = torch.cuda.get_device_capability()[0]
    run = {"date": settings.pop("date"), "command": options.command}
    store = Store(options.out, KEY, settings, run)
    sizes = QUICK if options.quick else FULL
    collect(store, sizes, Instruments(sizes.cell_s), "cuda", options.model, options.parts)
    return 0


@torch.no_grad()
def collect(
    store: Store,
    sizes: Sizes,
    instruments,
    device: str,
    name: str,
    parts: Sequence[str] = PARTS,
    cost_file: Path = cost.FILE,
) -> None:
    """All parts that are missing; the fit is written as soon as its numbers are there."""
    if "calls" in parts:
        calls(store, sizes, instruments, device)
    if "host" in parts:
        host(store, sizes, instruments, device)
    if not {"layer", "prefill"} & set(parts):
        return
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model, tokenizer = load_pretrained(name, dtype, device)
    body = tokenizer(repository_text(Path()), verbose=False).input_ids

    made_up = random_llama(sizes.shape, max(sizes.lengths), dtype, device)

    def text(n: int) -> torch.Tensor:
        return needle(tokenizer, body, n, seed=0, depth=0.35).tokens.to(device)

    def noise(n: int) -> torch.Tensor:
        return torch.randint(3, 1000, (1, n), device=device)

    models = ((model, name, text), (made_up, "random", noise))
    if "layer" in parts:
        for each, called, _ in models:
            short = (sizes.short,) if called == name else ()
            layer(store, each, called, short + sizes.long, noise, instruments)
    if "prefill" in parts:
        write_cost(store.rows, store.settings, cost_file)
        cost.fitted_for.cache_clear()
        for each, called, read in models:
            prefills(store, each, called, sizes.lengths, read, instruments)


# -- calls


def cells(sizes: Sizes) -> Iterator[Cell]:
    """All calls; those on the same tensors one after the other."""
    for heads, n in product(sizes.heads, sizes.dense):
        yield Cell("dense", *heads, n, n)
    ends = (min(sizes.kept), max(sizes.kept))  # what a tail costs shows there
    for heads, n, kept, tail in product(sizes.heads, sizes.anchor, sizes.kept, sizes.tails):
        if tail == 0 or kept in ends:
            yield Cell("anchor", *heads, n, n, kept, tail)
    for heads, (queries, keys) in product(sizes.heads, sizes.chunks):
        yield Cell("masked", *heads, queries, keys)
        yield Cell("anchor", *heads, queries, keys, max(sizes.kept), max(sizes.tails))


def calls(store: Store, sizes: Sizes, instruments, device: str) -> None:
    """A row for each call."""
    left = [x for x in cells(sizes) if not store.holds(part="calls", **vars(x))]
    for cell, call in ready_calls(left, device):
        store.add([{"part": "calls", **vars(cell), **_ms(instruments.times(call))}])


def host(store: Store, sizes: Sizes, instruments, device: str) -> None:
    """A row for each call that the host is timed at: heads and ways, and what a tail adds.

    Longer calls would fill the device's queue, or wait for the length of their list.
    """
    timed = [
        cell
        for cell in cells(sizes)
        if (cell.queries == cell.keys == sizes.issued and cell.kept in (None, min(sizes.kept)))
        or (cell.way == "masked" and cell.keys <= 2 * sizes.issued)
    ]
    for heads in sizes.heads:
        same = [cell for cell in timed if (cell.q_heads, cell.kv_heads, cell.head_dim) == heads]
        if all(store.holds(part="host", **vars(cell)) for cell in same):
            continue
        ways = [partial(_issuing, cell, call) for cell, call in ready_calls(same, device)]
        taken = instruments.host(ways)
        store.add(
            {"part": "host", **vars(cell), "host_ms": float(f"{ms:.4g}")}
            for cell, ms in zip(same, taken, strict=True)
        )


@contextmanager
def _issuing(cell: Cell, call: Callable[[], object]) -> Iterator[Callable[[], object]]:
    with _options_of(cell):
        yield call


def ready_calls(
    wanted_cells: Sequence[Cell], device: str
) -> Iterator[tuple[Cell, Callable[[], torch.Tensor]]]:
    """Each cell with its call, in the options that it runs in."""
    inputs, made = None, None
    for cell in progress(wanted_cells):
        wanted = (cell.q_heads, cell.kv_heads, cell.head_dim, cell.keys, cell.kept)
        if wanted != made:
            inputs, made = None, wanted  # the old tensors go before the new ones come
            inputs = planted_stripes(
                cell.keys,
                q_heads=cell.q_heads,
                kv_heads=cell.kv_heads,
                head_dim=cell.head_dim,
                density=cell.kept or 0.05,
                dtype=torch.bfloat16 if device == "cuda" else torch.float32,
                device=device,
            )
        with _options_of(cell):
            yield cell, _call(cell, inputs)


def _options_of(cell: Cell):
    import anchor_models.transformers as anchor

    if cell.way == "anchor":
        return anchor.options(theta=THETA, tail=cell.tail, when="always")
    return anchor.options(dense_layers=range(LAYERS))


def _call(cell: Cell, inputs) -> Callable[[], torch.Tensor]:
    """What a layer of a Llama does between its rotated q and k and its output projection."""
    from anchor_models.integration.prefill import dense, prefill

    layer = _layer(cell)
    q, k, v = inputs.q[:, :, cell.keys - cell.queries :], inputs.k, inputs.v
    given = {"dropout": 0.0, "scaling": cell.head_dim**-0.5}
    segments = _segments(cell, q.device)

    def attend() -> torch.Tensor:
        if cell.way == "dense":
            return dense(layer, q, k, v, None, given)
        layer.layer_idx += 1  # the first layer of a pass reads the mask, the others do not
        return prefill(layer, q, k, v, segments, given, {})

    return lambda: attend().reshape(1, cell.queries, -1).contiguous()


def _layer(cell: Cell):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention

    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        num_attention_heads=cell.q_heads,
        num_key_value_heads=cell.kv_heads,
        head_dim=cell.head_dim,
        hidden_size=cell.q_heads * cell.head_dim,
    )
    with torch.device("meta"):  # its weights play no part
        return LlamaAttention(config, layer_idx=0).eval()


def _segments(cell: Cell, device) -> torch.Tensor | None:
    """The mask of a chunk that a model makes once for all its layers."""
    if cell.queries == cell.keys:
        return None
    key = torch.arange(cell.keys, device=device)
    own = (key - (cell.keys - cell.queries)).clamp(min=-1)
    return torch.stack([torch.zeros_like(own), own]).to(torch.int32)[None, None]


# -- prefills


def layer(store: Store, model, name: str, lengths, text, instruments) -> None:
    """Milliseconds of whole dense prefills; what they read plays no part."""
    model.set_attn_implementation("sdpa")
    config = model.config
    heads = {
        "q_heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
    }
    for n in lengths:
        about = {"part": "layer", "model": name, **heads, "queries": n, "keys": n}
        if store.holds(**about):
            continue
        run = partial(model, text(n), logits_to_keep=1)
        with stretch(model, n) if name == NAME else nullcontext():
            (taken,) = instruments.whole([lambda run=run: nullcontext(run)])
        store.add([{**about, "layers": config.num_hidden_layers, **_ms(taken)}])


def prefills(store: Store, model, name: str, lengths, text, instruments) -> None:
    """Milliseconds of whole prefills, and how many layers each way ran AnchorAttention in."""
    import anchor_models.transformers as anchor

    law = {str(THETA): kept_law()[str(THETA)]}
    for n in progress(list(lengths)):
        left = [
            way
            for way in WAYS
            if not store.holds(part="prefill", way=way, model=name, queries=n, keys=n)
        ]
        if not left:
            continue
        tokens = text(n)
        with stretch(model, n) if name == NAME else nullcontext():
            if name != NAME:
                scale_queries(model, tokens, cost.kept_share(law, THETA, n), THETA)
            ready = [partial(_ready, model, tokens, way) for way in left]
            times = dict(zip(left, instruments.whole(ready), strict=True))
            for way, context in zip(left, ready, strict=True):
                with context() as run, anchor.record() as stats:
                    run()
                ran = sum(call.ran == "anchor" for call in stats.calls)
                row = {"part": "prefill", "way": way, "model": name, "queries": n, "keys": n}
                row |= _ms(times[way]) | {"sparse_layers": ran}
                if "sdpa" in times:  # of the same turn, when the machine was as fast
                    turns = zip(times[way], times["sdpa"], strict=True)
                    row["over_sdpa"] = quantiles([mine / other for mine, other in turns])
                store.add([row])


@contextmanager
def _ready(model, tokens: torch.Tensor, way: str) -> Iterator[Callable[[], object]]:
    """Inside the `with`, the prefill by this way."""
    import anchor_models.transformers as anchor

    model.set_attn_implementation("sdpa" if way == "sdpa" else "anchor_attention")
    with anchor.options(theta=THETA, when=WAYS[way]):
        yield partial(model, tokens, logits_to_keep=1)


def _ms(taken: list[float]) -> dict:
    return {"ms": quantiles(taken)}
