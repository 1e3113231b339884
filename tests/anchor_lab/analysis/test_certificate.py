"""The certificate never lies, gets tighter with effort, and knows what it costs."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_lab.analysis import certificate, certificate_cost, certify
from anchor_lab.analysis.certificate import RIDGE, _balanced
from anchor_ref import AnchorConfig, StripePlan, compute_anchor, identify_stripes
from anchor_ref.measure import density, identification_cost, recall
from anchor_ref.regions import groups
from tests.brute_force import TAILS, cases

ROUNDING = 1e-9  # of products in float64 whose coordinates are stretched by up to sqrt(D / RIDGE)
CONFIG = AnchorConfig(block_size=16, step=4, theta=0.5)
SHAPES = ("normal", "heavy tails", "one key outweighs all", "keys along a query", "two directions")


def dropped_plan(config, n, heads, share, seed):
    """Keeps a share of the candidates, whatever their scores."""
    random = torch.Generator().manual_seed(seed)
    lists = []
    for _ in range(heads):
        for group in groups(config, n, n):
            keep = torch.rand(len(group.candidates), generator=random) < share
            lists.append(keep.nonzero().flatten() + group.candidates.start)
    return StripePlan.from_lists(lists, (1, heads, len(groups(config, n, n))))


def shaped(shape, n, dim, strength, seed):
    """Two query heads that share a key head; float64."""
    random = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, h, n, dim, generator=random, dtype=torch.float64) for h in (2, 1))
    if shape == "heavy tails":
        q, k = q.sinh(), k.sinh()
    elif shape == "one key outweighs all":
        k[:, :, n // 3] *= 50
    elif shape == "keys along a query":  # the inequality becomes an equation
        k = q[:, :1, -1:] * torch.randn(1, 1, n, 1, generator=random, dtype=torch.float64)
    elif shape == "two directions":
        q, k = (x[..., :2] @ torch.eye(2, dim, dtype=torch.float64) for x in (q, k))
    return strength * q, strength * k


@settings(max_examples=60)
@given(
    shape=st.sampled_from(SHAPES),
    n=st.integers(130, 300),
    dim=st.integers(2, 8),
    strength=st.sampled_from([0.3, 1.0, 4.0]),
    share=st.sampled_from([0.0, 0.1, 0.5]),
    rank=st.integers(0, 7),
    pool=st.sampled_from([4, 16, 64]),
    seed=st.integers(0, 2**20),
)
def test_no_row_has_less_recall_than_it_was_promised(
    shape, n, dim, strength, share, rank, pool, seed
):
    q, k = shaped(shape, n, dim, strength, seed)
    effort = {"rank": min(rank, dim), "pool": pool}
    plan = dropped_plan(CONFIG, n, 2, share, seed)
    promised = certify(q, k, plan, CONFIG, **effort)
    exact = recall(q, k, plan, CONFIG)
    assert (promised <= exact + ROUNDING).all(), f"{(promised - exact).max():.2e}"
    assert (promised >= 0).all()


@settings(max_examples=30)
@given(case=cases(dtypes=(torch.float64,), means=(0.0, 2.0), tails=TAILS), rank=st.integers(0, 4))
def test_nor_for_keys_longer_than_queries_and_any_sizes(case, rank):
    q, k, v, config, scale = case
    stripes = identify_stripes(q, k, compute_anchor(q, k, v, config, scale).max, config, scale)
    promised = certify(q, k, stripes, config, scale, rank=min(rank, q.shape[3]), pool=2)
    assert (promised <= recall(q, k, stripes, config, scale) + ROUNDING).all()
    assert (promised[:, :, max(q.shape[2] - config.tail, 0) :] == 1).all()


def test_equal_queries_are_promised_all_they_have_by_pooled_quantities_alone():
    q, k = shaped("normal", 256, 4, 1.0, 0)
    q = q[:, :, ::32].repeat_interleave(32, 2)
    plan = dropped_plan(CONFIG, 256, 2, 0.0, 0)
    exact = recall(q, k, plan, CONFIG)
    assert exact.min() < 0.5, "the sample must drop something"
    found = certify(q, k, plan, CONFIG, rank=0, pool=32)
    torch.testing.assert_close(found, exact, rtol=0, atol=ROUNDING)


def test_what_varies_in_no_direction_is_promised_all_it_has():
    """Integers, whose means are exact: of neither queries nor keys is anything left over."""
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randint(-2, 3, (1, h, 8, 8), generator=random).double() for h in (2, 1))
    q, k = q.repeat_interleave(64, 2), k.repeat_interleave(64, 2)
    config = AnchorConfig(64, 4)
    plan = dropped_plan(config, 512, 2, 0.0, 0)
    exact = recall(q, k, plan, config)
    assert exact.min() < 0.5, "the sample must drop something"
    found = certify(q, k, plan, config, rank=0, pool=64)
    torch.testing.assert_close(found, exact, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("pool", [2, 32])
def test_few_dropped_keys_are_scored_and_the_promise_is_the_recall(pool):
    q, k = shaped("normal", 256, 4, 1.0, 7)
    lists = [
        [key for key in group.candidates if key % 30 != 20]
        for _ in range(2)
        for group in groups(CONFIG, 256, 256)
    ]
    plan = StripePlan.from_lists([torch.tensor(x, dtype=torch.int64) for x in lists], (1, 2, 4))
    exact = recall(q, k, plan, CONFIG)
    found = certify(q, k, plan, CONFIG, rank=0, pool=pool)
    torch.testing.assert_close(found, exact, rtol=0, atol=ROUNDING)
    sizes = (plan, CONFIG, 256, 256)
    scores = (1 - density(*sizes)) / 2
    torch.testing.assert_close(certificate_cost(*sizes, 4, rank=0, pool=pool), scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_inputs_of_less_precision_are_certified_in_float64(dtype):
    q, k = (x.to(dtype) for x in shaped("normal", 256, 8, 2.0, 8))
    plan = dropped_plan(CONFIG, 256, 2, 0.1, 8)
    found = certify(q, k, plan, CONFIG, 0.3, rank=2)
    assert found.dtype == torch.float64
    assert torch.equal(found, certify(q.double(), k.double(), plan, CONFIG, 0.3, rank=2))


@pytest.mark.parametrize("rank", [1, 8])  # 8: all of them are scored
def test_rows_looked_at_in_parts_are_promised_the_same(rank, monkeypatch):
    q, k = shaped("normal", 256, 8, 1.0, 9)
    plan = dropped_plan(CONFIG, 256, 2, 0.1, 9)
    whole = certify(q, k, plan, CONFIG, rank=rank)
    monkeypatch.setattr(certificate, "ROWS_AT_ONCE", 24)
    parts = certify(q, k, plan, CONFIG, rank=rank)
    torch.testing.assert_close(parts, whole, rtol=0, atol=ROUNDING)


def test_the_rest_is_bounded_by_the_product_of_two_lengths():
    """One coordinate, no rank, two blocks of keys: what is left over is |δ| · |κ|, by hand."""
    config = AnchorConfig(block_size=16, step=4)
    q = torch.zeros(1, 1, 128, 1, dtype=torch.float64)
    k = torch.zeros_like(q)
    q[0, 0, 64:, 0] = torch.tensor([1.0, 3.0]).double().repeat(32)  # mean 2, δ = ±1
    k[0, 0, 16:40, 0] = torch.tensor([0.0, 1.0]).double().repeat(12)  # mean 1/2, κ = ±1/2
    k[0, 0, 40:64, 0] = torch.tensor([2.0, 3.0]).double().repeat(12)  # mean 5/2
    plan = dropped_plan(config, 128, 1, 0.0, 0)  # keys 16..63 of the second group
    found = certify(q, k, plan, config, scale=1.0, rank=0, pool=24)[0, 0, 64:]
    for row, (delta, promised) in enumerate(zip([-1.0, 1.0] * 32, found.tolist(), strict=True)):
        bounds = [2 * key + delta * (0.5 + key // 2 * 2) + 0.5 for key in (0.0, 1.0, 2.0, 3.0)]
        lost = 12 * torch.tensor(bounds).exp().sum().item()
        kept = 16 + row + 1  # keys of zeros: each weighs e^0
        assert promised == pytest.approx(kept / (kept + lost))


def test_each_further_coordinate_promises_no_row_less():
    q, k = shaped("normal", 256, 8, 1.5, 1)
    plan = dropped_plan(CONFIG, 256, 2, 0.2, 1)
    promises = [certify(q, k, plan, CONFIG, rank=rank) for rank in range(9)]
    for less, more in pairwise(promises):
        assert (more >= less - ROUNDING).all()
    means = [x[..., 64:].mean().item() for x in promises]
    assert means[0] < means[4] < means[8]
    torch.testing.assert_close(promises[8], recall(q, k, plan, CONFIG), rtol=0, atol=ROUNDING)


def test_where_the_product_has_few_directions_as_many_coordinates_are_exact():
    q, k = shaped("two directions", 256, 8, 1.0, 2)
    plan = dropped_plan(CONFIG, 256, 2, 0.0, 2)
    exact = recall(q, k, plan, CONFIG)
    found = certify(q, k, plan, CONFIG, rank=2, pool=64)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)
    assert (exact - certify(q, k, plan, CONFIG, rank=1, pool=64)).mean() > 0.01


def test_balanced_coordinates_leave_products_and_share_one_diagonal():
    q, k = shaped("heavy tails", 400, 6, 1.0, 3)
    q, k = q[0, 0], k[0, 0]
    to_q, to_k = _balanced(q, k)
    torch.testing.assert_close((q @ to_q) @ (k @ to_k).T, q @ k.T, rtol=1e-8, atol=1e-8)
    ridge = [RIDGE * x.square().mean() * torch.eye(6, dtype=torch.float64) for x in (q, k)]
    moments = [
        t.T @ (x.T @ x / len(x) + r) @ t
        for t, x, r in zip((to_q, to_k), (q, k), ridge, strict=True)
    ]
    torch.testing.assert_close(moments[0], moments[1], rtol=1e-8, atol=1e-8)
    diagonal = moments[0].diagonal()
    torch.testing.assert_close(moments[0], diagonal.diag(), rtol=1e-8, atol=1e-8)
    assert (diagonal.diff() <= 0).all()


def test_packed_sequences_are_certified_one_by_one():
    q, k = shaped("normal", 400, 4, 1.0, 4)
    bounds = torch.tensor([0, 150, 400])
    anchor = compute_anchor(q, k, k, CONFIG, None, bounds).max
    stripes = identify_stripes(q, k, anchor, CONFIG, None, bounds)
    found = certify(q, k, stripes, CONFIG, None, bounds, rank=1)
    assert (found <= recall(q, k, stripes, CONFIG, None, bounds) + ROUNDING).all()
    alone = [x[:, :, 150:] for x in (q, k)]
    plan = identify_stripes(*alone, anchor[..., 150:].contiguous(), CONFIG)
    torch.testing.assert_close(found[..., 150:], certify(*alone, plan, CONFIG, rank=1))


def test_the_cost_is_that_of_the_dropped_scores_at_full_rank_and_less_below():
    config = AnchorConfig(16, 8)
    plan = dropped_plan(config, 1024, 2, 0.3, 0)
    sizes = (plan, config, 1024, 1024)
    scores = (1 - density(*sizes)) / 2
    torch.testing.assert_close(certificate_cost(*sizes, 4, rank=4), scores, rtol=1e-12, atol=0)
    costs = [certificate_cost(*sizes, 4, rank=rank) for rank in range(5)]
    assert all((a < b).all() for a, b in pairwise(costs))
    # By hand: one head, one group of 64 queries, 64 dropped keys, D = 2.
    config = AnchorConfig(16, 4, init_blocks=0)
    plan = dropped_plan(config, 128, 1, 0.0, 0)
    pairs = 64 * 64 * 1 / 2 + (4 * 64 + 64 * 4) + (1 + 1 / 8) * 2 * (64 + 64)
    found = certificate_cost(plan, config, 128, 128, 2, rank=1, pool=16)
    assert found.item() == pytest.approx(pairs / 2 / (128 * 129 / 2))
    assert found.item() > identification_cost(config, 128, 128).item()
    # Neighbours that are not whole: 40 + 24 of either.
    pairs = 64 * 64 * 1 / 2 + (2 * 64 + 64 * 2) + (1 + 1 / 8) * 2 * (64 + 64)
    found = certificate_cost(plan, config, 128, 128, 2, rank=1, pool=40)
    assert found.item() == pytest.approx(pairs / 2 / (128 * 129 / 2))


@pytest.mark.parametrize("tail", [1, 24, 64, 128])
def test_rows_of_the_tail_cost_nothing_to_certify(tail):
    """They lose nothing: one head, 64 candidates of the last 64 queries, D = rank."""
    config = AnchorConfig(16, 4, init_blocks=0, tail=tail)
    plan = dropped_plan(config, 128, 1, 0.0, 0)
    found = certificate_cost(plan, config, 128, 128, 2, rank=2)
    pairs = max(64 - tail, 0) * 64
    assert found.item() == pytest.approx(pairs / 2 / (128 * 129 / 2))


def test_keys_are_neighbours_by_their_places_and_each_mean_is_paid_for():
    """Every fourth of 512 candidates is dropped: 128 keys in 32 places of 16, not in 8."""
    config = AnchorConfig(64, 8, init_blocks=0)
    kept = [torch.arange(0), torch.arange(512)[torch.arange(512) % 4 > 0]]
    plan = StripePlan.from_lists(kept, (1, 1, 2))
    pairs = 512 * 128 * 1 / 2 + (32 * 128 + 512 * 32) + (1 + 1 / 8) * 2 * (512 + 128)
    found = certificate_cost(plan, config, 1024, 1024, 2, rank=1, pool=16)
    assert found.item() == pytest.approx(pairs / 2 / (1024 * 1025 / 2))
    # Where the keys of a place are equal, its mean says all of them.
    q, k = shaped("normal", 1024, 2, 1.0, 10)
    q, k = q[:, :1], k[:, :, ::16].repeat_interleave(16, 2)
    found = certify(q, k, plan, config, rank=0, pool=16)
    torch.testing.assert_close(found, recall(q, k, plan, config), rtol=0, atol=ROUNDING)


def test_the_cost_is_that_of_the_head_s_own_pairs_in_packs_chunks_and_batches():
    dim, n = 4, 300
    random = torch.Generator().manual_seed(0)
    for n_queries, bounds in ((n, None), (170, None), (n, torch.tensor([0, 130, n]))):
        there = groups(CONFIG, n_queries, n, bounds)
        lists = []
        for entry in range(4):  # two prompts of two heads, each with a share of its own
            for group in there:
                keep = torch.rand(len(group.candidates), generator=random) < 0.2 * entry
                lists.append(keep.nonzero().flatten() + group.candidates.start)
        plan = StripePlan.from_lists(lists, (2, 2, len(there)))
        dropped = 1 - density(plan, CONFIG, n_queries, n, bounds)
        found = certificate_cost(plan, CONFIG, n_queries, n, dim, bounds, rank=dim)
        torch.testing.assert_close(found, dropped / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("effort", "message"),
    [
        ({"rank": 9}, r"rank must be an integer in 0\.\.D = 8, got 9"),
        ({"rank": -1}, "rank must be an integer in"),
        ({"rank": 2, "pool": 0}, "pool must be an integer of at least 1, got 0"),
    ],
)
def test_effort_outside_its_range_is_refused(effort, message):
    q, k = shaped("normal", 96, 8, 1.0, 5)
    plan = dropped_plan(CONFIG, 96, 2, 0.0, 5)
    with pytest.raises(ValueError, match=message):
        certify(q, k, plan, CONFIG, **effort)
    with pytest.raises(ValueError, match=message):
        certificate_cost(plan, CONFIG, 96, 96, 8, **effort)


def test_a_plan_of_other_groups_is_refused():
    q, k = shaped("normal", 200, 8, 1.0, 5)
    plan = dropped_plan(AnchorConfig(16, 5), 200, 2, 0.0, 5)
    with pytest.raises(ValueError, match="stripes must have one list for each"):
        certify(q, k, plan, CONFIG, rank=2)
    with pytest.raises(ValueError, match="stripes must have one list for each"):
        certificate_cost(plan, CONFIG, 200, 200, 8, rank=2)


@pytest.mark.parametrize("name", ["q", "k"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_certified(name, value):
    q, k = shaped("normal", 96, 8, 1.0, 6)
    {"q": q, "k": k}[name][0, 0, 40, 3] = value
    with pytest.raises(ValueError, match=f"{name} must be finite to be certified"):
        certify(q, k, dropped_plan(CONFIG, 96, 2, 0.0, 6), CONFIG, rank=2)
