"""Outlier rows, the extension of stage 2, against loops over heads, blocks and rows in float64.

The loops share no code with the reference.
"""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anchor_ref import AnchorConfig, anchor_attention, compute_anchor, identify_stripes
from anchor_ref.measure import dense_attention, identification_cost, measure
from anchor_ref.outliers import even_rows, outlier_rows
from anchor_ref.regions import causal_pairs, groups
from tests.brute_force import brute_force, cases, kept_pairs, score_slack

ALL = 40  # more rows than any block has
COUNTS = st.sampled_from([1, 2, 3, 5, ALL])
THETAS = st.sampled_from([None, math.inf, -math.inf, 0.0, -1.0, 0.5, 2.0])


def by_loops(q, k, config, scale):
    """Kept keys by (b, h, g), and how near the closest test and choice of a row were."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    repeat, n_k = q.shape[1] // k.shape[1], k.shape[2]
    earlier = n_k - q.shape[2]
    b, size = config.block_size, config.group_size
    theta_2 = config.theta if config.outlier_theta is None else config.outlier_theta
    kept, nearest, nearest_row = {}, math.inf, math.inf
    for batch in range(q.shape[0]):
        for head in range(q.shape[1]):
            queries, keys = q[batch, head].double(), k[batch, head // repeat].double()
            scores = (scale * queries @ keys.T).tolist()
            for g in range(earlier // size, -(-n_k // size)):
                window = max(0, g * size - config.window_blocks * b)
                candidates = range(min(config.init_blocks * b, window), window)
                found = set()
                for start in range(g * size, min((g + 1) * size, n_k), b):
                    rows = range(max(start, earlier) - earlier, min(start + b, n_k) - earlier)
                    if not rows:
                        continue
                    anchors = {
                        i: max(scores[i][j] for j in range(i + earlier + 1) if j not in candidates)
                        for i in rows
                    }
                    mean = sum(queries[i] for i in rows) / len(rows)
                    cosines = {
                        i: float(queries[i] @ mean) / (float(queries[i].norm()) or 1.0)
                        for i in rows
                    }
                    order = sorted(rows, key=lambda i: (cosines[i], i))
                    for first, second in pairwise(order):
                        gap = cosines[second] - cosines[first]
                        nearest_row = min(nearest_row, gap / (1e-300 + float(mean.norm())))
                    level = sum(anchors.values()) / len(rows)
                    tests = [(level, (scale * keys @ mean).tolist(), config.theta)]
                    tests += [(anchors[i], scores[i], theta_2) for i in order[: config.outliers]]
                    for anchor, asked, theta in tests:
                        for j in candidates:
                            below = anchor - asked[j]
                            nearest = min(nearest, abs(below - theta))
                            if below <= theta:
                                found.add(j)
                kept[batch, head, g - earlier // size] = sorted(found)
    return kept, nearest, nearest_row


def lists_of(stripes):
    batch, heads, n_groups = stripes.counts.shape
    return {
        (b, h, g): stripes.keys(b, h, g).tolist()
        for b in range(batch)
        for h in range(heads)
        for g in range(n_groups)
    }


def select(q, k, config, scale=None, cu_seqlens=None):
    anchor = compute_anchor(q, k, k, config, scale, cu_seqlens).max
    return identify_stripes(q, k, anchor, config, scale, cu_seqlens)


@given(cases(), COUNTS, THETAS)
@settings(max_examples=150)
def test_the_selection_is_that_of_the_loops(case, count, theta):
    q, k, _, config, scale = case
    config = replace(config, outliers=count, outlier_theta=theta)
    q, k = q.double(), k.double()
    expected, nearest, nearest_row = by_loops(q, k, config, scale)
    assume(nearest > score_slack(q, k, scale, torch.float64) and nearest_row > 1e-12)
    assert lists_of(select(q, k, config, scale)) == expected


@given(cases(integers=True), st.sampled_from([None, 0.0, 0.5, 1.0]))
@settings(max_examples=60)
def test_ties_at_the_threshold_of_a_row_are_kept_exactly(case, theta):
    q, k, _, config, scale = case
    config = replace(config, outliers=ALL, outlier_theta=theta)  # no choice of rows can be near
    expected, *_ = by_loops(q, k, config, scale)
    assert lists_of(select(q, k, config, scale)) == expected


@given(cases(), COUNTS, THETAS)
@settings(max_examples=100)
def test_evenly_spaced_rows_select_what_a_search_of_all_pairs_selects(case, count, theta):
    q, k, v, config, scale = case
    config = replace(config, outliers=count, outlier_theta=theta, outlier_choice="even")
    q, k, v = q.double(), k.double(), v.double()
    _, expected, margin = brute_force(q, k, v, config, scale)
    assume(margin > score_slack(q, k, scale, torch.float64))
    found = kept_pairs(select(q, k, config, scale), config, q.shape[2], k.shape[2])
    assert torch.equal(found, expected)


def test_evenly_spaced_rows_stand_in_the_middle_of_equal_parts():
    assert even_rows(range(256, 384), 4) == [272, 304, 336, 368]
    assert even_rows(range(10, 17), 2) == [11, 15]
    assert even_rows(range(3, 6), 8) == [3, 4, 5]


def test_the_row_that_looks_elsewhere_brings_the_key_that_it_needs():
    # Blocks of 4, groups of 8. Row 14, of the last block, asks for key 5; all others do not.
    q, k = torch.zeros(1, 1, 16, 2), torch.zeros(1, 1, 16, 2)
    q[..., 0] = 1.0
    q[0, 0, 14] = torch.tensor([0.0, 1.0])
    k[0, 0, 5, 1] = 3.0
    config = AnchorConfig(4, 2, theta=-1.0)
    none = {(0, 0, 0): [], (0, 0, 1): []}
    assert lists_of(select(q, k, config, 1.0)) == none
    with_it = replace(config, outliers=1)
    assert lists_of(select(q, k, with_it, 1.0)) == none | {(0, 0, 1): [5]}
    # Its own anchor is 0 and its score 3: at a threshold below −3 it no longer is.
    assert lists_of(select(q, k, replace(with_it, outlier_theta=-3.0), 1.0))[0, 0, 1] == [5]
    assert lists_of(select(q, k, replace(with_it, outlier_theta=-3.5), 1.0)) == none


def test_of_rows_with_equal_cosines_the_earlier_is_asked_first():
    torch.manual_seed(0)
    q = torch.randn(2, 3, 24, 8).repeat_interleave(2, 2)  # each stands twice in a row
    for block in (range(8), range(8, 24), range(40, 45)):
        chosen = outlier_rows(q, block, 6, torch.float32).flatten(0, 1).tolist()
        assert all(len(set(rows)) == len(rows) == min(6, len(block)) for rows in chosen)
        assert all(set(rows) <= set(block) for rows in chosen)
        for rows in chosen:
            later = [place for place, row in enumerate(rows) if row % 2]
            assert all(rows[place] - 1 == rows[place - 1] for place in later)


def test_a_query_of_zeros_is_perpendicular_and_a_length_changes_no_rank():
    q = torch.tensor([[5.0, 0], [0.01, 0.001], [0, 0], [-1, 7], [2, 0.1], [0, 0]])[None, None]
    # Mean (1.0, 1.2): the second row is the shortest, but the first the furthest off.
    assert outlier_rows(q, range(6), 4, torch.float32).tolist() == [[[2, 5, 0, 3]]]
    assert outlier_rows(torch.zeros(1, 1, 4, 2), range(4), 2, torch.float32).tolist() == [[[0, 1]]]


@given(cases(tails=(0, 5)), COUNTS)
@settings(max_examples=40)
def test_without_rows_it_is_the_method_and_a_threshold_of_minus_infinity_adds_nothing(case, count):
    q, k, v, config, scale = case
    out, trace = anchor_attention(q, k, v, config, scale, return_trace=True)
    none = replace(config, outliers=count, outlier_theta=-math.inf)
    same, again = anchor_attention(q, k, v, none, scale, return_trace=True)
    assert torch.equal(out, same)
    assert torch.equal(trace.row_anchor, again.row_anchor)
    assert lists_of(trace.stripes) == lists_of(again.stripes)
    everything = replace(config, outliers=count, outlier_theta=math.inf)
    dense = anchor_attention(q.double(), k.double(), v.double(), everything, scale)
    torch.testing.assert_close(dense, dense_attention(q.double(), k.double(), v.double(), scale))


@given(cases(), st.integers(1, 6), THETAS)
@settings(max_examples=40)
def test_kept_sets_grow_with_the_number_of_rows_and_with_their_threshold(case, count, theta):
    q, k, _, config, scale = case
    plans = [
        select(q, k, config, scale),
        select(q, k, replace(config, outliers=count, outlier_theta=theta), scale),
        select(q, k, replace(config, outliers=count + 1, outlier_theta=theta), scale),
    ]
    if theta is not None:
        more = replace(config, outliers=count + 1, outlier_theta=theta + 1)
        plans.append(select(q, k, more, scale))
    masks = [plan.to_mask(k.shape[2]) for plan in plans]
    for fewer, more in pairwise(masks):
        assert bool((fewer <= more).all())


@given(cases(), st.sampled_from([1, 3]), st.data())
@settings(max_examples=40)
def test_chunks_on_group_boundaries_select_as_one_call(case, count, data):
    q, k, _, config, scale = case
    config = replace(config, outliers=count, outlier_theta=0.5)
    n = k.shape[2]
    q = torch.randn(1, q.shape[1], n, q.shape[3], generator=torch.Generator().manual_seed(n))
    k = k[:1].float()
    start = config.group_size * data.draw(st.integers(0, (n - 1) // config.group_size))
    whole, chunk = select(q, k, config, scale), select(q[:, :, start:], k, config, scale)
    before = start // config.group_size
    assert lists_of(chunk) == {
        (b, h, g - before): keys for (b, h, g), keys in lists_of(whole).items() if g >= before
    }


@given(cases(), st.lists(st.integers(0, 25), min_size=1, max_size=4), st.sampled_from([1, 3]))
@settings(max_examples=40)
def test_packed_sequences_are_chosen_from_one_by_one(case, lengths, count):
    q, k, _, config, scale = case
    config = replace(config, outliers=count, outlier_theta=1.0)
    lengths = [*lengths, 1]
    random = torch.Generator().manual_seed(sum(lengths))
    q = torch.randn(1, q.shape[1], sum(lengths), q.shape[3], generator=random)
    k = torch.randn(1, k.shape[1], sum(lengths), k.shape[3], generator=random)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    found = list(lists_of(select(q, k, config, scale, bounds)).items())
    expected, before = {}, 0
    for start, end in pairwise(bounds.tolist()):
        if start < end:
            alone = lists_of(select(q[:, :, start:end], k[:, :, start:end], config, scale))
            for (b, h, g), keys in alone.items():
                expected[b, h, g + before] = [key + start for key in keys]
            before += 1 + max(g for _, _, g in alone)
    assert dict(found) == expected


@given(cases(), st.sampled_from([1, 2]), st.sampled_from([1, 5, 30, 200]))
@settings(max_examples=30)
def test_a_tail_changes_no_selection(case, count, tail):
    q, k, v, config, scale = case
    config = replace(config, outliers=count, outlier_theta=1.0)
    _, trace = anchor_attention(q, k, v, config, scale, return_trace=True)
    tailed = replace(config, tail=tail)
    _, other = anchor_attention(q, k, v, tailed, scale, return_trace=True)
    assert lists_of(trace.stripes) == lists_of(other.stripes)


def test_low_precision_rows_are_ranked_and_asked_in_float32():
    torch.manual_seed(0)
    config = AnchorConfig(16, 2, theta=1.0, outliers=3)
    # With a mean of 4 cosines differ in digits that the inputs' dtype does not have.
    q, k = (4 + torch.randn(1, heads, 128, 16) for heads in (4, 2))
    q, k = q.to(torch.bfloat16), k.to(torch.bfloat16)
    assert lists_of(select(q, k, config, 0.25)) == lists_of(
        select(q.float(), k.float(), config, 0.25)
    )


def test_a_nan_keeps_every_candidate_of_its_group_and_changes_no_other():
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 24, 4), torch.randn(1, 1, 24, 4)
    config = AnchorConfig(4, 2, theta=-math.inf, outliers=1, outlier_theta=0.0)
    expected = lists_of(select(q, k, config))
    q[0, 0, 18] = math.nan
    found = lists_of(select(q, k, config))
    assert found[0, 0, 2] == list(range(4, 16))
    assert found[0, 0, 1] == expected[0, 0, 1]


@given(cases(tails=(0, 5)), COUNTS)
@settings(max_examples=30)
def test_measures_count_what_is_kept_and_what_is_asked(case, count):
    q, k, v, config, scale = case
    config = replace(config, outliers=count, outlier_theta=1.0)
    found = measure(q, k, v, config, scale)
    n_q, n_k = q.shape[2], k.shape[2]
    kept = kept_pairs(found.trace.stripes, config, n_q, n_k)
    torch.testing.assert_close(
        found.density, kept.sum((-2, -1)) / causal_pairs(n_q, n_k) / 1.0, check_dtype=False
    )
    scored = 0
    for group in groups(config, n_q, n_k):
        for rows in group.blocks:
            scored += (1 + min(count, len(rows))) * len(group.candidates)
    cost = identification_cost(config, n_q, n_k).item()
    assert cost == pytest.approx(scored / 2 / causal_pairs(n_q, n_k))
    assert bool((found.identification_cost == cost).all())


def test_four_rows_cost_two_percent_of_dense_attention():
    plain = identification_cost(AnchorConfig(), 65_536, 65_536).item()
    four = identification_cost(AnchorConfig(outliers=4), 65_536, 65_536).item()
    assert four == pytest.approx(5 * plain)
    assert four == pytest.approx(0.5 * 5 / 128, rel=0.05)


def test_a_threshold_for_each_head_is_that_of_its_outlier_rows_too():
    torch.manual_seed(0)
    q, k = torch.randn(1, 3, 40, 8), torch.randn(1, 1, 40, 8)
    thetas = (0.5, -1.0, 2.0)
    config = AnchorConfig(4, 2, outliers=2)
    found = lists_of(measure(q, k, k, config, theta_by_head=thetas).trace.stripes)
    for head, theta in enumerate(thetas):
        alone = lists_of(select(q[:, head : head + 1], k, replace(config, theta=theta)))
        assert {g: keys for (_, h, g), keys in found.items() if h == head} == {
            g: keys for (_, _, g), keys in alone.items()
        }
    with pytest.raises(ValueError, match=r"outlier_theta must be None with .* got 1.0"):
        measure(q, k, k, replace(config, outlier_theta=1.0), theta_by_head=thetas)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"outliers": -1}, "outliers"),
        ({"outliers": 1.0}, "outliers"),
        ({"outliers": True}, "outliers"),
        ({"outliers": 1, "outlier_theta": math.nan}, "outlier_theta"),
        ({"outliers": 1, "outlier_theta": "5"}, "outlier_theta"),
        ({"outliers": 1, "outlier_theta": False}, "outlier_theta"),
        ({"outlier_theta": 5.0}, "outlier_theta"),
        ({"outliers": 1, "outlier_choice": "evenly"}, "outlier_choice"),
        ({"outliers": 1, "outlier_choice": None}, "outlier_choice"),
    ],
)
def test_nonsense_is_refused_by_field_and_value(fields, named):
    value = re.escape(repr(fields[named]))
    with pytest.raises(ValueError, match=rf"^{named} must be .*got {value}"):
        AnchorConfig(**fields)


def test_the_threshold_of_rows_is_theta_unless_it_has_a_value():
    assert AnchorConfig(theta=3.0, outliers=1).row_theta == 3.0
    assert AnchorConfig(theta=3.0, outliers=1, outlier_theta=0.0).row_theta == 0.0
    assert replace(AnchorConfig(theta=3.0, outliers=1), theta=5.0).row_theta == 5.0
