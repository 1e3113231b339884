"""Synthetic queries, keys and values with stripes at known places."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Parts of the scores, in natural-log units.
HEAVY = 21.0  # of the sink and the planted keys, for every query
LOCAL = 3.0  # of a query with its own key; fades over about LENGTH tokens
LENGTH = 16.0
# Queries get a quarter of the keys' noise. θ = 12 then tells heavy keys from others in each single
# row, also where a ragged last block leaves no other queries to average with.
QUERY_NOISE = 0.25


@dataclass(frozen=True, eq=False)
class Planted:
    """Inputs whose heavy keys are known.

    Attributes:
        q: `[1, Hq, N, D]`.
        k, v: `[1, Hkv, N, D]`.
        positions: the heavy keys besides the sink at 0, ascending, `[stripes]` int64.
    """

    q: Float[Tensor, "1 Hq N D"]
    k: Float[Tensor, "1 Hkv N D"]
    v: Float[Tensor, "1 Hkv N D"]
    positions: Int[Tensor, "stripes"]


@torch.no_grad()
def planted_stripes(
    n: int,
    *,
    q_heads: int = 8,
    kv_heads: int = 2,
    head_dim: int = 64,
    density: float = 0.03,
    together: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Planted:
    """Scores made of three parts: a sink and stripes, a local window, and noise.

    s_ij = 21 [j = 0 or j planted] + 3 r(i − j) + noise,   r(0) = 1,  |r| <= 1

    Each part has dimensions of its own. The first one holds a constant in every query and, in the
    heavy keys alone, what makes the product 21. Up to half of the others hold pairs (cos ωt,
    sin ωt) of the token's position t, in queries and keys alike: their products add up to
    cos ω(i − j), and over frequencies ω spread like a normal distribution to a bump about 16
    tokens wide. The rest is normal noise, whose products deviate by 0.25 at most.

    The row anchor is about 21. Planted keys lie at most a few units below it, all others 18 before
    noise: at θ = 12 AnchorAttention selects exactly the planted candidates.

    Args:
        n: N, number of tokens, at least 1.
        q_heads, kv_heads: Hq and Hkv, Hq a multiple of Hkv; all heads share the planted keys.
        head_dim: D, at least 1. Below 5 there is no local part.
        density: share of all keys that is planted, in [0, 1].
        together: planted keys come in runs of so many, in 1..N, that begin at its multiples. The
            sink's own run, and a last one that is not whole, are never planted.
        seed: everything drawn follows from it. The positions are the same on every device and for
            every other argument but n, `density` and `together`; the noise depends on the type of
            device.
        dtype, device: of q, k and v.

    Returns:
        The tensors and the planted positions.

    Raises:
        ValueError: a number is out of its range, or Hq is not a multiple of Hkv.
        TypeError: `dtype` is not a floating-point dtype.
    """
    _check(n, q_heads, kv_heads, head_dim, density, together, dtype)
    places = torch.Generator().manual_seed(seed)
    order = torch.randperm(n // together - 1, generator=places) + 1  # never the sink's
    runs = order[: round(density * n / together)].sort().values * together
    positions = (runs[:, None] + torch.arange(together)).flatten().to(device)

    common = (HEAVY**2 * head_dim) ** 0.25  # common² / sqrt(D) = HEAVY
    heavy = torch.zeros(n, device=device)
    heavy[positions] = common
    heavy[0] = common
    local = _local_features(n, head_dim).to(device)

    random = torch.Generator(device).manual_seed(seed)

    def noise(width: int) -> Tensor:
        return torch.randn(n, width, generator=random, device=device)

    def heads(count: int, first: Tensor | float, deviation: float) -> Tensor:
        x = torch.empty(1, count, n, head_dim, dtype=dtype, device=device)
        rest = 1 + local.shape[1]
        x[..., 0] = first
        x[..., 1:rest] = local
        for head in range(count):  # one at a time: the float32 draws stay small beside the result
            x[0, head, :, rest:] = deviation * noise(head_dim - rest)
        return x

    q, k = heads(q_heads, common, QUERY_NOISE), heads(kv_heads, heavy, 1.0)
    v = torch.empty_like(k)
    for head in range(kv_heads):
        v[0, head] = noise(head_dim)
    return Planted(q, k, v, positions)


def _local_features(n: int, head_dim: int) -> Float[Tensor, "N F"]:
    """(cos ωt, sin ωt) for each frequency, such that <f_i, f_j> / sqrt(D) = LOCAL · r(i − j)."""
    pairs = (head_dim - 1) // 4
    # The middles of equal shares of a normal distribution with deviation 1 / LENGTH.
    share = (torch.arange(pairs, dtype=torch.float64) + 0.5) / max(pairs, 1)
    frequency = torch.special.ndtri((1 + share) / 2) / LENGTH
    # float64: an angle near 10⁴ would lose its last digits in float32.
    angle = torch.arange(n, dtype=torch.float64).unsqueeze(1) * frequency  # [N, pairs]
    features = torch.cat([angle.cos(), angle.sin()], 1)
    return (features * (LOCAL * head_dim**0.5 / max(pairs, 1)) ** 0.5).float()


def _check(n, q_heads, kv_heads, head_dim, density, together, dtype) -> None:
    sizes = {"n": n, "q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if q_heads % kv_heads:
        raise ValueError(f"q_heads must be a multiple of kv_heads {kv_heads}, got {q_heads}")
    if not 0 <= density <= 1:
        raise ValueError(f"density must be in [0, 1], got {density}")
    if not 1 <= together <= n:
        raise ValueError(f"together must be in 1..{n}, got {together}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
