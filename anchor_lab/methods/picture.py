"""A method's mask on a few tokens, in letters.

python -m anchor_lab.methods            what there is, each in a sentence
python -m anchor_lab.methods MoBA       its sentence, its published claim and its mask
"""

import inspect

import torch

from anchor_lab.methods.method import Method
from anchor_lab.methods.triangle_mix import TriangleMix

TOKENS = 32
KEPT, DROPPED, LATER = "█", "·", " "


def picture(method: Method, tokens: int = TOKENS, seed: int = 0) -> str:
    """The keys that each query of a made-up prompt keeps: a line a query, a letter a key.

    Args:
        method: with sizes that leave something out of so few tokens, such as its `small()`.
        tokens: N.
        seed: of the queries and keys, of one head of width 8; some keys are heavy.
    """
    random = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 1, tokens, 8, generator=random) for _ in range(2))
    q[..., 0], k[..., torch.randperm(tokens, generator=random)[: tokens // 8], 0] = 2.0, 4.0
    mask = method.select(q, k).to_mask()[0, 0].tolist()
    return "\n".join(
        "".join(KEPT if kept else DROPPED for kept in row[: i + 1]) + LATER * (tokens - i - 1)
        for i, row in enumerate(mask)
    )


def sentence(kind: type) -> str:
    """How a method chooses: the first sentence of its docstring."""
    return " ".join(inspect.getdoc(kind).split("\n\n")[0].split())


def describe(kind: type[Method | TriangleMix]) -> str:
    """Sentence, claim, and the mask of `small()`, in a deep layer where layers differ."""
    small = kind.small()
    claim = f"Claim: {kind.claim}\n" if kind.claim else ""
    drawn = small if isinstance(small, Method) else small.deep
    return f"{kind.__name__}: {sentence(kind)}\n{claim}{small}\n{picture(drawn)}"
