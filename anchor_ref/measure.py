"""What a selection keeps and what it costs: one definition for every method.

    recall       of a row: dense softmax mass on the keys kept
    beyond       the same over the rows from the second group on: the first keeps everything
    density      kept causal pairs / all causal pairs, everything kept counted
    floor        the density that is left at θ = −∞: initial region, windows, tail
    executed     the same with the pairs that whole tiles multiply
    cost         of choosing: pairs scored, x 1/2 where only q·k is formed, / all causal pairs
    error        ‖out − dense‖ / ‖dense‖

All are streamed over query blocks: no N x N matrix is ever stored.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anchor_ref.anchor import compute_anchor
from anchor_ref.attention import anchor_attention
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import causal_scores
from anchor_ref.inputs import (
    INPUT_DTYPES,
    check_compute_dtype,
    check_inputs,
    check_plan,
    check_tensor,
)
from anchor_ref.online_softmax import normalise
from anchor_ref.plan import AnchorTrace, StripePlan
from anchor_ref.regions import Group, groups


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a selection keeps, costs and loses on one layer.

    Attributes:
        recall: of every row, `[B, Hq, Nq]`, in [0, 1].
        density: of every head, `[B, Hq]`, in (0, 1].
        executed_density: `[B, Hq]`; above `density` where tiles are computed whole.
        identification_cost: `[B, Hq]`, half of the pairs scored to choose, as a share of all
            causal pairs.
        output_error: `[B, Hq]`, relative L2 distance to dense attention, rounding of the output to
            q's dtype included.

    All but `recall` are float64.
    """

    recall: Float[Tensor, "B Hq Nq"]
    density: Float[Tensor, "B Hq"]
    executed_density: Float[Tensor, "B Hq"]
    identification_cost: Float[Tensor, "B Hq"]
    output_error: Float[Tensor, "B Hq"]

    def recall_summary(
        self, rows: Bool[Tensor, "Nq"] | None = None
    ) -> dict[str, Float[Tensor, "B Hq"]]:
        """Recall over rows of each head: "mean", "p10" (10th percentile) and "min".

        Args:
            rows: which to look at, such as `rows_beyond`; None means all.

        Raises:
            ValueError: `rows` names none.
        """
        found = self.recall
        if rows is not None:
            if not rows.any():
                raise ValueError(
                    "rows must name at least one row, got none: no row lies beyond the first "
                    "group of a text that is no longer than a group"
                )
            found = found[..., rows.to(found.device)]
        return {
            "mean": found.mean(-1),
            "p10": found.quantile(0.1, dim=-1),
            "min": found.amin(-1),
        }


@dataclass(frozen=True, eq=False)
class Measurement(Evaluation):
    """An `Evaluation` of one call of AnchorAttention, with what the call saw and took.

    Attributes:
        seconds: wall time of the AnchorAttention call.
        trace: anchors and stripes.
    """

    seconds: float
    trace: AnchorTrace


def measure(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    v: Float[Tensor, "B Hkv Nk D"],
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    compute_dtype: torch.dtype | None = None,
    theta_by_head: Sequence[float] | None = None,
) -> Measurement:
    """Run AnchorAttention and dense attention on the same tensors and compare them.

    Args:
        q, k, v, config, scale, cu_seqlens, compute_dtype: as in `anchor_attention`.
        theta_by_head: a threshold for each query head, in place of `config.theta`.

    Returns:
        A `Measurement`. Costs as much time as dense attention, memory grows linearly in Nk.

    Raises:
        TypeError, ValueError: as in `anchor_attention`.
    """
    check_inputs(q, k, v, scale, cu_seqlens)
    more = {"scale": scale, "cu_seqlens": cu_seqlens, "compute_dtype": compute_dtype}
    _finish_queued_work(q)
    started = time.perf_counter()
    out, trace = anchor_attention(
        q, k, v, config, return_trace=True, theta_by_head=theta_by_head, **more
    )
    _finish_queued_work(q)
    seconds = time.perf_counter() - started
    sizes = (config, q.shape[2], k.shape[2], cu_seqlens)
    return Measurement(
        recall=recall(q, k, trace.stripes, config, **more),
        density=density(trace.stripes, *sizes),
        executed_density=executed_density(trace.stripes, *sizes),
        identification_cost=identification_cost(*sizes).expand(q.shape[:2]),
        output_error=output_error(out, dense_attention(q, k, v, **more)),
        seconds=seconds,
        trace=trace,
    )


def dense_attention(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    v: Float[Tensor, "B Hkv Nk D"],
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    compute_dtype: torch.dtype | None = None,
) -> Float[Tensor, "B Hq Nq D"]:
    """Causal attention over all keys: stage 1 with a window that reaches back to the first key.

    Args:
        q, k, v, scale, cu_seqlens, compute_dtype: as in `compute_anchor`.

    Returns:
        `[B, Hq, Nq, D]` in the compute dtype, not rounded back to q's.
    """
    check_inputs(q, k, v, scale, cu_seqlens)
    block = AnchorConfig().block_size
    everything = AnchorConfig(init_blocks=0, window_blocks=ceil(k.shape[2] / block))
    state = compute_anchor(q, k, v, everything, scale, cu_seqlens, compute_dtype=compute_dtype)
    return normalise(state)


def recall(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    stripes: StripePlan,
    config: AnchorConfig,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    compute_dtype: torch.dtype | None = None,
) -> Float[Tensor, "B Hq Nq"]:
    """Dense softmax mass of each row on initial region, window and stripes; 1 in the tail.

    Args:
        q, k, config, scale, cu_seqlens: as in `identify_stripes`.
        stripes: the keys kept among the candidates.
        compute_dtype: as in `compute_anchor`.

    Returns:
        Recall in [0, 1], `[B, Hq, Nq]`, in the compute dtype.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`, `inputs.check_compute_dtype` and
            `inputs.check_plan`.
    """
    scale = check_inputs(q, k, None, scale, cu_seqlens)
    dtype = check_compute_dtype(compute_dtype, q.dtype)
    layout = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    check_plan(stripes, [group.candidates for group in layout], q)
    found = torch.empty(q.shape[:3], dtype=dtype, device=q.device)
    k = k.to(dtype)
    for g, group in enumerate(layout):
        kept = stripes.kept(g, group.candidates).unsqueeze(2)  # [B, Hq, 1, C]
        for rows, scores in block_scores(q, k, group, scale):
            # Of the other keys none is dropped.
            weights = scores.softmax(-1)[..., group.candidate_columns]
            dense = group.is_dense(torch.arange(rows.start, rows.stop, device=q.device))
            found[:, :, rows] = kept_mass(weights, kept | dense[:, None])
    return found


def rows_beyond(
    config: AnchorConfig,
    n_queries: int,
    n_keys: int,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> Bool[Tensor, "Nq"]:
    """Which rows lie in the second group of their sequence or later, `[Nq]`, on the CPU.

    The first group keeps all it sees, whatever θ: its recall is 1 by construction. Of a sequence
    of two groups it is half of all rows.

    Raises:
        TypeError, ValueError: see `regions.groups`.
    """
    found = torch.zeros(n_queries, dtype=torch.bool)
    for group in groups(config, n_queries, n_keys, cu_seqlens):
        first_key = group.rows.start + group.shift - group.init.start
        found[group.rows.start : group.rows.stop] = first_key >= config.group_size
    return found


def density_floor(
    config: AnchorConfig,
    n_queries: int,
    n_keys: int,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> Float[Tensor, ""]:
    """The density with no stripe at all, θ = −∞: no threshold keeps less.

    Returns:
        Share of the causal pairs, a float64 scalar, the same for each head.

    Raises:
        TypeError, ValueError: see `regions.groups`.
    """
    layout = groups(config, n_queries, n_keys, cu_seqlens)
    always = sum(group.always_pairs for group in layout)
    return causal_share(torch.tensor(always, dtype=torch.float64), layout)


def block_scores(
    q: Float[Tensor, "B Hq Nq D"], k: Float[Tensor, "B Hkv Nk D"], group: Group, scale: float
) -> Iterator[tuple[slice, Float[Tensor, "B Hq b M"]]]:
    """(rows, scores) of each query block of a group, over all keys up to the block's last.

    Args:
        q: queries.
        k: keys, in the dtype to compute in.
        group: one of `regions.groups`.
        scale: factor of q·k.

    Yields:
        The block's rows of q, and s_ij, -inf for a later key. Columns are counted from the first
        key of the initial region, see `Group.candidate_columns`.
    """
    for rows in group.blocks:
        block = slice(rows.start, rows.stop)
        keys = k[:, :, group.init.start : rows.stop + group.shift]
        yield block, causal_scores(q[:, :, block].to(k.dtype), keys, scale)


def kept_mass(
    weights: Float[Tensor, "*batch M"], kept: Bool[Tensor, "*#batch M"]
) -> Float[Tensor, "*batch"]:
    """Recall of a row: 1 − Σ_{j dropped} softmax(s)_j.

    What is lost is summed up, not what is found: near 1 that keeps more digits.

    Args:
        weights: dense softmax weights; keys that nobody drops may be left out.
        kept: which of these keys are kept.
    """
    # A product, so that a row of NaN stays one; rounding may carry 1 − lost past an end by an ulp.
    return (1 - (weights * ~kept).sum(-1)).clamp_(0, 1)


def density(
    stripes: StripePlan,
    config: AnchorConfig,
    n_queries: int,
    n_keys: int,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> Float[Tensor, "B Hq"]:
    """Share of the causal pairs that is kept, for each head: float64, `[B, Hq]`, on the CPU.

    Raises:
        TypeError, ValueError: see `regions.groups` and `inputs.check_plan`.
    """
    layout = groups(config, n_queries, n_keys, cu_seqlens)
    check_plan(stripes, [group.candidates for group in layout])
    always = sum(group.always_pairs for group in layout)
    return causal_share(always + stripe_pairs(stripes, layout).double(), layout)


def stripe_pairs(stripes: StripePlan, layout: Sequence[Group]) -> Int[Tensor, "B Hq"]:
    """Pairs of a query before the tail and a stripe of its group, for each head: int64, CPU."""
    rows = torch.tensor([len(group.sparse_rows) for group in layout])
    return (stripes.counts.cpu() * rows).sum(-1)


def causal_share(
    pairs: Float[Tensor, "*heads"], layout: Sequence[Group]
) -> Float[Tensor, "*heads"]:
    """A number of pairs as a share of all causal pairs: the unit of every cost."""
    return pairs / sum(group.causal_pairs for group in layout)


def executed_density(
    stripes: StripePlan,
    config: AnchorConfig,
    n_queries: int,
    n_keys: int,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    gather: int = 64,
) -> Float[Tensor, "B Hq"]:
    """Share of the causal pairs that is multiplied when only whole tiles are.

    Args:
        stripes, config, n_queries, n_keys, cu_seqlens: as in `density`.
        gather: stripes that stage 3 loads at a time. Other tiles hold `block_size` keys, and
            every tile `block_size` queries.

    Returns:
        float64, `[B, Hq]`, on the CPU.

    Raises:
        TypeError, ValueError: see `regions.groups` and `inputs.check_plan`; or `gather` is below
            1.
    """
    if gather < 1:
        raise ValueError(f"gather must be at least 1, got {gather}")
    block = config.block_size
    layout = groups(config, n_queries, n_keys, cu_seqlens)
    check_plan(stripes, [group.candidates for group in layout])
    tile_rows = torch.tensor([len(group.blocks) * block for group in layout])
    always = 0
    for group in layout:
        for rows in group.blocks:
            window = rows.stop + group.shift - group.window_start
            # The initial region is made of whole blocks already.
            always += block * (len(group.init) + _whole(window, block))
        # Rows of the tail go through stage 3 like all others, and then see every candidate.
        always += _whole(len(group.tail), block) * _whole(len(group.candidates), block)
    gathered = (stripes.counts.cpu().double() / gather).ceil() * gather
    return causal_share(always + (gathered * tile_rows).sum(-1), layout)


def identification_cost(
    config: AnchorConfig,
    n_queries: int,
    n_keys: int,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> Float[Tensor, ""]:
    """Pairs of pooled queries and candidates scored in stage 2, x 1/2: only q·k is formed.

    So are those of outlier rows and candidates, where there are such rows. To find the rows costs
    one product a row, less than 1/N of the pairs, and is not counted. Stage 1 counts as execution,
    since its result is part of the output.

    Returns:
        Share of the causal pairs, a float64 scalar, the same for each head.
    """
    layout = groups(config, n_queries, n_keys, cu_seqlens)
    scored = sum(group.pooled_pairs + group.outlier_pairs(config.outliers) for group in layout)
    return causal_share(torch.tensor(scored / 2, dtype=torch.float64), layout)


def output_error(
    out: Float[Tensor, "B Hq N D"], dense: Float[Tensor, "B Hq N D"]
) -> Float[Tensor, "B Hq"]:
    """Relative distance ‖out − dense‖ / ‖dense‖ over all rows of a head.

    Args:
        out: what is judged, in the dtype that its caller gets: its rounding counts.
        dense: dense attention, float32 or better.

    Returns:
        float64, `[B, Hq]`. For a dense output of zeros: 0 when `out` is zero too, else +inf.

    Raises:
        TypeError, ValueError: `out` does not have dense's shape and device.
    """
    check_tensor("out", out, dense.shape, INPUT_DTYPES, dense.device)
    dense = dense.double()
    distance = (out.double() - dense).norm(dim=(-2, -1))
    return (distance / dense.norm(dim=(-2, -1))).masked_fill(distance == 0, 0.0)


def _finish_queued_work(q: Tensor) -> None:
    if q.is_cuda:
        torch.cuda.synchronize(q.device)


def _whole(keys: int, tile: int) -> int:
    return ceil(keys / tile) * tile
