"""An example: one prompt on all GPUs of a host, or in processes on the CPU.

    torchrun --nproc-per-node 2 -m anchor_models.parallel --mode sequence --length 4096
    torchrun --nproc-per-node 2 -m anchor_models.parallel --mode tensor --model NAME_OR_PATH

Prints the next token, the time, and with --check how far the logits are from those of one process.
"""

import argparse
import os
import sys
import time

import torch
import torch.distributed as dist

from anchor_models.documents import make_prompt
from anchor_models.models import load_pretrained
from anchor_models.parallel import load_tensor_parallel, sequence_parallel_prefill


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="anchor_models.parallel", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--mode", choices=("sequence", "tensor"), default="sequence")
    parser.add_argument("--model", help="name or path; the bundled model when absent")
    parser.add_argument("--length", type=int, default=4096, help="tokens of the made-up prompt")
    parser.add_argument("--theta", type=float, default=12.0)
    parser.add_argument("--dense", action="store_true", help="the model's sdpa attention instead")
    parser.add_argument("--check", action="store_true", help="compare with one process")
    return parser.parse_args(argv)


def run(options: argparse.Namespace, device: torch.device) -> str:
    """What rank 0 says; every rank runs it."""
    from anchor_models.transformers import options as anchor_options

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if options.mode == "tensor":
        model, tokenizer = load_tensor_parallel(options.model, dtype)
        whole = load_pretrained(options.model, dtype, device)[0] if options.check else model
    else:
        model, tokenizer = load_pretrained(options.model, dtype, device)
        whole = model
    for loaded in (model, whole):
        loaded.set_attn_implementation("sdpa" if options.dense else "anchor_attention")
    ids, document = make_prompt(tokenizer, options.length, depths=(0.02,))
    tokens = torch.tensor([ids], device=device)
    with torch.no_grad(), anchor_options(theta=options.theta, when="always"):
        alone = whole(tokens, logits_to_keep=1).logits if options.check else None
        started = time.perf_counter()
        if options.mode == "tensor":
            logits = model(tokens, logits_to_keep=1).logits
        else:
            _, output = sequence_parallel_prefill(model, tokens, logits_to_keep=1)
            logits = output.logits.contiguous()
            dist.broadcast(logits, dist.get_world_size() - 1)  # the last rank has the last token
        next_token = int(logits[0, -1].argmax())
        seconds = time.perf_counter() - started
    lines = [
        f"{dist.get_world_size()} ranks, {options.mode} parallel, {len(ids)} tokens",
        f"next token {tokenizer.decode([next_token])!r}, the answer begins {document.answer[0]!r}",
        f"{seconds:.2f} s",
    ]
    if alone is not None:
        difference = float((logits - alone).abs().max())
        lines.append(f"largest difference of a logit to one process {difference:.1e}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    if "WORLD_SIZE" not in os.environ:
        print(
            "start it with torchrun --nproc-per-node 2 -m anchor_models.parallel", file=sys.stderr
        )
        return 2
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        said = run(options, device)
        if dist.get_rank() == 0:
            print(said)
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
