"""Sampled recall against that of all rows."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_lab.analysis import sampled_recall
from anchor_ref import AnchorConfig, StripePlan, compute_anchor, identify_stripes
from anchor_ref.measure import recall
from tests.brute_force import TAILS, cases


@settings(max_examples=40)
@given(case=cases(dtypes=(torch.float64,), tails=TAILS), data=st.data())
def test_the_rows_looked_at_have_the_recall_they_have(case, data):
    q, k, v, config, scale = case
    if q.shape[2] < 2:
        return
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config, scale).max, config, scale)
    n_rows = data.draw(st.integers(2, q.shape[2]))
    found = sampled_recall(q, k, stripes, config, n_rows, scale, seed=data.draw(st.integers(0, 9)))
    everything = recall(q, k, stripes, config, scale)
    assert len(set(found.rows.tolist())) == n_rows
    torch.testing.assert_close(found.recall, everything[..., found.rows], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.mean, found.recall.mean(-1))
    assert ((found.low <= found.mean) & (found.mean <= found.high)).all()


def test_packed_rows_are_counted_from_their_own_sequence():
    """All rows of groups of 96: more than are looked at in one go."""
    q, k, v, _ = sample()
    config = AnchorConfig(16, 6, theta=1.0)
    bounds = torch.tensor([0, 37, 150, 400])
    anchor = compute_anchor(q, k, v, config, None, bounds).max
    stripes = identify_stripes(q, k, anchor, config, None, bounds)
    found = sampled_recall(q, k, stripes, config, 400, None, bounds)
    torch.testing.assert_close(found.recall, recall(q, k, stripes, config, None, bounds))


def test_the_interval_holds_the_mean_of_all_rows_as_often_as_it_says():
    q, k, v, config = sample()
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    truth = recall(q, k, stripes, config).double().mean(-1)
    inside = [
        ((x.low <= truth) & (truth <= x.high)).double().mean().item()
        for x in (
            sampled_recall(q, k, stripes, config, 60, confidence=0.8, seed=seed)
            for seed in range(50)
        )
    ]
    assert sum(inside) / len(inside) >= 0.8


def test_the_interval_is_the_empirical_bernstein_bound_to_the_letter():
    q, k, v, config = sample()
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    for n_rows, cut in ((390, False), (3, True)):
        found = sampled_recall(q, k, stripes, config, n_rows, confidence=0.9)
        for head in range(q.shape[1]):
            seen = found.recall[0, head].tolist()
            x = math.log(2 / 0.05)  # half of the 0.1 for either side
            width = math.sqrt(2 * statistics.variance(seen) * x / n_rows)
            width += 7 * x / (3 * (n_rows - 1))
            mean = statistics.fmean(seen)
            assert found.low[0, head].item() == pytest.approx(max(0.0, mean - width), abs=1e-9)
            assert found.high[0, head].item() == pytest.approx(min(1.0, mean + width), abs=1e-9)
        ends = (found.low == 0) & (found.high == 1)
        assert ends.all() if cut else not ends.any(), "both must be seen: cut off, and not"


def test_it_does_so_where_a_few_rows_lose_nearly_all():
    """A sample of 30 misses the one row in twenty that fails in a fifth of the draws: an interval
    from the sample's own variance alone would then be a point, and wrong."""
    config = AnchorConfig(8, 4)
    q, k = torch.zeros(1, 1, 400, 4), torch.zeros(1, 1, 400, 4)
    k[0, 0, 0, 1] = q[0, 0, :, 1] = 8.0  # all look at the first key, which is always kept,
    k[0, 0, 20, 0] = q[0, 0, 50::20, 0] = 12.0  # but for some that ask for a candidate
    nothing = StripePlan.from_lists([torch.arange(0)] * 13, (1, 1, 13))
    everything = recall(q, k, nothing, config)[0, 0]
    assert everything[50] < 1e-3
    assert (everything < 1e-3).double().mean() == pytest.approx(0.045, abs=0.01)
    drawn = [
        sampled_recall(q, k, nothing, config, 30, confidence=0.9, seed=seed) for seed in range(100)
    ]
    unlucky = sum((x.recall > 1e-3).all().item() for x in drawn) / len(drawn)
    assert unlucky > 0.12
    assert everything.max() == 1
    assert everything.double().median() > 0.999
    truth = everything.double().mean()
    assert sum(((x.low <= truth) & (truth <= x.high)).item() for x in drawn) >= 0.9 * len(drawn)


def test_a_seed_draws_its_own_rows():
    q, k, v, config = sample()
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    one, again, other = (
        sampled_recall(q, k, stripes, config, 50, seed=seed).rows.tolist() for seed in (1, 1, 2)
    )
    assert one == again != other


def test_every_row_is_drawn_as_often_as_any_other():
    """Also in a draw of few: 100 draws of 8 out of 24 rows take each of them 33 times, give or
    take 5."""
    config = AnchorConfig(4, 2)
    x = torch.zeros(1, 1, 24, 4)
    nothing = StripePlan.from_lists([torch.arange(0)] * 3, (1, 1, 3))
    drawn = [sampled_recall(x, x, nothing, config, 8, seed=seed).rows for seed in range(100)]
    times = torch.cat(drawn).bincount(minlength=24)
    assert (times - 33).abs().max() < 4 * 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_looked_at_in_float32_and_averaged_in_float64(dtype):
    q, k, v, config = sample()
    q, k, v = (x.to(dtype) for x in (q, k, v))
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    found = sampled_recall(q, k, stripes, config, 50)
    assert found.recall.dtype == torch.float32
    torch.testing.assert_close(found.recall, recall(q, k, stripes, config)[..., found.rows])
    assert {x.dtype for x in (found.mean, found.low, found.high)} == {torch.float64}


def test_a_row_that_is_not_a_number_is_not_hidden_in_the_mean():
    q, k, v, config = sample()
    q[0, 1, 300, 0] = math.nan
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    found = sampled_recall(q, k, stripes, config, 400)
    assert found.recall.isnan().nonzero().tolist() == [[0, 1, 300]]
    for of_head in (found.mean, found.low, found.high):
        assert of_head.isnan().tolist() == [[False, True, False, False]]


def test_more_rows_and_less_confidence_narrow_the_interval():
    q, k, v, config = sample()
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    widths = [
        (x.high - x.low).mean().item()
        for x in (
            sampled_recall(q, k, stripes, config, 50, confidence=0.99),
            sampled_recall(q, k, stripes, config, 50, confidence=0.9),
            sampled_recall(q, k, stripes, config, 300, confidence=0.9),
        )
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[2] < widths[0] / 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"n_rows": 1}, r"n_rows must be an integer in 2\.\.Nq = 400, got 1"),
        ({"n_rows": 401}, "got 401"),
        ({"n_rows": 9.0}, "n_rows must be an integer in .*, got 9.0"),
        ({"n_rows": 9, "confidence": 1.0}, r"confidence must be in \(0, 1\), got 1\.0"),
        ({"n_rows": 9, "confidence": 0.0}, "confidence must be in"),
        ({"n_rows": 9, "config": AnchorConfig(8, 5)}, r"stripes must have one list for each"),
    ],
)
def test_what_cannot_be_drawn_is_refused(more, message, unchecked_annotations):
    q, k, v, config = sample()
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config).max, config)
    with pytest.raises(ValueError, match=message):
        sampled_recall(q, k, stripes, **({"config": config} | more))


def sample():
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 400, 16, generator=random) for heads in (4, 2, 2))
    return q, k, v, AnchorConfig(8, 4, theta=1.0)
