"""Synthetic queries, keys and values with stripes at known places."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
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


def planted_stripes(
    n: int,
    *,
    q_heads: int = 8,
    kv_heads: int = 2,
    head_dim: int = 64,
    density: float = 0.03,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Planted:
    """Noise, plus a common direction u in every query, in the sink and in a few random keys.

    q = 24 u + noise,   k = 7 u + noise at the sink and the planted positions, else noise

    so planted keys score near 24·7 / sqrt(D) = 21 (D = 64) and all others near 0 ± 3: a threshold
    of θ = 12 below the sink's score takes the planted keys and leaves the rest. The noise is
    standard normal, and u's part is removed from it, which keeps the two apart at any length.

    Args:
        n: N, number of tokens, at least 1.
        q_heads, kv_heads, head_dim: Hq, Hkv (a divisor of Hq), D.
        density: share of all keys that is planted, in [0, 1]; they are the same for all heads.
        seed: everything drawn follows from it, per device type.
        dtype, device: of q, k and v.

    Returns:
        The tensors and the planted positions.

    Raises:
        ValueError: `density` is outside [0, 1].
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density must be in [0, 1], got {density}")
    random = torch.Generator(device).manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device)

    u = torch.nn.functional.normalize(noise(head_dim), dim=0)
    positions = torch.randperm(n, generator=random, device=device)[: round(density * n)]
    heavy = torch.zeros(n, 1, device=device)
    heavy[positions] = 1
    heavy[0] = 1

    def without_u(x: Tensor) -> Tensor:
        return x - (x @ u).unsqueeze(-1) * u

    # 21 is reached at any head dimension: the scale 1/sqrt(D) is made up for.
    strength = (head_dim / 64) ** 0.5
    q = without_u(noise(1, q_heads, n, head_dim)) + 24 * u
    k = without_u(noise(1, kv_heads, n, head_dim)) + 7 * strength * heavy * u
    v = noise(1, kv_heads, n, head_dim)
    return Planted(q.to(dtype), k.to(dtype), v.to(dtype), positions.sort().values)
