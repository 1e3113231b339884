"""Recall of prompts too long to look at every row: some rows, and how sure one may be."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_ref.config import AnchorConfig
from anchor_ref.heads import attention_scores
from anchor_ref.inputs import check_inputs, check_plan
from anchor_ref.measure import kept_mass
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups

ROWS_AT_ONCE = 32  # a row's scores are as long as the prompt


@dataclass(frozen=True, eq=False)
class SampledRecall:
    """Mean recall over all rows, estimated from some.

    Attributes:
        rows: the rows looked at, ascending, `[n]` int64.
        recall: of these rows, `[B, Hq, n]`.
        mean: their mean, `[B, Hq]`.
        low, high: interval that holds the mean over all rows with the confidence asked for, each
            head for itself, `[B, Hq]`.
    """

    rows: Int[Tensor, "n"]
    recall: Float[Tensor, "B Hq n"]
    mean: Float[Tensor, "B Hq"]
    low: Float[Tensor, "B Hq"]
    high: Float[Tensor, "B Hq"]


def sampled_recall(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    stripes: StripePlan,
    config: AnchorConfig,
    n_rows: int,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> SampledRecall:
    """`measure.recall` of rows drawn at random, and what they say about the mean of all.

    The interval is the empirical Bernstein bound (Maurer and Pontil, 2009): with x = ln(4 / δ),
    n rows and sample variance V the mean of all rows lies within

        sqrt(2 V x / n) + 7 x / (3 (n − 1))

    of that of the sample with probability 1 − δ, whatever the distribution in [0, 1]. Rows are
    drawn without replacement: a mean then strays no further (Hoeffding, 1963, theorem 4). That the
    bound with the sample's own variance carries over too is assumed, and its coverage tested.

    Args:
        q, k, stripes, config, scale, cu_seqlens: as in `measure.recall`.
        n_rows: rows to look at, 2 to Nq.
        confidence: 1 − δ, in (0, 1).
        seed: of the draw.

    Returns:
        `SampledRecall` in float32 (float64 for float64 inputs); mean and interval float64.

    Raises:
        TypeError, ValueError: see `inputs.check_inputs` and `inputs.check_plan`; or `n_rows` or
            `confidence` is outside its range.
    """
    scale = check_inputs(q, k, None, scale, cu_seqlens)
    if not isinstance(n_rows, int) or not 2 <= n_rows <= q.shape[2]:
        raise ValueError(f"n_rows must be an integer in 2..Nq = {q.shape[2]}, got {n_rows!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    layout = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    check_plan(stripes, [group.candidates for group in layout], q)
    random = torch.Generator().manual_seed(seed)
    rows = torch.randperm(q.shape[2], generator=random)[:n_rows].sort().values
    dtype = torch.promote_types(q.dtype, torch.float32)
    parts = []
    for g, group in enumerate(layout):
        inside = rows[(rows >= group.rows.start) & (rows < group.rows.stop)].to(q.device)
        if not len(inside):
            continue
        kept = stripes.kept(g, group.candidates).unsqueeze(2)  # [B, Hq, 1, C]
        keys = k[:, :, group.init.start : group.rows.stop + group.shift].to(dtype)
        position = torch.arange(keys.shape[2], device=q.device)
        for part in inside.split(ROWS_AT_ONCE):
            scores = attention_scores(q[:, :, part].to(dtype), keys, scale)
            own = part + group.shift - group.init.start
            scores.masked_fill_(position > own[:, None], -torch.inf)
            weights = scores.softmax(-1)[..., group.candidate_columns]
            parts.append(kept_mass(weights, kept | group.is_dense(part)[:, None]))
    recall = torch.cat(parts, -1)
    mean = recall.double().mean(-1)
    x = math.log(4 / (1 - confidence))
    spread = (2 * recall.double().var(-1) * x / n_rows).sqrt() + 7 * x / (3 * (n_rows - 1))
    low, high = (mean - spread).clamp(min=0), (mean + spread).clamp(max=1)
    return SampledRecall(rows, recall, mean, low, high)
