"""Extensions of the choice of stripes, against loops over heads, groups, blocks and rows."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from anchor_lab.analysis.curves import theta_curve
from anchor_lab.experiments.compare.measure import label_configurations, sweeps
from anchor_lab.methods import (
    EXTENSIONS,
    METHODS,
    AnchorAttention,
    NearStripes,
    OutlierRows,
    PooledMaximum,
    SharedStripes,
    StripeBudget,
    TwoMeans,
    evaluate,
)
from anchor_lab.methods.outliers import BY
from anchor_ref import AnchorConfig
from anchor_ref.measure import measure
from anchor_ref.regions import causal_pairs, groups

N = 100  # groups of 24 rows in blocks of 8: the last block has 4
PLAIN = AnchorConfig(8, 3, theta=1.2, init_blocks=1)
ROWS = replace(PLAIN, outliers=2, outlier_theta=0.5)
CASES = (
    *(OutlierRows(ROWS, by=by) for by in BY),
    OutlierRows(replace(PLAIN, outliers=20)),
    OutlierRows(replace(PLAIN, theta=-math.inf, outliers=3, outlier_theta=0.7)),
    OutlierRows(PLAIN),
    OutlierRows(replace(PLAIN, outliers=1), thetas=(1.0, 0.5, 1.4, math.inf)),
    TwoMeans(PLAIN),
    TwoMeans(AnchorConfig(8, 2, theta=1.2, init_blocks=0, window_blocks=1)),
    StripeBudget(0.2, ROWS),
    StripeBudget(0.34, PLAIN),
    StripeBudget(0.0, ROWS),
    SharedStripes(ROWS),
    NearStripes(OutlierRows(ROWS, by="even"), 5),
    NearStripes(OutlierRows(PLAIN), 30),
    NearStripes(OutlierRows(PLAIN), 0),
)


def inputs(n=N, seed=0, q_heads=4, kv_heads=2, dim=8):
    random = torch.Generator().manual_seed(seed)
    shapes = ((q_heads, n), (kv_heads, n), (kv_heads, n))
    return tuple(
        torch.randn(1, heads, m, dim, generator=random, dtype=torch.float64) for heads, m in shapes
    )


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def asked(method, q, anchors, group, block):
    """The rows that a block asks, of one head."""
    mean, whole = q[list(block)].mean(0), q[list(group.rows)].mean(0)
    part = len(block) / method.config.outliers if method.config.outliers else 1
    middles = {block[int((at + 0.5) * part)] for at in range(method.config.outliers) if part >= 1}
    drawn = torch.rand(len(block), generator=torch.Generator().manual_seed(block.start)).tolist()
    strange = {
        "cosine": lambda i: -cosine(q[i], mean),
        "group": lambda i: -cosine(q[i], whole),
        "distance": lambda i: float((q[i] - mean).norm()),
        "anchor": lambda i: -anchors[i],
        "random": lambda i: drawn[i - block.start],
        "even": lambda i: i in middles,
    }[getattr(method, "by", "cosine")]
    return sorted(block, key=lambda i: (-strange(i), i))[: method.config.outliers]


def made_by(method, head, q, anchors, group, block):
    """(query, anchor, threshold) of each test that a block makes."""
    config = method.config
    theta, theta_2 = config.theta, config.row_theta
    if getattr(method, "thetas", None) is not None:
        theta = theta_2 = method.thetas[head]
    if isinstance(method, TwoMeans):
        mean = q[list(block)].mean(0)
        leader = min(block, key=lambda i: (cosine(q[i], mean), i))
        second = [i for i in block if cosine(q[i], q[leader]) > cosine(q[i], mean)]
        parts = [[i for i in block if i not in second], second]
        return [
            (q[part].mean(0), sum(anchors[i] for i in part) / len(part), theta)
            for part in parts
            if part
        ]
    rows = list(block)
    mean = (q[rows].mean(0), sum(anchors[i] for i in rows) / len(rows), theta)
    own = [(q[i], anchors[i], theta_2) for i in asked(method, q, anchors, group, block)]
    return [mean, *own]


def slow(method, q, k):
    """Stripes of each head and group, from their definition."""
    n, repeat, config = q.shape[2], q.shape[1] // k.shape[1], method.config
    if isinstance(method, NearStripes):
        found = slow(method.choice, q, k)
        for g, group in enumerate(groups(config, n, n)):
            near = range(group.rows.start - method.keys, group.rows.start)
            for head in range(q.shape[1]):
                found[head, g] |= {j for j in group.candidates if j in near}
        return found
    found = {}
    for head in range(q.shape[1]):
        queries, keys = q[0, head], k[0, head // repeat]
        scores = (queries @ keys.T / q.shape[-1] ** 0.5).tolist()
        for g, group in enumerate(groups(config, n, n)):
            anchors = {
                i: max(scores[i][j] for j in range(i + 1) if j not in group.candidates)
                for i in group.rows
            }
            best = dict.fromkeys(group.candidates, -math.inf)
            for block in group.blocks:
                for query, anchor, theta in made_by(method, head, queries, anchors, group, block):
                    pooled = (keys @ query / q.shape[-1] ** 0.5).tolist()
                    for j in group.candidates:
                        best[j] = max(best[j], theta - (anchor - pooled[j]))
            if isinstance(method, StripeBudget):
                ranked = sorted(best, key=lambda j: (-best[j], j))
                chosen = ranked[: math.ceil(method.share * len(best))]
            else:
                chosen = [j for j in best if best[j] >= 0]
            found[head, g] = set(chosen)
    if isinstance(method, SharedStripes):
        return {
            (head, g): set().union(
                *(
                    found[other, g]
                    for other in range(q.shape[1])
                    if other // repeat == head // repeat
                )
            )
            for head, g in found
        }
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", CASES, ids=lambda method: repr(method)[:90])
def test_stripes_are_those_of_the_definition(method, seed):
    q, k, _ = inputs(seed=seed)
    plan = method.stripes(q, k, q.shape[-1] ** -0.5)
    expected = slow(method, q, k)
    for (head, g), keys in expected.items():
        assert plan.keys(0, head, g).tolist() == sorted(keys), (head, g)
    if getattr(method, "share", 1) > 0:
        most = sum(len(group.candidates) for group in groups(method.config, N, N)) * q.shape[1]
        assert 0 < len(plan.indices) < most


def test_rows_chosen_in_other_ways_are_other_rows():
    q, k, _ = inputs()
    found = {repr(slow(OutlierRows(replace(ROWS, outlier_theta=0.6), by), q, k)) for by in BY}
    assert len(found) == len(BY)


def test_outlier_rows_are_the_references():
    q, k, v = inputs(n=261)
    for config in (ROWS, replace(ROWS, tail=9), replace(PLAIN, outliers=20, outlier_theta=0.5)):
        selection = OutlierRows(config).select(q, k)
        found, expected = evaluate(q, k, v, selection), measure(q, k, v, config)
        for name in ("recall", "density", "executed_density", "identification_cost"):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), check_dtype=False
            )
        torch.testing.assert_close(found.output_error, expected.output_error)


def test_choosing_costs_a_product_for_each_mean_and_each_row_that_is_asked():
    q, k, _ = inputs()
    layout = groups(PLAIN, N, N)
    means = sum(len(group.blocks) * len(group.candidates) for group in layout)
    rows = sum(
        min(len(block), 5) * len(group.candidates) for group in layout for block in group.blocks
    )
    five = replace(PLAIN, outliers=5)
    for method, pairs in (
        (OutlierRows(five), means + rows),
        (OutlierRows(PLAIN), means),
        (TwoMeans(PLAIN), 2 * means),
        (StripeBudget(0.1, five), means + rows),
        (SharedStripes(five), means + rows),
        (NearStripes(OutlierRows(five)), means + rows),
    ):
        assert method.select(q, k).scored == pytest.approx(pairs / 2)
    assert means < causal_pairs(N)


def test_a_part_without_rows_asks_nothing():
    q, k, _ = inputs()
    q[:] = q[:, :, :1]  # all queries point the same way, and none is nearer to the strangest
    plan = TwoMeans(PLAIN).stripes(q, k, 0.3)
    assert torch.equal(plan.indices, OutlierRows(PLAIN).stripes(q, k, 0.3).indices)


def test_what_is_not_a_number_is_kept():
    q, k, _ = inputs()
    q[0, :, 80] = math.nan
    for method in (OutlierRows(ROWS), TwoMeans(PLAIN), SharedStripes(ROWS)):
        plan = method.stripes(q, k, 0.3)
        assert plan.counts[0, :, 3].tolist() == [64] * 4


@pytest.mark.parametrize("name", EXTENSIONS)
def test_each_configuration_of_a_sweep_keeps_what_the_one_before_keeps(name):
    random = torch.Generator().manual_seed(1)
    q, k = (2 * torch.randn(1, heads, 2500, 16, generator=random) for heads in (2, 1))
    plans = [method.stripes(q, k, 0.25) for method in EXTENSIONS[name].sweep()]
    masks = [plan.to_mask(2500) for plan in plans]
    for fewer, more in pairwise(masks):
        assert not (fewer & ~more).any()
    assert masks[-1].sum() > masks[0].sum()


def test_extensions_are_found_by_name_and_in_no_default_list():
    assert not EXTENSIONS.keys() & METHODS.keys()
    assert not sweeps().keys() & EXTENSIONS.keys()
    found = sweeps(["outlier rows", "AnchorAttention"], 512)
    assert list(found) == ["OutlierRows", "AnchorAttention"]
    assert {method.config.group_size for method in found["OutlierRows"]} == {512}
    assert label_configurations(found["OutlierRows"])[0] == "theta=1"
    assert not any(method.config.outliers for method in found["AnchorAttention"])


@pytest.mark.parametrize("method", [AnchorAttention, PooledMaximum, TwoMeans])
def test_the_method_as_published_takes_no_outlier_rows(method):
    with pytest.raises(ValueError, match=r"config.outliers must be 0, .* extension; got 2"):
        method(config=ROWS)


@pytest.mark.parametrize("choice", ["cosine", "even"])
def test_curves_over_thresholds_are_those_of_rows_that_share_them(choice):
    q, k, v = inputs()
    shared = replace(ROWS, outlier_theta=None, outlier_choice=choice)
    thetas = (-1.0, 0.0, 0.5, 2.0)
    curve = theta_curve(q, k, shared, thetas, 0.4)
    for place, theta in enumerate(thetas):
        found = measure(q, k, v, replace(shared, theta=theta), 0.4)
        torch.testing.assert_close(curve.recall[place], found.recall)
        torch.testing.assert_close(curve.density[place], found.density, check_dtype=False)
    plain = theta_curve(q, k, replace(shared, outliers=0, outlier_choice="cosine"), thetas, 0.4)
    assert (curve.density[1] > plain.density[1]).any()
    with pytest.raises(ValueError, match=r"outlier_theta must be None .* got 0.5"):
        theta_curve(q, k, replace(shared, outlier_theta=0.5))


@pytest.mark.usefixtures("unchecked_annotations")
def test_knobs_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match=r"by must be one of cosine, .*, got 'mean'"):
        OutlierRows(ROWS, by="mean")
    with pytest.raises(ValueError, match=r"outlier_theta must be None with .* got 0.5"):
        OutlierRows(ROWS, thetas=(1.0,) * 4)
    with pytest.raises(ValueError, match=r"share must be a number in \[0, 1\], got 1.5"):
        StripeBudget(1.5)
    with pytest.raises(ValueError, match="keys must be an integer of at least 0, got -1"):
        NearStripes(keys=-1)
    with pytest.raises(TypeError, match="config must be of type AnchorConfig, got float"):
        OutlierRows(12.0)
