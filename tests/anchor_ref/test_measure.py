"""Every measure against its definition, over the full N x N matrix in float64."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_lab.drawing.maps import data_attention_map
from anchor_ref import AnchorConfig, StripePlan, anchor_attention
from anchor_ref import measure as module
from anchor_ref.measure import (
    dense_attention,
    density,
    executed_density,
    identification_cost,
    measure,
    output_error,
    recall,
)
from anchor_ref.regions import causal_pairs, groups
from tests.brute_force import TAILS, brute_masks, cases, kept_pairs


def dense_weights(q, k, scale):
    """Float64 softmax weights and the causal pairs, `[B, Hq, Nq, Nk]`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores, causal, *_ = brute_masks(q, k, AnchorConfig(), scale)
    return scores.masked_fill(~causal, -torch.inf).softmax(-1), causal


def packed_inputs(lengths):
    random = torch.Generator().manual_seed(sum(lengths))
    q = torch.randn(1, 4, sum(lengths), 8, generator=random)
    k, v = (torch.randn(1, 2, sum(lengths), 8, generator=random) for _ in range(2))
    return q, k, v, torch.tensor([0, *lengths]).cumsum(0)


@given(cases(tails=TAILS))
@settings(max_examples=60)
def test_measures_agree_with_their_definitions(case):
    q, k, v, config, scale = case
    found = measure(q, k, v, config, scale, compute_dtype=torch.float64)
    kept = kept_pairs(found.trace.stripes, config, q.shape[2], k.shape[2])
    weights, causal = dense_weights(q, k, scale)
    torch.testing.assert_close(found.recall, (weights * kept).sum(-1), atol=1e-10, rtol=0)
    torch.testing.assert_close(found.density, kept.double().sum((-2, -1)) / causal.sum())
    exact = weights @ v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)
    kept_weights = (weights * kept) / (weights * kept).sum(-1, keepdim=True)
    out = (kept_weights @ v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)).float()
    error = ((out.double() - exact) ** 2).sum((-2, -1)) / (exact**2).sum((-2, -1))
    # An ulp of the float32 output may fall either way.
    torch.testing.assert_close(found.output_error, error.sqrt(), atol=1e-7, rtol=1e-6)
    pooled = sum(len(g.blocks) * len(g.candidates) for g in groups(config, q.shape[2], k.shape[2]))
    expected = torch.full_like(found.density, pooled / 2 / causal.sum().item())
    torch.testing.assert_close(found.identification_cost, expected)


@given(cases(tails=TAILS), st.sampled_from([1, 3, 64]))
@settings(max_examples=60)
def test_executed_density_counts_whole_tiles_of_rows_and_keys(case, gather):
    q, k, v, config, scale = case
    sizes = config, q.shape[2], k.shape[2]
    _, trace = anchor_attention(q, k, v, config, scale, return_trace=True)
    b, shift = config.block_size, k.shape[2] - q.shape[2]
    tiles = torch.zeros(*q.shape[:2], dtype=torch.float64)
    for batch in range(q.shape[0]):
        for head in range(q.shape[1]):
            for g, group in enumerate(groups(*sizes)):
                stripes = len(range(0, len(trace.stripes.keys(batch, head, g)), gather))
                tail = min(config.tail - (q.shape[2] - group.rows.stop), len(group.rows))
                dense = len(range(0, tail, b)) * len(range(0, len(group.candidates), b))
                tiles[batch, head] += b * b * dense
                for rows in group.blocks:
                    window = range(group.window_start, rows.stop + shift, b)
                    initial = range(group.init.start, group.init.stop, b)
                    tiles[batch, head] += b * b * (len(window) + len(initial))
                    tiles[batch, head] += b * gather * stripes
    causal = sum(range(shift + 1, k.shape[2] + 1))
    found = executed_density(trace.stripes, *sizes, gather=gather)
    torch.testing.assert_close(found, tiles / causal)
    assert (found >= density(trace.stripes, *sizes)).all()


@given(cases(), st.booleans())
@settings(max_examples=60)
def test_dense_attention_is_softmax_over_all_earlier_keys_in_the_compute_dtype(case, wide):
    q, k, v, _, scale = case
    weights, _ = dense_weights(q, k, scale)
    exact = weights @ v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)
    dtype = torch.float64 if wide else None
    found = dense_attention(q, k, v, scale, compute_dtype=dtype)
    assert found.dtype == (dtype or torch.float32)
    bound = 1e-11 if wide else 2e-4
    torch.testing.assert_close(found.double(), exact, atol=bound * v.abs().max().item(), rtol=0)


def test_dense_attention_is_dense_beyond_the_groups_of_the_default_config():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 2500, 4, dtype=torch.float64) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(dense_attention(q, k, v), expected, atol=1e-12, rtol=0)


@given(
    st.builds(
        AnchorConfig,
        block_size=st.integers(1, 5),
        step=st.integers(1, 3),
        init_blocks=st.integers(0, 3),
        window_blocks=st.integers(0, 3),
    ),
    st.integers(1, 40),
    st.integers(0, 20),
)
def test_pairs_of_a_group_are_those_one_counts(config, n_queries, earlier):
    found = groups(config, n_queries, n_queries + earlier)
    for group in found:
        own = [row + group.shift for row in group.rows]
        causal = [(i, j) for i in own for j in range(i + 1)]
        always = [(i, j) for i, j in causal if j in group.init or j >= group.window_start]
        assert group.causal_pairs == len(causal)
        assert group.always_pairs == len(always)
        assert group.pooled_pairs == len(group.blocks) * len(group.candidates)
        keys = range(group.init.start, group.rows.stop + group.shift)
        assert [*keys][group.candidate_columns] == [*group.candidates]
    assert causal_pairs(n_queries, n_queries + earlier) == sum(x.causal_pairs for x in found)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(sum))
@settings(max_examples=40)
def test_measures_of_packed_sequences_are_those_of_each_put_together(lengths):
    q, k, v, bounds = packed_inputs(lengths)
    config = AnchorConfig(4, 2, theta=0.5)
    found = measure(q, k, v, config, 0.5, bounds, compute_dtype=torch.float64)
    dense = dense_attention(q, k, v, 0.5, bounds, compute_dtype=torch.float64)
    causal, shares = 0, dict.fromkeys(("density", "executed_density", "identification_cost"), 0)
    for start, end in pairwise(bounds.tolist()):
        if start == end:
            continue
        part = [x[:, :, start:end] for x in (q, k, v)]
        alone = measure(*part, config, 0.5, compute_dtype=torch.float64)
        torch.testing.assert_close(found.recall[:, :, start:end], alone.recall)
        expected = dense_attention(*part, 0.5, compute_dtype=torch.float64)
        torch.testing.assert_close(dense[:, :, start:end], expected)
        pairs = math.comb(end - start + 1, 2)
        causal += pairs
        shares = {name: share + pairs * getattr(alone, name) for name, share in shares.items()}
    for name, share in shares.items():
        torch.testing.assert_close(getattr(found, name), share / causal)
    out = anchor_attention(q, k, v, config, 0.5, bounds, compute_dtype=torch.float64)
    torch.testing.assert_close(found.output_error, output_error(out, dense))


def test_recall_is_summed_up_over_the_rows_of_each_head():
    falling = torch.arange(101.0).flip(0) / 100
    rows = torch.stack([falling, falling / 2])[None]
    none = torch.zeros(1, 2, dtype=torch.float64)
    summary = module.Evaluation(rows, none, none, none, none).recall_summary()
    expected = {"mean": [0.5, 0.25], "p10": [0.1, 0.05], "min": [0.0, 0.0]}
    assert summary.keys() == expected.keys()
    for name, found in summary.items():
        torch.testing.assert_close(found, torch.tensor([expected[name]]))


def test_rows_of_the_first_group_may_be_left_out_of_the_summary():
    rows = torch.cat([torch.ones(50), torch.arange(50.0) / 100])[None, None]
    none = torch.zeros(1, 1, dtype=torch.float64)
    found = module.Evaluation(rows, none, none, none, none)
    beyond = module.rows_beyond(AnchorConfig(10, 5), 100, 100)
    summary = found.recall_summary(beyond)
    expected = {"mean": 0.245, "p10": 0.049, "min": 0.0}
    assert {name: x.item() for name, x in summary.items()} == pytest.approx(expected)
    assert found.recall_summary()["mean"].item() == pytest.approx(0.6225)
    nothing = module.rows_beyond(AnchorConfig(10, 10), 100, 100)
    with pytest.raises(ValueError, match="rows must name at least one row, got none"):
        found.recall_summary(nothing)


@given(cases(tails=TAILS))
@settings(max_examples=60)
def test_rows_beyond_are_those_of_tokens_after_the_first_group(case):
    q, k, _, config, _ = case
    beyond = module.rows_beyond(config, q.shape[2], k.shape[2])
    token = torch.arange(k.shape[2] - q.shape[2], k.shape[2])
    assert beyond.equal(token >= config.group_size)


def test_each_packed_sequence_has_a_first_group():
    beyond = module.rows_beyond(AnchorConfig(4, 2), 40, 40, torch.tensor([0, 5, 30, 40]))
    assert beyond.nonzero().flatten().tolist() == [*range(13, 30), 38, 39]


@given(cases(tails=TAILS))
@settings(max_examples=60)
def test_the_floor_is_the_density_without_stripes(case):
    q, k, v, config, scale = case
    floor = module.density_floor(config, q.shape[2], k.shape[2])
    nothing = replace(config, theta=-math.inf)
    found = measure(q, k, v, nothing, scale)
    torch.testing.assert_close(found.density, floor.expand_as(found.density))
    assert (measure(q, k, v, config, scale).density >= floor - 1e-12).all()


def test_the_floor_of_published_sizes_at_4096_tokens():
    assert float(module.density_floor(AnchorConfig(), 4096, 4096)) == pytest.approx(
        0.531, abs=5e-4
    )


@given(cases(dtypes=(torch.float64,), tails=TAILS))
@settings(max_examples=40)
def test_each_head_is_measured_at_its_own_threshold(case):
    q, k, v, config, scale = case
    thetas = [(-1.0, 0.5, 3.0, math.inf, -math.inf)[h % 5] for h in range(q.shape[1])]
    found = measure(q, k, v, config, scale, theta_by_head=thetas)
    for h, theta in enumerate(thetas):
        alone = measure(q, k, v, replace(config, theta=theta), scale)
        for name in ("recall", "density", "executed_density", "output_error"):
            one, all_of_them = getattr(found, name)[:, h], getattr(alone, name)[:, h]
            torch.testing.assert_close(one, all_of_them, atol=1e-10, rtol=0)


def test_thresholds_by_head_must_be_as_many_as_heads_and_numbers():
    q, k, v, _ = packed_inputs((20,))
    for wrong, said in (
        ([1.0] * 3, "theta_by_head must have one value for each of q's 4 heads, got 3"),
        ([1.0, 2.0, math.nan, 3.0], "theta must be"),
    ):
        with pytest.raises(ValueError, match=said):
            measure(q, k, v, AnchorConfig(4, 2), theta_by_head=wrong)


def test_recall_follows_the_compute_dtype():
    torch.manual_seed(0)
    config = AnchorConfig(4, 2)
    q, k = torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8)
    nothing = StripePlan.from_mask(torch.zeros(1, 2, 5, 40, dtype=torch.bool))
    weights, _ = dense_weights(q, k, None)
    expected = (weights * kept_pairs(nothing, config, 40, 40)).sum(-1)
    assert recall(q, k, nothing, config).dtype == torch.float32
    found = recall(q, k, nothing, config, compute_dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("unchecked_annotations")
def test_output_error_is_the_relative_distance_of_each_head():
    dense = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    out = torch.tensor([[3.0, 4.5], [0.0, 1e-9]]).view(1, 2, 1, 2)
    assert output_error(out, dense).tolist() == [[0.1, math.inf]]
    assert output_error(dense, dense).tolist() == [[0.0, 0.0]]
    assert output_error(out * torch.nan, dense).isnan().all()
    with pytest.raises(ValueError, match=r"out must have shape \(1, 2, 1, 2\)"):
        output_error(out[:, :, :, :1], dense)


def test_output_error_includes_the_rounding_of_the_output():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 8).bfloat16() for _ in range(3))
    everything = AnchorConfig(4, 2, theta=math.inf)
    rounding = measure(q, k, v, everything).output_error
    assert (rounding > 2**-12).all()
    assert (rounding < 2**-8).all()


def test_seconds_are_those_of_anchor_attention_alone(monkeypatch):
    now = [100.0]

    def takes(seconds, name):
        original = getattr(module, name)

        def slower(*args, **kwargs):
            now[0] += seconds
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, slower)

    takes(3.0, "anchor_attention")
    takes(50.0, "dense_attention")
    takes(50.0, "recall")
    takes(50.0, "density")
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    x = torch.randn(1, 1, 20, 8)
    assert measure(x, x, x, AnchorConfig(4, 2)).seconds == 3.0


def test_costs_refuse_sizes_that_do_not_fit():
    nothing = StripePlan.from_mask(torch.zeros(1, 1, 1, 8, dtype=torch.bool))
    for cost in (density, executed_density):
        with pytest.raises(ValueError, match="n_queries must be in"):
            cost(nothing, AnchorConfig(), 9, 8)
    with pytest.raises(ValueError, match="cu_seqlens needs as many queries as keys"):
        identification_cost(AnchorConfig(), 7, 8, torch.tensor([0, 8]))
    with pytest.raises(ValueError, match="gather must be at least 1, got 0"):
        executed_density(nothing, AnchorConfig(), 8, 8, gather=0)


def test_column_mass_of_a_map_is_the_mean_over_the_rows_that_see_the_column():
    torch.manual_seed(0)
    q, k = torch.randn(30, 8), torch.randn(30, 8)
    data = data_attention_map(q, k, 0.25, pixels=10)  # cells of 3 tokens
    weights = dense_weights(q.view(1, 1, 30, 8), k.view(1, 1, 30, 8), 0.25)[0][0, 0]
    for cell in range(10):
        first = 3 * cell
        expected = weights[first:, first : first + 3].sum(1).mean()
        torch.testing.assert_close(data["column_mass"][cell].double(), expected, atol=1e-6, rtol=0)


def test_autocast_changes_nothing():
    """A product that takes part in a decision stays in the dtype that the docstring names."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 80, 16, generator=random) for heads in (4, 2, 2))
    config = AnchorConfig(8, 2, theta=1.0)
    plain = measure(q, k, v, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = measure(q, k, v, config)
    assert torch.equal(cast.trace.row_anchor, plain.trace.row_anchor)
    assert torch.equal(cast.trace.stripes.indices, plain.trace.stripes.indices)
    assert torch.equal(cast.recall, plain.recall)
    assert torch.equal(cast.output_error, plain.output_error)
