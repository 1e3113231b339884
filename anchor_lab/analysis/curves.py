"""Recall and density for every threshold at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.methods.stripes import row_anchor
from anchor_models.capture import Captured
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_inputs
from anchor_ref.measure import block_scores, causal_share
from anchor_ref.regions import causal_pairs, groups
from anchor_ref.stripes import pooled_difference

THETAS = tuple(float(theta) for theta in range(33))


@dataclass(frozen=True, eq=False)
class ThetaCurve:
    """What the difference test keeps at each threshold.

    Attributes:
        thetas: T thresholds, ascending, natural-log units.
        recall: of every row, `[T, B, Hq, Nq]`.
        density: of every head, `[T, B, Hq]` float64.
    """

    thetas: tuple[float, ...]
    recall: Float[Tensor, "T B Hq Nq"]
    density: Float[Tensor, "T B Hq"]


def theta_curve(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    config: AnchorConfig,
    thetas: Sequence[float] = THETAS,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
) -> ThetaCurve:
    """`measure.recall` and `measure.density` at many thresholds for the price of one.

    A key is kept from θ = min_t (ā_t − scale·<q̄_t, k_j>) on, so each key's mass is counted in the
    bin of the first threshold that keeps it.

    Args:
        q, k, scale, cu_seqlens: as in `identify_stripes`.
        config: block and group sizes; its own θ plays no part.
        thetas: thresholds, ascending.

    Returns:
        `ThetaCurve`, computed in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: see `inputs.check_inputs`; or `thetas` do not ascend.
    """
    scale = check_inputs(q, k, None, scale, cu_seqlens)
    if not thetas or list(thetas) != sorted(set(thetas)):
        raise ValueError(f"thetas must be ascending numbers, at least one, got {thetas}")
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(dtype), k.to(dtype)
    anchor = row_anchor(q, k, config, scale, cu_seqlens)
    steps = torch.tensor(thetas, dtype=dtype, device=q.device)
    n_bins = len(thetas) + 1  # the last holds what no threshold keeps
    layout = groups(config, q.shape[2], k.shape[2], cu_seqlens)
    recall = torch.empty(len(thetas), *q.shape[:3], dtype=dtype, device=q.device)
    kept = torch.zeros(len(thetas), *q.shape[:2], dtype=torch.float64, device=q.device)
    for group in layout:
        kept += group.always_pairs
        difference = pooled_difference(q, k, anchor, group, scale)
        # A NaN passes the test at every threshold.
        least = difference.nan_to_num(-torch.inf, torch.inf, -torch.inf).amin(2)  # [B, Hq, C]
        bins = torch.searchsorted(steps, least)
        one_hot = torch.nn.functional.one_hot(bins, n_bins).to(dtype)  # [B, Hq, C, T + 1]
        kept += len(group.sparse_rows) * one_hot.sum(2)[..., :-1].cumsum(-1).movedim(-1, 0)
        for rows, scores in block_scores(q, k, group, scale):
            mass = scores.softmax(-1)[..., group.candidate_columns] @ one_hot  # [B, Hq, b, T + 1]
            lost = mass.flip(-1).cumsum(-1).flip(-1)[..., 1:]
            lost[:, :, group.is_dense(torch.arange(rows.start, rows.stop, device=q.device))] = 0
            recall[:, :, :, rows] = (1 - lost).clamp(0, 1).movedim(-1, 0)
    return ThetaCurve(tuple(thetas), recall, causal_share(kept, layout))


@dataclass(frozen=True, eq=False)
class MeanCurves:
    """What each head keeps at each threshold, mean over rows, batch and texts; float64.

    Attributes:
        config: sizes; its own θ plays no part.
        thetas: T thresholds, ascending.
        recall: by layer `[T, Hq]`.
        density: by layer `[T, Hq]`.
    """

    config: AnchorConfig
    thetas: tuple[float, ...]
    recall: dict[int, Float[Tensor, "T Hq"]]
    density: dict[int, Float[Tensor, "T Hq"]]


def average_curves(
    captures: Iterable[Mapping[int, Captured]],
    config: AnchorConfig | None = None,
    thetas: Sequence[float] = THETAS,
) -> MeanCurves:
    """Look at each text once; `choose_thetas` then serves any target.

    Args:
        captures: of each text, by layer, what `capture.capture_qkv` returned.
        config: block and group sizes; None means `AnchorConfig()`.
        thetas: ascending.

    Raises:
        TypeError, ValueError: see `theta_curve`; there is no text, one is no longer than a group,
            or a layer computes another attention, see `Captured.causal`.
    """
    config = AnchorConfig() if config is None else config
    sums: dict[int, list] = {}  # recall over rows, kept pairs, rows, pairs
    for captured in captures:
        for layer, x in captured.items():
            tokens = x.causal().q.shape[2]
            if tokens <= config.group_size:
                raise ValueError(
                    f"texts must be longer than a group, {config.group_size} tokens, or every θ "
                    f"keeps all of it; got one of {tokens}"
                )
            curve = theta_curve(x.q, x.k, config, thetas, x.scaling)
            rows = x.q.shape[0] * tokens
            pairs = x.q.shape[0] * causal_pairs(tokens)
            recall = curve.recall.double().mean((1, 3)) * rows
            found = (recall, curve.density.mean(1) * pairs, rows, pairs)
            sums[layer] = [a + b for a, b in zip(sums.get(layer, [0] * 4), found, strict=True)]
    if not sums:
        raise ValueError("texts must hold at least one captured layer, got none")
    return MeanCurves(
        replace(config, theta=AnchorConfig().theta),
        tuple(map(float, thetas)),
        {layer: recall / rows for layer, (recall, _, rows, _) in sums.items()},
        {layer: kept / pairs for layer, (_, kept, _, pairs) in sums.items()},
    )
