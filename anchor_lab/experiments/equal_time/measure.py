"""Rows that stage 2 asks by themselves, an extension: what do they save in the same time?

    python -m anchor_lab equal_time                     writes equal_time.json, .md and .png
    python -m anchor_lab equal_time --parts losses      one part; the same file goes on
    python -m anchor_lab equal_time --time-s 300        begins nothing later; call again to go on
    python -m anchor_lab equal_time --table             .md and .png from equal_time.json

The kernels themselves in the place of every layer's attention, bfloat16, no tail: SmolLM2-135M-
Instruct reads the four texts of the experiment `outliers` with the method as published, and with
evenly spaced rows that stage 2 asks by themselves, an extension. Some ways have a threshold for
each head, found as there, on a text of another kind.

losses    of the predictions in the rows beyond the first group, and the pairs kept
times     of every layer's attention on the model's own activations, one call after the other, the
          L2 cache emptied before each; dense attention by the fastest of SDPA's choice and cuDNN
answers   facts hidden in 8064 tokens and asked for, by the tasks of `answers`, without a tail

Times are of nobody but this process: run that part with nothing else on the GPU. They are of one
version of the kernels: those of another are measured again.

Expected on an H200, not measured: losses one minute and as much for thresholds at 32 768 tokens,
times one minute, answers three.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from statistics import mean

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from anchor_lab.experiments.answers.ask import answers
from anchor_lab.experiments.answers.prompts import make_prompt
from anchor_lab.experiments.attention.instruments import CudaInstruments, quantiles
from anchor_lab.experiments.environment import cuda_facts, environment, kernels_version
from anchor_lab.experiments.equal_time.ways import BY_HEAD, DENSE, WAYS, Way
from anchor_lab.experiments.experiment import call_each
from anchor_lab.experiments.outliers.measure import RUNS, calibrate, hash_of
from anchor_lab.experiments.outliers.reading import token_losses
from anchor_lab.experiments.outliers.texts import CALIBRATION, KINDS, tokens_of
from anchor_lab.experiments.side_by_side.timing import HostInstruments
from anchor_lab.experiments.smollm2.measure import weights_hash
from anchor_lab.experiments.store import Store
from anchor_models import capture_qkv
from anchor_models.backend import anchor_attention
from anchor_models.interface import replaced_attention
from anchor_models.models import load_pretrained
from anchor_models.smollm2 import NAME, stretch
from anchor_ref import AnchorConfig
from anchor_ref.measure import density

KEY = ("part", "length", "text", "way")
PARTS = LOSSES, TIMES, ANSWERS = ("losses", "times", "answers")
THETAS = "thetas"
LENGTHS, QUICK_LENGTHS = (8192, 32_768), (2304,)
BUDGET_S = 0.01  # of the repeats of one call
ASKED, QUICK_ASKED = 8064, 2304
TASKS = ("single", "multi-key", "words", "secret")
PROMPTS, NEW_TOKENS, BATCH = 50, 12, 10
QUICK_PROMPTS, QUICK_NEW_TOKENS = 1, 2


def options(parser: argparse.ArgumentParser) -> None:
    """--model, --parts, --lengths, --time-s"""
    add = parser.add_argument
    add("--model", default=NAME, help=f"another causal model; default {NAME}")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--lengths", nargs="+", type=int, help=f"default {' '.join(map(str, LENGTHS))}")
    add("--time-s", type=float, default=float("inf"), help="begin nothing later")


def measure(chosen: argparse.Namespace) -> int:
    """Measure what is missing; 1 when the time was over before all was there."""
    quick, device = chosen.quick, torch.device(chosen.device)
    lengths = chosen.lengths or (QUICK_LENGTHS if quick else LENGTHS)
    size = AnchorConfig().group_size
    if min(lengths) < size + 2:  # one prediction beyond the first group
        print(f"--lengths must be at least {size + 2}, got {min(lengths)}", file=sys.stderr)
        return 2
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, tokenizer = load_pretrained(chosen.model, dtype, device)
    kinds = KINDS[:1] if quick else KINDS
    texts = {
        (n, kind): torch.tensor([tokens_of(kind, tokenizer, n)], device=device)
        for n in lengths
        for kind in (*kinds, CALIBRATION)
    }
    cuda = device.type == "cuda"
    settings = {
        "model": chosen.model,
        "weights": weights_hash(model),
        "dtype": str(dtype).removeprefix("torch."),
        "runs": RUNS,
        **environment(chosen.device, ("torch", "transformers")),
        **(cuda_facts() if cuda else {}),
    }
    run = {
        "date": settings.pop("date"),
        "command": chosen.command,
        "kernels": kernels_version(),
        "texts": {f"{kind}, {n}": hash_of(tokens) for (n, kind), tokens in texts.items()},
    }
    store, until = Store(chosen.out, KEY, settings, run), time.monotonic() + chosen.time_s
    bench = _Bench(store, model, tokenizer, texts, quick)
    jobs: list[Callable[[], None]] = []
    for n, kind in product(lengths, kinds):
        jobs += bench.readings(chosen.parts, n, kind)
    if ANSWERS in chosen.parts:
        jobs += bench.asking()
    return call_each(jobs, until)


class _Bench:
    def __init__(self, store: Store, model, tokenizer, texts, quick: bool):
        self.store, self.model, self.tokenizer, self.texts = store, model, tokenizer, texts
        self.quick, self.cuda = quick, model.device.type == "cuda"
        self.ways = WAYS[:2] + WAYS[-1:] if quick else WAYS
        self.clock = CudaInstruments(BUDGET_S) if self.cuda else HostInstruments()

    def readings(self, parts, n: int, kind: str) -> Iterator[Callable[[], None]]:
        """What is left of losses and times of one text: a job for each way."""
        reads = {LOSSES: self._losses, TIMES: self._times}
        for part, way in product([part for part in reads if part in parts], self.ways):
            key = {"part": part, "length": n, "text": kind, "way": way.name}

            def job(key=key, way=way, read=reads[part]) -> None:
                thetas = self._thetas(way, n)
                with stretch(self.model, n):
                    self.store.add([{**key, **read(self.texts[n, kind], way, thetas)}])

            if not self._holds(key):
                yield job

    def _holds(self, key: dict) -> bool:
        """Is the row there, and, of times, of these kernels?"""
        there = self.store.holds(**key)
        if not there or key["part"] != TIMES:
            return there
        return self.store.runs[self._row(key)["run"]]["kernels"] == self.store.run["kernels"]

    def _row(self, key: dict) -> dict:
        """The row with this key, which is there."""
        wanted = self.store.key_of(key)
        return next(row for row in self.store.rows if self.store.key_of(row) == wanted)

    def asking(self) -> Iterator[Callable[[], None]]:
        """What is left to be asked: a job for each task and way."""
        n = QUICK_ASKED if self.quick else ASKED
        count, new = (QUICK_PROMPTS, QUICK_NEW_TOKENS) if self.quick else (PROMPTS, NEW_TOKENS)
        longest = min(length for length, _ in self.texts)
        for way, task in product(self.ways, TASKS[: 1 if self.quick else None]):
            key = {"part": ANSWERS, "length": n, "text": task, "way": way.name}

            def job(key=key, way=way, task=task) -> None:
                prompts = [make_prompt(self.tokenizer, task, n, seed) for seed in range(count)]
                thetas = self._thetas(way, longest)
                with attending(self.model, way, thetas):
                    words = answers(
                        self.model,
                        self.tokenizer,
                        prompts,
                        batch=BATCH if self.cuda else 1,
                        new_tokens=new,
                    )
                found = [int(one.found(said)) for one, said in zip(prompts, words, strict=True)]
                self.store.add([{**key, "found": found, "written": words[0]}])

            if not self.store.holds(**key):
                yield job

    def _losses(self, tokens, way: Way, thetas) -> dict:
        with attending(self.model, way, thetas) as kept:
            losses = token_losses(self.model, tokens)
        beyond = losses[AnchorConfig().group_size :].double()
        runs = beyond.tensor_split(min(RUNS, len(beyond)))
        return {
            "losses": [round(part.mean().item(), 5) for part in runs],
            "density": round(mean(kept), 5) if kept else 1.0,
        }

    def _times(self, tokens, way: Way, thetas) -> dict:
        """Milliseconds of each layer's attention: medians."""
        layers = []
        for layer, x in capture_qkv(self.model, tokens).items():
            q, k, v = (tensor.to(self.model.device) for tensor in (x.q, x.k, x.v))
            calls = _dense_calls(q, k, v, x.scaling, self.cuda)
            if way != DENSE:
                of_layer = None if thetas is None else thetas[layer]
                calls = [_our_call(q, k, v, way.config, x.scaling, of_layer)]
            layers.append(min(quantiles(self.clock.times(call))["median"] for call in calls))
        return {"ms": layers}

    def _thetas(self, way: Way, n: int) -> list[list[float]] | None:
        """Thresholds by layer and head, of the store or found now."""
        if way.by_head is None:
            return None
        choice, target = way.by_head
        key = {"part": THETAS, "length": n, "text": CALIBRATION, "way": choice}
        if not self.store.holds(**key):
            with stretch(self.model, n):
                captured = capture_qkv(self.model, self.texts[n, CALIBRATION])
            found = []
            for x in captured.values():
                wide = {name: getattr(x, name).to(self.model.device).float() for name in "qkv"}
                found.append(calibrate(replace(x, **wide), BY_HEAD[choice], target))
            self.store.add([{**key, "thetas": found}])
        return self._row(key)["thetas"]


@contextmanager
def attending(model, way: Way, thetas) -> Iterator[list[float]]:
    """Inside the `with`, whole prompts are read in this way.

    Args:
        model: a transformers model of plain causal attention. What continues a cache is computed
            as before.
        way: of one layer and all others.
        thetas: by layer and head; None where the way has one threshold.

    Yields:
        A list that each layer of each pass adds its density to, mean over batch and heads.
    """
    found: list[float] = []

    def make(original):
        def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
            n = query.shape[2]
            if way == DENSE or n != key.shape[2]:
                return original(
                    module, query, key, value, attention_mask, scaling=scaling, **kwargs
                )
            of_layer = None if thetas is None else thetas[module.layer_idx]
            out, trace = anchor_attention(
                *(query, key, value, way.config, scaling),
                theta_by_head=of_layer,
                return_trace=True,
            )
            found.append(density(trace.stripes, way.config, n, n).mean().item())
            return out.transpose(1, 2).contiguous(), None

        return attention

    with replaced_attention(model, make):
        yield found


def _our_call(q, k, v, config: AnchorConfig, scale: float, thetas) -> Callable[[], object]:
    return lambda: anchor_attention(q, k, v, config, scale, theta_by_head=thetas)


def _dense_calls(q, k, v, scale: float, cuda: bool) -> list[Callable[[], object]]:
    def call():
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=True
        )

    def by_cudnn():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return call()

    return [call, by_cudnn] if cuda else [call]
