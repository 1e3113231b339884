"""A certificate: what can the keys that were dropped weigh at most?

For less than their scores would cost. A row is promised a recall that it has at least, whatever
the dropped keys are.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_inputs, check_plan
from anchor_ref.measure import block_scores, causal_share
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups

RIDGE = 1e-2  # of the mean variance: no direction is stretched so far that rounding shows
SAMPLE = 8  # every eighth vector is enough to choose coordinates: any choice gives a true bound
ROWS_AT_ONCE = 256  # a row of the bound is as long as the list of dropped keys


def certify(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    stripes: StripePlan,
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    rank: int = 16,
    pool: int = 32,
) -> Float[Tensor, "B Hq Nq"]:
    """A recall that each row has at least, from fewer products than its dropped scores take.

    Neighbouring queries have a mean q̄, neighbouring keys a mean k̄; with δ = q − q̄, κ = k − k̄

        s_ij = <q̄, k_j> + <δ_i, k̄> + <δ_i, κ_j>
        <δ_i, κ_j> <= Σ_{u <= rank} δ_iu κ_ju + ‖rest of δ_i‖ · ‖rest of κ_j‖
        recall_i >= K_i / (K_i + Σ_{j dropped} exp(bound_ij))

    in coordinates that leave <δ, κ> as it is, chosen so that the first hold as much of it as any
    can (`_balanced`). K_i = Σ exp(s_ij) over the keys that are kept, which stage 3 has anyway. The
    first two terms are pooled; the bound is loose by the product of what two means leave over.
    Where the dropped keys are so few, or so far apart, that their scores cost less, they are
    scored, and the promise is the recall. (The scale goes into q.)

    Args:
        q, k, config, scale, cu_seqlens: as in `identify_stripes`; finite.
        stripes: the keys kept among the candidates.
        rank: coordinates multiplied out, 0 to D. 0 is what pooled quantities say; D is exact.
        pool: neighbours that share a mean, at least 1.

    Returns:
        Guaranteed recall in [0, 1], `[B, Hq, Nq]` float64; true up to rounding in float64.

    Raises:
        TypeError, ValueError: see `check_inputs` and `check_plan`; q or k is not finite; or
            `rank` or `pool` is outside its range.
    """
    scale = check_inputs(q, k, None, scale, cu_seqlens)
    _check_effort(rank, pool, q.shape[3])
    for name, x in (("q", q), ("k", k)):
        if not x.isfinite().all():
            raise ValueError(f"{name} must be finite to be certified, got inf or NaN in it")
    layout = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    check_plan(stripes, [group.candidates for group in layout], q)
    q, k = q.double() * scale, k.double()
    found = torch.empty(q.shape[:3], dtype=torch.float64, device=q.device)
    for g, group in enumerate(layout):
        dropped = ~stripes.kept(g, group.candidates)  # [B, Hq, C]
        for rows, scores in block_scores(q, k, group, 1.0):
            candidates = scores[..., group.candidate_columns]
            candidates.masked_fill_(dropped.unsqueeze(2), -torch.inf)
            found[:, :, rows] = scores.logsumexp(-1)  # ln K_i
        found[:, :, group.tail.start : group.tail.stop] = torch.inf  # certain: nothing is lost
        if not group.sparse_rows:
            continue
        rows = slice(group.rows.start, group.tail.start)
        for (b, h), place in _places(dropped):
            k_dropped = k[b, h * k.shape[1] // q.shape[1], place + group.candidates.start]
            found[b, h, rows] -= _log_lost(q[b, h, rows], k_dropped, place, rank, pool)
    return found.sigmoid_()


def certificate_cost(
    stripes: StripePlan,
    config: AnchorConfig,
    n_queries: int,
    n_keys: int,
    dim: int,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    rank: int = 16,
    pool: int = 32,
) -> Float[Tensor, "B Hq"]:
    """Multiplications to certify, D of them a pair, x 1/2, as a share of all causal pairs.

    The unit of `measure.identification_cost`. With rank = D it is the cost of all dropped scores.
    Every k̄ counts, also one of a single dropped key. Exponentials are not in it: each dropped pair
    takes one at any rank.

    Args:
        stripes, config, n_queries, n_keys, cu_seqlens: as in `measure.density`.
        dim: D.
        rank, pool: as in `certify`.
    """
    _check_effort(rank, pool, dim)
    layout = groups(config, n_queries, n_keys, cu_seqlens)
    check_plan(stripes, [group.candidates for group in layout])
    pairs = torch.zeros(stripes.counts.shape[:2], dtype=torch.float64)
    for g, group in enumerate(layout):
        for (b, h), place in _places(~stripes.kept(g, group.candidates)):
            pairs[b, h] += _pairs(len(group.sparse_rows), place, dim, rank, pool)
    return causal_share(pairs / 2, layout)


def _places(dropped: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """((b, h), places of the dropped keys among the candidates) of every batch entry and head."""
    for b, heads in enumerate(dropped):
        for h, of_head in enumerate(heads):
            yield (b, h), of_head.nonzero().flatten()


def _pairs(rows: int, place: Tensor, dim: int, rank: int, pool: int) -> float:
    """Products of D multiplications for one head and group: the bound's, or all scores'."""
    keys, key_means = len(place), len((place // pool).unique())
    pooled = -(-rows // pool) * keys + rows * key_means
    coordinates = (1 + 1 / SAMPLE) * dim * (rows + keys)
    return float(min(rows * keys, rows * keys * rank / dim + pooled + coordinates))


def _log_lost(q: Tensor, k: Tensor, place: Tensor, rank: int, pool: int) -> Tensor:
    """At least log Σ_j exp(<q_i, k_j>), `[S]`; `place`, among the candidates, tells neighbours."""
    (rows, dim), keys = q.shape, len(k)
    if _pairs(rows, place, dim, rank, pool) >= rows * keys:
        return torch.cat([(part @ k.T).logsumexp(-1) for part in q.split(ROWS_AT_ONCE)])
    q_mean, q_owner = _means(q, torch.arange(rows, device=q.device) // pool)
    k_mean, k_owner = _means(k, place // pool)
    spread, k_spread = q - q_mean[q_owner], k - k_mean[k_owner]  # δ, κ
    to_q, to_k = _balanced(spread[::SAMPLE], k_spread[::SAMPLE])
    first, rest = (spread @ to_q).tensor_split([rank], -1)
    k_first, k_rest = (k_spread @ to_k).tensor_split([rank], -1)
    radius, k_radius = rest.norm(dim=-1), k_rest.norm(dim=-1)
    found = []
    for part in torch.arange(rows, device=q.device).split(ROWS_AT_ONCE):
        bound = first[part] @ k_first.T + radius[part, None] * k_radius  # [rows, keys]
        bound += (q_mean @ k.T)[q_owner[part]] + (spread[part] @ k_mean.T)[:, k_owner]
        found.append(bound.logsumexp(-1))
    return torch.cat(found)


def _balanced(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices P, R `[D, D]` with <qP, kR> = <q, k>: both second moments become one diagonal.

    Its entries fall, and no other coordinates of this kind keep as much of the product's second
    moment in the first few (balanced truncation: Moore, 1981).
    """
    q_root, k_root = (torch.linalg.cholesky(_second_moment(x)) for x in (q, k))
    left, size, right = torch.linalg.svd(q_root.T @ k_root)
    q_axes = torch.linalg.solve_triangular(q_root.T, left, upper=True)
    k_axes = torch.linalg.solve_triangular(k_root.T, right.T, upper=True)
    return q_axes * size.sqrt(), k_axes * size.sqrt()


def _second_moment(x: Tensor) -> Tensor:
    moment = x.T @ x / len(x)
    mean = moment.diagonal().mean()
    ridge = RIDGE * torch.where(mean > 0, mean, 1.0)
    return moment + ridge * torch.eye(len(moment), dtype=x.dtype, device=x.device)


def _means(x: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each block's vectors, `[blocks, D]`, and for each vector its block's row."""
    _, owner, size = block.unique(return_inverse=True, return_counts=True)
    return x.new_zeros(len(size), x.shape[1]).index_add_(0, owner, x) / size[:, None], owner


def _check_effort(rank: int, pool: int, dim: int) -> None:
    if not isinstance(rank, int) or not 0 <= rank <= dim:
        raise ValueError(f"rank must be an integer in 0..D = {dim}, got {rank!r}")
    if not isinstance(pool, int) or pool < 1:
        raise ValueError(f"pool must be an integer of at least 1, got {pool!r}")
