"""The search finds what it claims within its bounds; the blame adds up and is put right."""

import math

import pytest
import torch
from hypothesis import given, settings

from anchor_lab.analysis.failures import CAUSES, blame, redirect, search_failure, try_config
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.measure import identification_cost, recall
from anchor_ref.regions import groups
from tests.brute_force import brute_masks, cases, score_slack

CONFIG = AnchorConfig(block_size=8, step=2, theta=6.0)


def normal(seed: int = 0, n: int = 96):
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, heads, n, 16, generator=random) * 1.5 for heads in (2, 1))


def method_recall(q, k, config, scale=None):
    _, trace = anchor_attention(q, k, k, config, scale, return_trace=True)
    return recall(q, k, trace.stripes, config, scale)


@settings(max_examples=60)
@given(case=cases())
def test_blame_is_put_by_definition_and_adds_up_to_what_is_lost(case):
    q, k, _, config, scale = case
    n = q.shape[2]
    k = k[:, :, :n]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    found = blame(q, k, config, scale)
    scores, causal, always, candidates, difference = brute_masks(q, k, config, scale)
    weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    anchor = scores.masked_fill(~always, -torch.inf).amax(-1, keepdim=True)
    block, theta = torch.arange(n) // config.block_size, config.theta
    # The same quantities with one mean each, row by row.
    means = [
        torch.stack([x[:, :, block == t].mean(2) for t in block], 2) for x in (anchor, scores)
    ]
    dropped = torch.empty_like(scores, dtype=torch.bool)
    for group in groups(config, n, n):
        rows = slice(group.rows.start, group.rows.stop)
        dropped[:, :, rows] = (difference[:, :, rows] > theta).all(2, keepdim=True)
    dropped &= candidates
    own = anchor - scores > theta
    query, mean = anchor - means[1] > theta, means[0] - scores > theta
    expected = (own, ~own & query & ~mean, ~own & mean & ~query, ~own & (query == mean))
    tests = torch.stack([anchor - scores, anchor - means[1], means[0] - scores, difference])
    near = (tests - theta).abs() <= score_slack(q, k, scale, torch.float32)
    clear = ~(near & candidates).any(-1).any(0)  # no decision of the row is rounding's
    group_of = torch.arange(n) // config.group_size
    for g in group_of.unique():  # what another row decides reaches the whole group
        clear[:, :, group_of == g] &= clear[:, :, group_of == g].all(-1, keepdim=True)
    allowed = 4 * score_slack(q, k, scale, torch.float32) + 1e-6
    for cause, reason in zip(CAUSES, expected, strict=True):
        lost = (weights * (dropped & reason)).sum(-1)
        assert ((found[cause] - lost).abs() <= allowed)[clear].all(), cause
    total = sum(found.values())
    assert ((1 - total - method_recall(q, k, config, scale)).abs() <= allowed)[clear].all()


@settings(max_examples=40)
@given(case=cases())
def test_a_rows_own_test_loses_no_more_than_its_candidates_can_weigh(case):
    q, k, _, config, scale = case
    k = k[:, :, : q.shape[2]]
    lost = blame(q, k, config, scale)["threshold"]
    for group in groups(config, q.shape[2], q.shape[2]):
        light = len(group.candidates) * math.exp(-max(config.theta, -700.0))
        rows = lost[:, :, group.rows.start : group.rows.stop]
        assert (rows <= light / (1 + light) + 1e-5).all()


@pytest.mark.parametrize("equal_queries", [False, True])
def test_the_search_stays_within_reach_and_its_recall_is_the_methods(equal_queries):
    q, k = normal()
    found = search_failure(q, k, CONFIG, reach=0.6, steps=60, equal_queries=equal_queries)
    exact = method_recall(found.q, found.k, CONFIG)
    assert float(exact.mean()) == pytest.approx(float(found.recall.min()), abs=1e-5)
    assert float(exact.mean()) < float(method_recall(q, k, CONFIG).mean()) - 0.05
    within = (1 + 1e-5) * 0.6
    assert ((found.k - k).norm(dim=-1) <= within * k.norm(dim=-1)).all()
    if equal_queries:
        blocks = found.q.unflatten(2, (-1, 8))
        torch.testing.assert_close(blocks, blocks[:, :, :, :1].expand_as(blocks))
        lost = blame(found.q, found.k, CONFIG)
        assert float(lost["mean query"].max()) < 1e-6
    else:
        assert ((found.q - q).norm(dim=-1) <= within * q.norm(dim=-1)).all()


def test_vectors_of_the_same_lengths_do_not_fail_by_chance():
    q, k = normal()
    found = search_failure(q, k, CONFIG, reach=0.6, steps=60)
    chance = method_recall(redirect(found.q, 1), redirect(found.k, 2), CONFIG)
    assert float(chance.mean()) > float(found.recall.min()) + 0.3


def test_redirecting_keeps_lengths_and_nothing_else():
    q, _ = normal()
    moved = redirect(q, 3)
    torch.testing.assert_close(moved.norm(dim=-1), q.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(q, moved, dim=-1)
    assert abs(float(cosine.mean())) < 0.1
    assert torch.equal(moved, redirect(q, 3))
    assert not torch.equal(moved, redirect(q, 4))


def test_the_same_seed_finds_the_same():
    q, k = normal()
    first, again, other = (
        search_failure(q, k, CONFIG, reach=0.3, steps=10, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.q, again.q)
    assert torch.equal(first.recall, again.recall)
    assert not torch.equal(first.q, other.q)
    assert len(first.recall) == 10


def test_vectors_of_length_zero_stay_where_they_are():
    q, k = normal()
    q[:, :, 5], k[:, :, 7] = 0, 0
    found = search_failure(q, k, CONFIG, reach=0.6, steps=5)
    assert found.q[:, :, 5].abs().max() < 1e-20
    assert found.k[:, :, 7].abs().max() < 1e-20
    assert found.recall.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"reach": 0.0}, "reach must be a finite number above 0, got 0.0"),
        ({"reach": math.inf}, "got inf"),
        ({"reach": 0.1, "steps": 0}, "steps must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        search_failure(*normal(), CONFIG, **arguments)


def test_a_tail_that_holds_the_rows_gives_them_everything_and_is_paid_for():
    random = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 1, 40, 8, generator=random) for _ in range(2))
    sizes = {"block_size": 4, "step": 2, "theta": 0.5}
    rows = torch.tensor([38, 39])
    without, with_tail = (
        try_config(q, k, AnchorConfig(**sizes, tail=tail), 0.3, rows) for tail in (0, 2)
    )
    assert without.asked < 1
    assert with_tail.asked == pytest.approx(1)
    assert with_tail.cost > without.cost
    assert with_tail.beyond > without.beyond
    dense = try_config(q, k, AnchorConfig(**sizes | {"theta": float("inf")}), 0.3, rows)
    chosen = identification_cost(AnchorConfig(**sizes), 40, 40)
    assert (dense.asked, dense.beyond) == pytest.approx((1, 1))
    assert dense.cost == pytest.approx(1 + chosen)
