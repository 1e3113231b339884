"""What each rank of `torchrun` finds out; `test_sequence.py` and `test_tensor.py` read it.

torchrun --nproc-per-node 2 tests/anchor_models/parallel/worker.py FOLDER [PART ...]
"""

import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from anchor_models import load_bundled, make_document
from anchor_models.parallel import (
    load_tensor_parallel,
    sequence_parallel_prefill,
    shard_rows,
    ulysses_attention,
)
from anchor_models.parallel.__main__ import arguments
from anchor_models.parallel.__main__ import run as run_example
from anchor_ref import AnchorConfig
from anchor_ref import anchor_attention as reference

SMALL = AnchorConfig(block_size=8, step=2, theta=1.0)
PROMPT = 301  # odd: the ranks' shares differ
TAILS = (0, 20, 100)  # none; on the last rank; on both
# Query heads, kv heads, tokens. The last are SmolLM2's heads, and shares of two lengths of a kv
# head's query heads, which repeat its keys by twos.
HEADS = ((4, 2, 150), (6, 1, 67), (3, 3, 3), (9, 3, 67), (12, 2, 40))

JAMBA = {"num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
JAMBA |= {"use_mamba_kernels": False, "expert_layer_period": 4, "expert_layer_offset": 3}
LLAMA4 = {"num_key_value_heads": 2, "intermediate_size_mlp": 48, "num_local_experts": 2}
LLAMA4 |= {"attention_chunk_size": 151}  # as long as a share


def message(function, *args, **kwargs) -> str:
    """What a call says when it refuses."""
    try:
        function(*args, **kwargs)
    except (TypeError, ValueError) as problem:
        return f"{type(problem).__name__}: {problem}"
    return "nothing was raised"


def qkv(q_heads: int, kv_heads: int, n: int, seed: int = 0):
    """The same on every rank."""
    random = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, h, n, 16, generator=random, dtype=torch.float64)
        for h in (q_heads, kv_heads, kv_heads)
    ]


def mine(x, n: int):
    rows = shard_rows(n, dist.get_rank(), dist.get_world_size())
    return x[:, :, rows.start : rows.stop]


class Sent:
    """Counts the bytes that a collective takes from this rank to the others."""

    def __init__(self):
        self.bytes, self.calls = 0, 0

    def all_to_all_single(self, received, sent, received_sizes, sent_sizes, group=None):
        own = sent_sizes[dist.get_rank()]
        self.bytes += (sent.numel() - own) * sent.element_size()
        self.calls += 1
        return ALL_TO_ALL(received, sent, received_sizes, sent_sizes, group=group)


ALL_TO_ALL = dist.all_to_all_single


def attention_errors() -> list[float]:
    """Largest difference to one process, for each case of HEADS and each tail."""
    errors = []
    for (q_heads, kv_heads, n), tail in product(HEADS, TAILS):
        whole, config = qkv(q_heads, kv_heads, n), replace(SMALL, tail=tail)
        out = ulysses_attention(*(mine(x, n) for x in whole), config, 0.5)
        errors.append(float((out - mine(reference(*whole, config, 0.5), n)).abs().max()))
    return errors


def attention_bytes() -> list[int]:
    found = []
    for q_heads, kv_heads, n in HEADS:
        sent = Sent()
        with patch.object(dist, "all_to_all_single", sent.all_to_all_single):
            ulysses_attention(*(mine(x, n) for x in qkv(q_heads, kv_heads, n)), SMALL)
        found.append(sent.bytes)
    return found


def exchange() -> dict:
    """Attention alone, at any number of ranks."""
    return {
        "attention": attention_errors(),
        "bytes": attention_bytes(),
        "group": group_error(),
    }


def group_error() -> float:
    """Largest difference to one process where the last two ranks alone share a prompt."""
    ranks = dist.get_world_size()
    group = dist.new_group([ranks - 2, ranks - 1])
    rank = dist.get_rank() - (ranks - 2)
    if rank < 0:
        return 0.0
    whole = qkv(4, 2, 151)
    rows = shard_rows(151, rank, 2)
    parts = (x[:, :, rows.start : rows.stop] for x in whole)
    out = ulysses_attention(*parts, SMALL, 0.5, group)
    expected = reference(*whole, SMALL, 0.5)[:, :, rows.start : rows.stop]
    return float((out - expected).abs().max())


def refusals() -> dict[str, str]:
    rank = dist.get_rank()
    q, k, v = (mine(x, 40) for x in qkv(4, 2, 40))
    one = q[:, :1]
    return {
        "dtype": message(ulysses_attention, *(x.to(DTYPES[rank]) for x in (q, k, v))),
        "heads": message(ulysses_attention, q, k[:, : 1 + rank], v[:, : 1 + rank]),
        "batch": message(ulysses_attention, *(x[: 1 + rank] for x in (q, k, v))),
        "head size": message(ulysses_attention, *(x[..., : 8 + rank] for x in (q, k, v))),
        "odd heads": message(ulysses_attention, one, one, one),
        "chunk": message(ulysses_attention, q[:, :, 5:], k, v),
    }


DTYPES = (torch.float32, torch.float64)


def tiny(kind: str, **more):
    """A random model of two layers that no two ranks may differ in."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 99}
    heads = {"num_attention_heads": 4, "head_dim": 8, **more}
    sizes["hidden_size"] = max(32, 8 * heads["num_attention_heads"])
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads)
    return transformers.AutoModelForCausalLM.from_config(config).eval().double()


def logits_error(model, tokens) -> float:
    """Largest difference of this rank's logits to those of the whole prompt in one process."""
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
    rows, output = sequence_parallel_prefill(model, tokens)
    assert output.logits.shape[1] == len(rows)
    return float((output.logits - whole[:, rows.start : rows.stop]).abs().max())


def agreements(model, tokens) -> int:
    """How often a prompt makes the ranks ask each other for their lengths."""
    asked = []
    with patch.object(
        dist, "all_gather_object", lambda *args, **kw: asked.append(GATHER(*args, **kw))
    ):
        sequence_parallel_prefill(model, tokens, check=False)
    return len(asked)


GATHER = dist.all_gather_object


def sequence() -> dict:
    from anchor_models.transformers import options

    model, tokenizer = load_bundled(torch.float64)
    text = make_document(4 * PROMPT, seed=1).text
    tokens = tokenizer(text, return_tensors="pt").input_ids[:, :PROMPT]
    found = {"dense": logits_error(model, tokens)}
    with torch.no_grad():
        dense = model(tokens).logits
    model.set_attn_implementation("anchor_attention")
    with options(theta=2.0, block_size=16, step=4, tail=40):
        found["anchor"] = logits_error(model, tokens)
        with torch.no_grad():
            found["anchor to dense"] = float((model(tokens).logits - dense).abs().max())
        with options(theta=[0.5 * layer for layer in range(8)]):
            found["anchor, θ by layer"] = logits_error(model, tokens)
        with options(theta=[[1.0] * 7 + [2.0]] * 8):
            by_head = message(sequence_parallel_prefill, model, tokens)
        found["batch"] = logits_error(model, tokens[:, :300].view(2, 150))
        shared = tiny("Llama", num_key_value_heads=1)
        found["one kv head"] = logits_error(shared, tokens % 99)
        shared.set_attn_implementation("anchor_attention")
        found["one kv head, anchor"] = logits_error(shared, tokens % 99)
        # Heads that do not divide: 5 and 4 of 9, as SmolLM2 has them.
        nine = tiny("Llama", num_attention_heads=9, num_key_value_heads=3)
        found["9 / 3 heads"] = logits_error(nine, tokens % 99)
        nine.set_attn_implementation("anchor_attention")
        found["9 / 3 heads, anchor"] = logits_error(nine, tokens % 99)
        found["agreements"] = agreements(nine, tokens % 99)
    # Heads so wide that transformers repeats keys for the query heads instead of sharing them.
    found["one kv head, repeated"] = logits_error(
        tiny("Llama", num_key_value_heads=1, head_dim=264), tokens % 99
    )
    window = tiny("Mistral", num_key_value_heads=2, sliding_window=200)
    sent = Sent()
    with patch.object(dist, "all_to_all_single", sent.all_to_all_single):
        sequence_parallel_prefill(model, tokens[:, :300])
    by_itself = [dist.new_group([rank]) for rank in range(2)][dist.get_rank()]
    rows, _ = sequence_parallel_prefill(nine, tokens % 99, by_itself)
    longer = tokens[:, : 40 + dist.get_rank()]
    lengths = message(sequence_parallel_prefill, model, longer)
    model.set_attn_implementation("eager")
    run = sequence_parallel_prefill
    return {
        "logits": found,
        "model bytes": sent.bytes,
        "rows by itself": [rows.start, rows.stop],
        "example": run_example(arguments(["--length", "301", "--check"]), torch.device("cpu")),
        "refusals": {
            **refusals(),
            "θ by head": by_head,
            "lengths": lengths,
            "window": message(run, window, tokens % 99),
            "window, not tried": message(run, window, tokens % 99, check=False),
            "recurrent": message(run, tiny("Jamba", **JAMBA), tokens % 99),
            "chunks": message(run, tiny("Llama4Text", **LLAMA4), tokens % 99),
            "mask": message(run, model, tokens),
            "cache": message(run, window, tokens % 99, use_cache=True),
            "padding": message(run, window, tokens % 99, attention_mask=tokens > 0),
            "short": message(run, window, tokens[:, :1] % 99),
        },
    }


def saved(folder: Path, config=None, model=None, tokenizer=None) -> Path:
    """What is given, in a folder that all ranks may read."""
    if dist.get_rank() == 0:
        for part in (config, model, tokenizer):
            if part is not None:
                part.save_pretrained(folder)
    dist.barrier()
    return folder


def tensor(folder: Path) -> dict:
    from torch.distributed.tensor.debug import CommDebugMode
    from transformers import GPT2Config, LlamaConfig

    from anchor_models.transformers import options

    model, tokenizer = load_bundled(torch.float64)
    tokens = tokenizer(make_document(4 * PROMPT, seed=1).text, return_tensors="pt").input_ids
    tokens = tokens[:, :PROMPT]
    split, found, counts = load_tensor_parallel(None, torch.float64)[0], {}, {}
    with torch.no_grad(), options(theta=2.0, block_size=16, step=4, tail=40):
        for name in ("sdpa", "anchor_attention"):
            model.set_attn_implementation(name)
            split.set_attn_implementation(name)
            with CommDebugMode() as sent:
                logits = split(tokens).logits
            found[name] = float((logits - model(tokens).logits).abs().max())
            total = sent.get_comm_counts().items()
            counts[name] = {
                kind: sum(n for op, n in total if kind in str(op)) for kind in ("reduce", "gather")
            }
        greedy = {"max_new_tokens": 6, "do_sample": False, "attention_mask": tokens >= 0}
        written = [x.generate(tokens, **greedy)[0, PROMPT:].tolist() for x in (split, model)]
    qwen = tiny("Qwen3", num_key_value_heads=2)
    shared = load_tensor_parallel(
        saved(folder / "qwen3", model=qwen, tokenizer=tokenizer), torch.float64
    )[0]
    with torch.no_grad():
        logits = shared(tokens % 99).logits
        found["qwen3"] = float((logits - qwen(tokens % 99).logits).abs().max())
    refused = {
        "one kv head": LlamaConfig(num_attention_heads=4, num_key_value_heads=1),
        "odd heads": LlamaConfig(hidden_size=24, num_attention_heads=3, num_key_value_heads=3),
        "no plan": GPT2Config(),
    }
    weights = sum(getattr(x, "to_local", lambda x=x: x)().numel() for x in split.parameters())
    return {
        "logits": found,
        "collectives": counts,
        "weights": weights,
        "written": written,
        "refusals": {
            name: message(load_tensor_parallel, saved(folder / name, config=config))
            for name, config in refused.items()
        },
    }


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    parts = {"sequence": sequence, "tensor": lambda: tensor(folder), "exchange": exchange}
    found = {name: parts[name]() for name in sys.argv[2:] or ("sequence", "tensor", "exchange")}
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(everyone))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
