"""How long each layer's attention takes inside a prefill, and the whole around it.

A mark is set on the device before and after each call of attention. Where the host is slower than
the device, as it is for short prompts, the device waits for it inside such a pair of marks too:
these are times that a prefill has, not those of a call with everything ready (`smollm2`).
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from anchor_lab.experiments.answers.ask import implementation
from anchor_lab.experiments.attention.instruments import attempt, quantiles
from anchor_lab.experiments.store import Store
from anchor_models.backend import TAIL
from anchor_models.interface import replaced_attention
from anchor_models.smollm2 import stretch
from anchor_ref import AnchorConfig

THETA = AnchorConfig().theta
SDPA, CUDNN, OURS = "sdpa", "cuDNN", f"AnchorAttention, tail {TAIL}"
WAYS = (SDPA, CUDNN, OURS)


class HostClock:
    """Marks of the host's clock."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def ms(self, first: float, last: float) -> float:
        """Milliseconds between two marks."""
        return 1e3 * (last - first)

    def wait(self) -> None:
        """Until all is done; it is."""


class DeviceClock:
    """Marks among what the current CUDA device has to do."""

    def mark(self) -> torch.cuda.Event:
        """When the device is as far as this."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """Milliseconds between two marks that the device has passed."""
        return first.elapsed_time(last)

    def wait(self) -> None:
        """Until the device has no more to do."""
        torch.cuda.synchronize()


def prefill_jobs(store: Store, model, texts: dict[str, Tensor], sizes) -> Iterator[Callable]:
    """What is left to be timed: a job for each length, all ways in turn.

    Args:
        store: of `measure.KEY`.
        texts: of the longest the first tokens are read.
        sizes: `measure.Sizes`.
    """
    clock = DeviceClock() if model.device.type == "cuda" else HostClock()
    longest = max(texts, key=lambda text: sizes.texts[text])
    for n in sizes.prefills:
        left = [way for way in WAYS if not store.holds(part="times", length=n, way=way)]

        def job(until: float, n=n, left=left) -> bool:
            if time.monotonic() > until:
                return False
            with stretch(model, n):
                found = prefills(model, texts[longest][:, :n], left, sizes.rounds, clock)
            key = {"part": "times", "length": n, "layer": None}
            store.add([{**key, "way": way, **row} for way, row in found.items()])
            return True

        if left:
            yield job


def prefills(model, tokens: Tensor, ways, rounds: int, clock) -> dict[str, dict]:
    """Times of each way. The machine may be slow for seconds: ways take turns.

    Returns:
        By way "whole_ms" quantiles, "layers_ms" the median of each layer's attention, "share" the
        median over rounds of all layers' attention in the whole, "backend" what PyTorch chose; or
        "status" and "message" of a way that does not run.
    """
    taken: dict[str, list] = {way: [] for way in ways}
    failed, backends = {}, {}

    def once(way: str) -> dict:
        with _way(model, way):
            whole, layers, tensors = watched(model, tokens, clock)
            backend = chosen_backend(*tensors) if way == SDPA else None
            return {"status": "ok", "found": (whole, layers, backend)}

    for around in range(rounds + 2):  # the first two warm up
        for way in [way for way in ways if way not in failed]:
            found = attempt(lambda way=way: once(way))
            if found["status"] != "ok":
                failed[way] = found
                continue
            whole, layers, backends[way] = found["found"]
            if around >= 2:
                taken[way].append((whole, layers))
    return failed | {
        way: {
            "status": "ok",
            "whole_ms": quantiles([whole for whole, _ in rows]),
            "layers_ms": [
                float(f"{statistics.median(layer):.4g}")
                for layer in zip(*(layers for _, layers in rows), strict=True)
            ],
            "share": round(statistics.median(sum(layers) / whole for whole, layers in rows), 4),
            "backend": backends[way],
        }
        for way, rows in taken.items()
        if way not in failed
    }


@torch.no_grad()
def watched(
    model, tokens: Tensor, clock
) -> tuple[float, list[float], tuple[Tensor, Tensor, Tensor]]:
    """Milliseconds of one prefill, and of the attention of each of its layers.

    Returns:
        (whole, layers, what the first layer's attention was given).
    """
    marks, first_call = [], []

    def make(original):
        def attention(module, query, key, value, *args, **kwargs):
            first_call[:] = first_call or [(query, key, value)]
            start = clock.mark()
            out = original(module, query, key, value, *args, **kwargs)
            marks.append((start, clock.mark()))
            return out

        return attention

    with replaced_attention(model, make):
        clock.wait()
        start = clock.mark()
        model(tokens, logits_to_keep=1)
        end = clock.mark()
        clock.wait()
    layers = [clock.ms(*pair) for pair in marks]
    return clock.ms(start, end), layers, first_call[0]


def chosen_backend(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The name of the backend that `scaled_dot_product_attention` takes for a causal call."""
    from torch.nn.attention import SDPBackend

    gqa = q.shape[1] != k.shape[1]
    number = torch._fused_sdp_choice(q, k, v, is_causal=True, enable_gqa=gqa)
    return {one.value: name for name, one in SDPBackend.__members__.items()}[number]


@contextmanager
def _way(model, way: str) -> Iterator[None]:
    import anchor_models.transformers as anchor

    if way == OURS:
        with (
            implementation(model, anchor.NAME),
            anchor.options(theta=THETA, tail=TAIL, when="always"),
        ):
            yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    forced = sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if way == CUDNN else nullcontext()
    with implementation(model, "sdpa"), forced:
        yield
