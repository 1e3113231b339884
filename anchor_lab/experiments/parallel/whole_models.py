"""Prefills of whole models on one rank and on all: time, memory, bytes, logits, an answer.

Every function is called on every rank at once, and gives every rank the same rows.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from anchor_lab.experiments.parallel.ranks import compared, of_ranks, sent_by, spread, timed
from anchor_models import load_bundled
from anchor_models.parallel import load_tensor_parallel, sequence_parallel_prefill
from anchor_models.parallel.cost import ModelShape, memory
from anchor_models.parallel.prefill import refuse_other_models
from anchor_models.smollm2 import stretch

MODES = ("one", "sequence", "tensor")
WAYS = ("sdpa", "anchor_attention")
LOGITS = ("difference", "typical", "same token")
NUMBERS = ("seconds", "checks", "peak", "paper", "sent", "attention_ms", "waits_ms", "exchange_ms")


@dataclass
class Prompt:
    """A model and what it is given to read, the same on every rank.

    Attributes:
        name: of the model.
        model: whole, on the rank's device; None once it is no longer needed.
        tokens: `[1, N]`.
        options: of AnchorAttention but for the tail.
        tail: the rows that see every key, unless said otherwise.
        kept: share of the candidates that it is expected to keep, for the memory on paper.
        repeats: runs of what is timed, after one that does not count.
        stretched: whether positions beyond those that the model was trained for are stretched.
        answer: what the prompt asks for; None where it asks nothing.
        tokenizer: of a prompt that asks.
    """

    name: str
    model: object
    tokens: Tensor
    options: dict
    tail: int
    kept: float
    repeats: int = 3
    stretched: bool = False
    answer: str | None = None
    tokenizer: object = None
    device: torch.device = field(init=False)

    def __post_init__(self):
        self.device = self.tokens.device

    def row(self, part: str, mode: str, way: str, tail: int | None = None) -> dict:
        """The fields that tell a row from others; dense attention has no tail."""
        tail = self.tail if tail is None else tail
        return {
            "part": part,
            "model": self.name,
            "tokens": self.tokens.shape[1],
            "mode": mode,
            "attention": way,
            "tail": tail if way == WAYS[1] else None,
        }

    @contextmanager
    def ready(self, model, way: str, tail: int | None = None) -> Iterator[None]:
        """Inside the `with`, the model attends so, at this length."""
        from anchor_models.transformers import options

        tail = self.tail if tail is None else tail
        model.set_attn_implementation(way)
        longer = stretch(model, self.tokens.shape[1]) if self.stretched else nullcontext()
        with torch.no_grad(), longer, options(when="always", tail=tail, **self.options):
            yield


def whole_model(prompt: Prompt, written: int, in_torch: bool) -> list[dict]:
    """All rows of a prompt. Its model is given up on the way: the split one is timed alone.

    Args:
        prompt: of the whole model.
        written: tokens of the answer, if the prompt asks.
        in_torch: whether logits are computed by the reference, too.
    """
    model = prompt.model
    shape = ModelShape.of(model.config)
    rows = [row for mode in MODES[:2] for row in prefills(prompt, model, mode, shape)]
    rows += other_arithmetic(prompt, in_torch)
    rows += logits(prompt, model, "sequence")
    rows += answers(prompt, model, MODES[:2], written)
    split, refused = split_model(model)
    if refused:
        return [*rows, *refusals(prompt, refused)]
    rows += logits(prompt, split, "tensor")
    prompt.model = model = None
    rows += prefills(prompt, split, "tensor", shape)
    return [*rows, *answers(prompt, split, MODES[2:], written)]


def prefill(prompt: Prompt, model, mode: str, **inputs):
    """The model's output: of the rank's rows in sequence parallel, else of all."""
    if mode == "sequence":
        # The model was tried before, see `checks`.
        return sequence_parallel_prefill(model, prompt.tokens, check=False, **inputs)[1]
    return model(prompt.tokens, use_cache=False, **inputs)


def prefills(prompt: Prompt, model, mode: str, shape: ModelShape) -> Iterator[dict]:
    """Time and memory, and how evenly attention is spread; without a tail too: what it adds."""
    ranks = 1 if mode == "one" else dist.get_world_size()
    for way, tail in ((WAYS[0], None), (WAYS[1], prompt.tail), (WAYS[1], 0)):
        with prompt.ready(model, way, tail):
            run = partial(prefill, prompt, model, mode, logits_to_keep=1)
            seconds, peak = timed(run, prompt.device, prompt.repeats)
            paper = memory(
                shape,
                mode.replace("one", "sequence"),
                prompt.tokens.shape[1],
                ranks,
                0.0 if way == "sdpa" else prompt.kept,
                model.dtype.itemsize,
            )
            yield {
                **prompt.row("prefill", mode, way, tail),
                "refused": None,
                "seconds": seconds,
                "checks": checks(prompt, model) if mode == "sequence" else None,
                "peak": of_ranks(peak),
                # No cache is kept.
                "paper": paper["at once"] - paper["keys and values of all layers"],
                "sent": sent_by(run),
                **spread(model, run, prompt.device, prompt.repeats),
            }


def checks(prompt: Prompt, model) -> float:
    """Seconds in which sequence parallel tries a model that it has not seen at this length."""
    ranks = dist.get_world_size()
    run = partial(refuse_other_models, model, prompt.tokens, ranks)
    return timed(run, prompt.device, prompt.repeats)[0]


def refusals(prompt: Prompt, message: str) -> Iterator[dict]:
    """A row that says why there are no numbers."""
    yield {
        **prompt.row("prefill", "tensor", "any"),
        "refused": message,
        **dict.fromkeys(NUMBERS),
    }


def logits(prompt: Prompt, model, mode: str) -> Iterator[dict]:
    """Each rank's rows of the logits, all rows in tensor parallel, beside the whole model's."""
    for way in WAYS:
        with prompt.ready(model, way):
            mine = prefill(prompt, model, mode).logits
        with prompt.ready(prompt.model, way):
            whole = prefill(prompt, prompt.model, "one").logits
        if mode == "sequence":
            lengths = of_ranks(mine.shape[1])
            start = sum(lengths[: dist.get_rank()])
            whole = whole[:, start : start + mine.shape[1]]
        yield {**prompt.row("logits", mode, way), **_dtype(model), **compared(mine, whole)}


def other_arithmetic(prompt: Prompt, in_torch: bool) -> Iterator[dict]:
    """How far two runs of one rank are apart that differ in rounding alone.

    Dense: two of PyTorch's backends. AnchorAttention: the kernels, and the reference in PyTorch.
    """
    model, cuda = prompt.model, prompt.device.type == "cuda"
    pair = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION if cuda else SDPBackend.MATH)

    def dense(backend: SDPBackend) -> Tensor:
        with prompt.ready(model, "sdpa"), sdpa_kernel(backend):
            return prefill(prompt, model, "one").logits

    def ours(backend: str) -> Tensor:
        from anchor_models.transformers import options

        with prompt.ready(model, "anchor_attention"), options(backend=backend):
            return prefill(prompt, model, "one").logits

    runs: dict[str, tuple[Callable, tuple]] = {"sdpa": (dense, pair)}
    if in_torch:
        runs["anchor_attention"] = (ours, ("auto", "torch"))
    for way, (run, by) in runs.items():
        found = compared(*map(run, by))
        yield {**prompt.row("logits", "other arithmetic", way), **_dtype(model), **found}


def _dtype(model) -> dict:
    return {"dtype": str(model.dtype).removeprefix("torch.")}


def answers(prompt: Prompt, model, modes, written: int) -> Iterator[dict]:
    """The first tokens of the answer, each from a prefill of its own: a rank keeps no cache."""
    if prompt.answer is None:
        return
    for mode in modes:
        for way in WAYS:
            asked, found = prompt.tokens, []
            with prompt.ready(model, way):
                for _ in range(written):
                    found.append(next_token(prompt, model, mode))
                    more = asked.new_tensor([found])
                    prompt.tokens = torch.cat([asked, more], 1)
            prompt.tokens = asked
            words = prompt.tokenizer.decode(found)
            yield {
                **prompt.row("answers", mode, way),
                "answer": prompt.answer,
                "written": words,
                "found": prompt.answer in words,
            }


def answer_is_written(prompt: Prompt, model, written: int) -> bool:
    """Whether a rank with dense attention writes it, in at most `written` tokens."""
    words, asked = "", prompt.tokens
    with prompt.ready(model, WAYS[0]):
        for _ in range(written):
            token = next_token(prompt, model, "one")
            words += prompt.tokenizer.decode(token)
            if not prompt.answer.startswith(words.strip()):
                break
            prompt.tokens = torch.cat([prompt.tokens, asked.new_tensor([[token]])], 1)
    prompt.tokens = asked
    return prompt.answer in words


def next_token(prompt: Prompt, model, mode: str) -> int:
    """The most likely one, which all ranks are told by the one that has the last row."""
    last = prefill(prompt, model, mode, logits_to_keep=1).logits[0, -1].argmax()
    dist.broadcast(last, dist.get_world_size() - 1)
    return int(last)


def split_model(model) -> tuple[object, str | None]:
    """The same model, of which each rank loads its share from a folder that rank 0 writes.

    Returns:
        (model, None), or None and what `load_tensor_parallel` says if it refuses.
    """
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    if dist.get_rank() == 0:
        model.save_pretrained(folder[0])
        load_bundled()[1].save_pretrained(folder[0])  # any tokenizer will do
    dist.barrier()
    try:
        return load_tensor_parallel(folder[0], model.dtype)[0], None
    except ValueError as refusal:
        return None, str(refusal)
    finally:
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(folder[0])
