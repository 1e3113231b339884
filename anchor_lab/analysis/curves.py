"""Recall and density for every threshold at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchor_lab.methods.stripes import row_anchor
from anchor_models.capture import Captured
from anchor_ref.config import AnchorConfig, at_lowered_anchors
from anchor_ref.inputs import check_inputs
from anchor_ref.measure import block_scores, causal_share, rows_beyond
from anchor_ref.outliers import outlier_difference
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
        shares: of the candidates of each group which share is kept, `[T, B, Hq, G]` float64; 0
            where a group has no candidates. None where nobody looked.
    """

    thetas: tuple[float, ...]
    recall: Float[Tensor, "T B Hq Nq"]
    density: Float[Tensor, "T B Hq"]
    shares: Float[Tensor, "T B Hq G"] | None = None


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
    bin of the first threshold that keeps it. Outlier rows, an extension, join the minimum.

    Args:
        q, k, scale, cu_seqlens: as in `identify_stripes`.
        config: block and group sizes, and how many outlier rows; its own θ plays no part, and
            these rows have none of their own.
        thetas: thresholds, ascending.

    Returns:
        `ThetaCurve`, computed in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: see `inputs.check_inputs` and `config.at_lowered_anchors`; or
            `thetas` do not ascend.
    """
    scale = check_inputs(q, k, None, scale, cu_seqlens)
    config = at_lowered_anchors(config)
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
    shares = []
    for group in layout:
        kept += group.always_pairs
        difference = pooled_difference(q, k, anchor, group, scale)
        if config.outliers:
            own = outlier_difference(q, k, anchor, group, scale, config)
            difference = torch.cat([difference, own], 2)
        # A NaN passes the test at every threshold.
        least = difference.nan_to_num(-torch.inf, torch.inf, -torch.inf).amin(2)  # [B, Hq, C]
        bins = torch.searchsorted(steps, least)
        one_hot = torch.nn.functional.one_hot(bins, n_bins).to(dtype)  # [B, Hq, C, T + 1]
        stripes = one_hot.sum(2)[..., :-1].cumsum(-1).movedim(-1, 0).double()  # [T, B, Hq]
        kept += len(group.sparse_rows) * stripes
        shares.append(stripes / max(1, len(group.candidates)))
        for rows, scores in block_scores(q, k, group, scale):
            mass = scores.softmax(-1)[..., group.candidate_columns] @ one_hot  # [B, Hq, b, T + 1]
            lost = mass.flip(-1).cumsum(-1).flip(-1)[..., 1:]
            lost[:, :, group.is_dense(torch.arange(rows.start, rows.stop, device=q.device))] = 0
            recall[:, :, :, rows] = (1 - lost).clamp(0, 1).movedim(-1, 0)
    return ThetaCurve(tuple(thetas), recall, causal_share(kept, layout), torch.stack(shares, -1))


@dataclass(frozen=True, eq=False)
class LayerCurves:
    """What each head of a layer keeps at each threshold, over the rows beyond the first group.

    Without a tail: its rows, which see every key, would flatter a mean as the first group's do,
    and it changes no selection.

    Attributes:
        recall, p10, least: mean, 10th percentile and minimum over these rows and over prompts,
            `[T, Hq]` float64.
        density: of all causal pairs, those of the first group included, `[T, Hq]` float64.
        shares: `ThetaCurve.shares`, mean over heads and prompts, `[T, G]`.
        prompts, tokens: how many, and N.
    """

    recall: Float[Tensor, "T Hq"]
    p10: Float[Tensor, "T Hq"]
    least: Float[Tensor, "T Hq"]
    density: Float[Tensor, "T Hq"]
    shares: Float[Tensor, "T G"]
    prompts: int
    tokens: int


def layer_curves(
    captured: Captured,
    config: AnchorConfig,
    thetas: Sequence[float] = THETAS,
    device: torch.device | str = "cpu",
) -> LayerCurves:
    """The curves of a layer, one head of one prompt in memory at a time.

    Args:
        captured: of a layer.
        config: block and group sizes; its own θ and its tail play no part.
        thetas: ascending.
        device: to compute on.

    Raises:
        TypeError, ValueError: see `theta_curve`; the prompt is no longer than a group; or the
            layer computes another attention, see `Captured.causal`.
    """
    x, config = captured.causal(), replace(config, tail=0)
    prompts, heads, tokens, _ = x.q.shape
    if tokens <= config.group_size:
        raise ValueError(
            f"texts must be longer than a group, {config.group_size} tokens, or every θ "
            f"keeps all of it; got one of {tokens}"
        )
    found: dict[str, list] = {name: [] for name in ("recall", "p10", "least", "density")}
    shares = 0
    beyond = rows_beyond(config, tokens, tokens)
    for place in range(heads):
        of_head: dict[str, list] = {name: [] for name in found}
        for prompt in range(prompts):
            q, k = (
                tensor[prompt : prompt + 1, at : at + 1].to(device)
                for tensor, at in ((x.q, place), (x.k, place * x.k.shape[1] // heads))
            )
            curve = theta_curve(q, k, config, thetas, x.scaling)
            recall = curve.recall[:, 0, 0].double()[:, beyond.to(q.device)]  # [T, rows]
            of_head["recall"].append(recall.mean(-1))
            # quantile takes at most 2^24 numbers at once.
            of_head["p10"].append(torch.stack([row.quantile(0.1) for row in recall]))
            of_head["least"].append(recall.amin(-1))
            of_head["density"].append(curve.density[:, 0, 0])
            shares = shares + curve.shares[:, 0, 0] / (heads * prompts)
        for name, rows in of_head.items():
            found[name].append(torch.stack(rows).mean(0))
    tables = {name: torch.stack(rows, 1).cpu() for name, rows in found.items()}
    return LayerCurves(**tables, shares=shares.cpu(), prompts=prompts, tokens=tokens)


@dataclass(frozen=True, eq=False)
class MeanCurves:
    """What each head keeps at each threshold, mean over rows, batch and texts; float64.

    Attributes:
        config: sizes; its own θ plays no part, and its tail is not looked at.
        thetas: T thresholds, ascending.
        recall: by layer `[T, Hq]`, over the rows beyond the first group.
        density: by layer `[T, Hq]`, without a tail.
        lengths: tokens of the shortest and the longest text.
    """

    config: AnchorConfig
    thetas: tuple[float, ...]
    recall: dict[int, Float[Tensor, "T Hq"]]
    density: dict[int, Float[Tensor, "T Hq"]]
    lengths: tuple[int, int]


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
        TypeError, ValueError: see `layer_curves`; or there is no text.
    """
    config = AnchorConfig() if config is None else config
    found = (
        {layer: layer_curves(x, config, thetas) for layer, x in captured.items()}
        for captured in captures
    )
    return mean_over_texts(found, config, thetas)


def mean_over_texts(
    texts: Iterable[Mapping[int, LayerCurves]], config: AnchorConfig, thetas: Sequence[float]
) -> MeanCurves:
    """Recall weighted by rows beyond the first group, density by causal pairs.

    Args:
        texts: of each text, by layer.
        config, thetas: which they were measured with.

    Raises:
        ValueError: there is no text, or no layer.
    """
    sums: dict[int, list] = {}  # recall over rows, kept pairs, rows, pairs
    lengths = set()
    for text in texts:
        for layer, curves in text.items():
            lengths.add(curves.tokens)
            rows = curves.prompts * (curves.tokens - config.group_size)
            pairs = curves.prompts * causal_pairs(curves.tokens)
            found = (curves.recall * rows, curves.density * pairs, rows, pairs)
            sums[layer] = [a + b for a, b in zip(sums.get(layer, [0] * 4), found, strict=True)]
    if not sums:
        raise ValueError("texts must hold at least one captured layer, got none")
    return MeanCurves(
        replace(config, theta=AnchorConfig().theta),
        tuple(map(float, thetas)),
        {layer: recall / rows for layer, (recall, _, rows, _) in sums.items()},
        {layer: kept / pairs for layer, (_, kept, _, pairs) in sums.items()},
        (min(lengths), max(lengths)),
    )
