"""Prompts on more than one GPU: heads split (tensor parallel) or tokens split (sequence parallel).

ulysses.py    attention whose tokens lie on many ranks: exchange to heads, attend, exchange back
prefill.py    a transformers model with a share of the prompt, or of each weight
cost.py       memory and communication on paper
__main__.py   an example to run under torchrun

Stripes are chosen head by head and from all tokens, so in both ways it is heads that are split
while attention runs.
"""

from anchor_models.parallel.prefill import load_tensor_parallel, sequence_parallel_prefill
from anchor_models.parallel.ulysses import shard_rows, ulysses, ulysses_attention

__all__ = [
    "load_tensor_parallel",
    "sequence_parallel_prefill",
    "shard_rows",
    "ulysses",
    "ulysses_attention",
]
