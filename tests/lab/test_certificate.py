"""The certificate never lies, and knows what it costs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_ref import AnchorConfig, compute_anchor, identify_stripes
from anchor_ref.lab import certificate_cost, certify
from anchor_ref.measure import identification_cost, recall
from tests.brute_force import cases

ROUNDING = 1e-12  # of sums and exponentials in float64


@settings(max_examples=60)
@given(
    case=cases(dtypes=(torch.float64,), means=(0.0, 2.0)),
    rows=st.integers(1, 20),
    directions=st.integers(0, 19),
)
def test_no_row_has_less_recall_than_it_was_promised(case, rows, directions):
    q, k, v, config, scale = case
    state = compute_anchor(q, k, v, config, scale)
    stripes = identify_stripes(q, k, state.max, config, scale)
    promised = certify(
        q, k, stripes, config, scale, rows=rows, directions=min(directions, rows - 1)
    )
    exact = recall(q, k, stripes, config, scale)
    assert (promised <= exact + ROUNDING).all()
    assert (promised >= 0).all()


def test_a_query_on_its_own_is_promised_all_it_has():
    q, k, v, config = sample()
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    exact = recall(q, k, stripes, config)
    assert 0 < exact.min() < 0.9, "the sample must drop something"
    torch.testing.assert_close(certify(q, k, stripes, config, rows=1), exact, rtol=0, atol=1e-10)


def test_more_effort_promises_more():
    q, k, v, config = sample()
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    promises = [
        certify(q, k, stripes, config, rows=rows, directions=directions).mean().item()
        for rows, directions in ((16, 0), (4, 0), (2, 0), (1, 0))
    ]
    assert promises == sorted(promises)
    assert promises[0] < promises[-1]


def test_of_two_queries_the_larger_score_of_each_key_is_the_bound():
    """They span one direction, and the ends of its box are the two."""
    q, k, v, config = sample()
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    promised = certify(q, k, stripes, config, rows=2, directions=1)
    kept = stripes.to_mask(96)[0, 3, 5]  # head 3, the last group: rows 80..95, candidates 8..79
    for row in range(80, 96, 2):
        scores = q[0, 3, row : row + 2] @ k[0, 1].T * 8**-0.5  # [2, 96]
        lost = scores[:, 8:80][:, ~kept[8:80]].amax(0).exp().sum()
        for i in (0, 1):
            seen = kept | (torch.arange(96) < 8) | (torch.arange(96) >= 80)
            mass = scores[i, seen & (torch.arange(96) <= row + i)].exp().sum()
            assert promised[0, 3, row + i].item() == pytest.approx((mass / (mass + lost)).item())


def test_the_cost_is_that_of_stage_2_times_the_effort():
    config = AnchorConfig(16, 4)
    stage_2 = identification_cost(config, 300, 500).item()
    assert certificate_cost(config, 300, 500, rows=16) == pytest.approx(stage_2, rel=0.2)
    whole = certificate_cost(config, 512, 512, rows=16)
    assert whole == pytest.approx(identification_cost(config, 512, 512).item())
    assert certificate_cost(config, 512, 512, rows=8, directions=2) == pytest.approx(6 * whole)


@pytest.mark.parametrize(
    ("effort", "message"),
    [
        ({"rows": 0}, "rows must be an integer of at least 1, got 0"),
        ({"rows": 4, "directions": 4}, r"directions must be an integer in 0\.\.rows - 1, got 4"),
    ],
)
def test_effort_outside_its_range_is_refused(effort, message):
    q, k, v, config = sample()
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    with pytest.raises(ValueError, match=message):
        certify(q, k, stripes, config, **effort)
    with pytest.raises(ValueError, match=message):
        certificate_cost(config, 96, 96, **effort)


def sample():
    random = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, 96, 8, generator=random, dtype=torch.float64) for heads in (4, 2, 2)
    )
    return q, k, v, AnchorConfig(8, 2, theta=0.5, init_blocks=1)
