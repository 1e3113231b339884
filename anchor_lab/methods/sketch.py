"""What a method keeps of a few tokens, drawn in letters, with its rule and its authors' claim.

    python -m anchor_lab.methods.sketch                     all methods
    python -m anchor_lab.methods.sketch FlashPrefillV2      one of them

A row is a query, a column a key. The tokens are made up: the first key, one in the middle and each
query's nearest ones are heavy, the rest is noise.
"""

import argparse
import inspect
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anchor_lab.methods import METHODS, Method

KEPT, DROPPED = "#", "·"
TOKENS = 32


def sketch(method: Method, tokens: int = TOKENS, head: int = 0) -> str:
    """The pairs that a method keeps of `heavy_keys`, a line a query.

    Args:
        method: any configuration; `Method.small` has one for few tokens.
        tokens: N, at least 1.
        head: query head, 0 or 1; both read one key head.

    Returns:
        N lines: "#" for a kept key, "·" for a dropped one, nothing for later ones.

    Raises:
        ValueError: see `Selection.to_mask`.
    """
    mask = method.select(*heavy_keys(tokens)).to_mask()[0, head]
    return "\n".join(
        "".join(KEPT if kept else DROPPED for kept in row[: i + 1])
        for i, row in enumerate(mask.tolist())
    )


def heavy_keys(tokens: int) -> tuple[Float[Tensor, "1 2 N 8"], Float[Tensor, "1 1 N 8"]]:
    """Queries and keys with a heavy first key, another one third on, and heavy neighbours.

    Args:
        tokens: N, at least 1.

    Returns:
        (q, k) in float64, the same at each call.
    """
    random = torch.Generator().manual_seed(0)
    q, k = (
        0.3 * torch.randn(1, heads, tokens, 8, generator=random, dtype=torch.float64)
        for heads in (2, 1)
    )
    q[..., 0] += 3
    k[..., [0, tokens // 3], 0] += 7
    # Neighbours lie at a small angle; the last token looks the other way than the first.
    angle = torch.arange(tokens, dtype=torch.float64) * torch.pi / tokens
    wave = torch.stack([angle.cos(), angle.sin()], -1)
    q[..., 1:3] += 4 * wave
    k[..., 1:3] += 4 * wave
    return q, k


def rule(kind: type[Method]) -> str:
    """How a method chooses, in the one sentence that its docstring begins with."""
    return inspect.getdoc(kind).split("\n\n")[0].replace("\n", " ")


def main(argv: Sequence[str] | None = None) -> int:
    """Print methods; 0.

    Raises:
        SystemExit: from argparse, after --help and after a name that is none.
    """
    parser = argparse.ArgumentParser(prog="python -m anchor_lab.methods.sketch")
    parser.add_argument("methods", nargs="*", metavar="NAME", help="default: all")
    names = parser.parse_args(argv).methods or list(METHODS)
    if unknown := [name for name in names if name not in METHODS]:
        parser.error(f"NAME must be of {', '.join(METHODS)}, got {unknown[0]}")
    for name in names:
        method = METHODS[name].small()
        lines = [rule(METHODS[name]), f"Claim: {method.claim}" * bool(method.claim), repr(method)]
        print(f"{name}: " + "\n".join(filter(None, lines)), sketch(method), sep="\n", end="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
