"""Each approximation against its definition over all pairs."""

from dataclasses import replace

import torch
from hypothesis import given, settings

from anchor_lab.analysis import TESTS, compare_tests
from anchor_ref import AnchorConfig, compute_anchor, identify_stripes
from anchor_ref.measure import density, recall
from anchor_ref.regions import groups
from tests.brute_force import TAILS, cases, score_slack, tail_rows


@settings(max_examples=50)
@given(case=cases(dtypes=(torch.float64,), tails=TAILS))
def test_each_test_keeps_what_its_definition_says(case):
    q, k, v, config, scale = case
    # θ = 0 would be decided by rounding wherever a row's largest score is a candidate's.
    config = replace(config, theta=config.theta + 1e-6)
    found = compare_tests(q, k, config, scale)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    k_all = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = factor * (q @ k_all.mT)
    own = torch.arange(q.shape[2]) + k.shape[2] - q.shape[2]
    causal = torch.arange(k.shape[2]) <= own[:, None]
    scores = scores.masked_fill(~causal, -torch.inf)
    row_max, anchor = scores.amax(-1), compute_anchor(q, k, v, config, scale).max
    kept = {name: causal.expand_as(scores).clone() for name in TESTS}
    for group in groups(config, q.shape[2], k.shape[2]):
        rows = slice(group.rows.start, group.rows.stop)
        at = slice(group.candidates.start, group.candidates.stop)
        part = scores[:, :, rows, at]
        exact = row_max[:, :, rows, None] - part <= config.theta
        kept["exact"][:, :, rows, at] = exact
        kept["anchor"][:, :, rows, at] = anchor[:, :, rows, None] - part <= config.theta
        kept["shared"][:, :, rows, at] = exact.any(2, keepdim=True)
        for name, largest in (("pooled", row_max), ("method", anchor)):
            any_block = torch.zeros(*part.shape[:2], part.shape[3], dtype=torch.bool)
            for block in group.blocks:
                b = slice(block.start, block.stop)
                score = factor * (q[:, :, b].mean(2)[:, :, None] @ k_all[:, :, at].mT)[:, :, 0]
                any_block |= largest[:, :, b].mean(2)[..., None] - score <= config.theta
            kept[name][:, :, rows, at] = any_block[:, :, None]
    weights = scores.softmax(-1)
    for name, keep in kept.items():
        keep |= causal & tail_rows(q, config)
        wanted = (weights * keep).sum(-1)
        torch.testing.assert_close(found[name].recall, wanted, rtol=0, atol=1e-9)
        wanted = keep.sum((-2, -1)).double() / causal.sum()
        torch.testing.assert_close(found[name].density, wanted, rtol=0, atol=1e-12)


@settings(max_examples=50)
@given(case=cases(means=(0.0, 2.0)))
def test_at_theta_0_every_row_keeps_its_largest_key(case):
    """Its difference is 0 and not a rounding above, however the maximum was found."""
    q, k, _, config, scale = case
    found = compare_tests(q, k, replace(config, theta=0.0), scale)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = factor * (q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).mT)
    own = torch.arange(q.shape[2]) + k.shape[2] - q.shape[2]
    later = torch.arange(k.shape[2]) > own[:, None]
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    slack = score_slack(q, k, factor, torch.float32) + 1e-5
    for name in ("exact", "shared"):
        assert (found[name].recall >= weights.amax(-1) - slack).all(), name


def test_the_last_one_is_the_method():
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 100, 16, generator=random) for heads in (4, 2))
    config = AnchorConfig(8, 3, theta=2.0)
    stripes = identify_stripes(q, k, compute_anchor(q, k, k, config).max, config)
    found = compare_tests(q, k, config)["method"]
    torch.testing.assert_close(found.recall, recall(q, k, stripes, config))
    assert torch.equal(found.density, density(stripes, config, 100, 100))
