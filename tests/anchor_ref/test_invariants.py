"""What the method promises, each a property, against float64 attention over the full N x N matrix.

The truth is `tests.brute_force`, which shares no code with the reference.
"""

import inspect
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_ref import (
    AnchorConfig,
    StripePlan,
    anchor_attention,
    attend_stripes,
    compute_anchor,
    identify_stripes,
)
from anchor_ref.inputs import INPUT_DTYPES
from anchor_ref.measure import density, measure, recall
from anchor_ref.online_softmax import SoftmaxState, empty_state, merge, normalise, partial_softmax
from anchor_ref.regions import groups
from tests.brute_force import brute_force, brute_masks, cases, kept_pairs, score_slack


@given(
    cases(dtypes=INPUT_DTYPES, means=(0.0, 1.0), tails=(0, 0, 5, 40))
)  # rounding on the way hides in a mean of 0
@settings(max_examples=200)
def test_selection_and_output_agree_with_float64(case):
    q, k, v, config, scale = case
    out, trace = anchor_attention(q, k, v, config, scale, return_trace=True)
    exact, kept, margin = brute_force(q, k, v, config, scale)
    eps = torch.finfo(trace.row_anchor.dtype).eps
    slack = score_slack(q, k, scale, trace.row_anchor.dtype)
    if margin > slack or math.isinf(config.theta):
        found = kept_pairs(trace.stripes, config, q.shape[2], k.shape[2])
        assert torch.equal(found, kept)
        # Weights follow their scores; sums over keys round once a key, the result once.
        bound = 2 * slack + k.shape[2] * eps + torch.finfo(q.dtype).eps
        size = v.abs().max().double()
        torch.testing.assert_close(out.double() / size, exact / size, atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stage_2_pools_and_multiplies_low_precision_inputs_in_float32(dtype):
    torch.manual_seed(0)
    config = AnchorConfig(16, 2, theta=4.0)
    # Means of 4: rounding a pooled query to the inputs' dtype moves every score, none is 0.
    q, k = (4 + torch.randn(1, heads, 1024, 16) for heads in (4, 2))
    q, k = q.to(dtype), k.to(dtype)
    _, trace = anchor_attention(q, k, k, config, 0.25, return_trace=True)
    *_, candidates, difference = brute_masks(q, k, config, 0.25)
    difference = difference.unflatten(2, (-1, config.group_size))  # [B, Hq, G, S, N]
    near = (difference - config.theta).abs() <= score_slack(q, k, 0.25, torch.float32)
    decided = candidates[:: config.group_size] & ~near.any(3)
    chosen, found = (difference <= config.theta).any(3), trace.stripes.to_mask(1024)
    assert torch.equal(found & decided, chosen & decided)
    assert decided.sum() > 0.99 * 4 * candidates[:: config.group_size].sum()
    assert 0.1 < chosen[decided].double().mean() < 0.9


@given(cases(integers=True))
@settings(max_examples=150)
def test_ties_at_the_threshold_are_kept_exactly(case):
    q, k, v, config, scale = case
    _, trace = anchor_attention(q, k, v, config, scale, return_trace=True)
    _, kept, _ = brute_force(q, k, v, config, scale)
    assert torch.equal(kept_pairs(trace.stripes, config, q.shape[2], k.shape[2]), kept)


def test_regions_hold_each_earlier_key_exactly_once():
    for n_k in range(1, 26):
        for n_q in {1, n_k // 2 or 1, n_k}:
            for b, s in ((1, 1), (2, 3), (3, 2), (4, 1)):
                for init in range(3):
                    for window in range(3):
                        config = AnchorConfig(b, s, init_blocks=init, window_blocks=window)
                        seen = []
                        for group in groups(config, n_q, n_k):
                            for row in group.rows:
                                last = row + group.shift
                                keys = [
                                    *group.init,
                                    *group.candidates,
                                    *range(group.window_start, last + 1),
                                ]
                                assert keys == list(range(last + 1)), (config, group, row)
                                seen.append(row)
                            assert [r for block in group.blocks for r in block] == [*group.rows]
                        assert seen == list(range(n_q))


@given(cases())
def test_theta_inf_is_dense_and_minus_inf_selects_nothing(case):
    q, k, v, config, scale = case
    for theta in (math.inf, -math.inf):
        config = AnchorConfig(
            config.block_size, config.step, theta, config.init_blocks, config.window_blocks
        )
        out, trace = anchor_attention(q, k, v, config, scale, return_trace=True)
        if theta < 0:
            assert trace.stripes.indices.numel() == 0
        else:
            causal = AnchorConfig(block_size=max(k.shape[2], 1), step=1)  # one group sees all
            exact, _, _ = brute_force(q, k, v, causal, scale)
            size = v.abs().max()
            torch.testing.assert_close(out.double() / size, exact / size, atol=1e-4, rtol=0)


@given(cases(), st.floats(-5, 15), st.floats(0, 10))
@settings(max_examples=50)
def test_kept_sets_grow_and_recall_never_falls_with_theta(case, theta, more):
    q, k, _, config, scale = case
    masks, recalls, shares = [], [], []
    anchor = compute_anchor(q, k, k, config, scale).max
    for level in (theta, theta + more):
        at = AnchorConfig(
            config.block_size, config.step, level, config.init_blocks, config.window_blocks
        )
        stripes = identify_stripes(q, k, anchor, at, scale)
        masks.append(stripes.to_mask(k.shape[2]))
        recalls.append(recall(q, k, stripes, at, scale))
        shares.append(density(stripes, at, q.shape[2], k.shape[2]))
    assert (masks[1] | ~masks[0]).all()
    assert (recalls[1] >= recalls[0] - 1e-6).all()
    assert (shares[1] >= shares[0]).all()


@given(st.integers(0, 2**31))
def test_merge_is_exact_and_associative(seed):
    random = torch.Generator().manual_seed(seed)
    scores = 30 * torch.randn(3, 5, 12, generator=random, dtype=torch.float64)
    v = torch.randn(3, 12, 4, generator=random, dtype=torch.float64)
    parts = [
        partial_softmax(scores[..., part].clone(), v[:, part])
        for part in (slice(0, 5), slice(5, 5), slice(5, 9), slice(9, 12))
    ]
    a, empty, b, c = parts
    left, right = merge(merge(merge(a, empty), b), c), merge(a, merge(empty, merge(b, c)))
    exact = scores.softmax(-1) @ v
    torch.testing.assert_close(normalise(left), exact, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(normalise(right), exact, atol=1e-12, rtol=1e-12)
    assert torch.equal(left.max, scores.amax(-1))


def test_states_of_no_keys_merge_into_a_state_of_no_keys():
    v = torch.randn(3, 4, dtype=torch.float64)
    hidden = partial_softmax(torch.full((5, 3), -torch.inf, dtype=torch.float64), v)
    empty = empty_state(torch.empty(5, 4, dtype=torch.float64))
    for state in (hidden, merge(hidden, empty), merge(empty, empty)):
        assert (state.max == -torch.inf).all()
        assert (state.sum == 0).all()
        assert (state.acc == 0).all()
    scores = torch.randn(5, 3, dtype=torch.float64)
    found = merge(hidden, partial_softmax(scores.clone(), v))
    torch.testing.assert_close(normalise(found), scores.softmax(-1) @ v)


@given(cases())
@settings(max_examples=60)
def test_a_changed_token_leaves_earlier_groups_bit_identical(case):
    q, k, v, config, scale = case
    t = k.shape[2] - 1 - (k.shape[2] // 3)
    before = anchor_attention(q, k, v, config, scale)
    changed = [x.clone() for x in (q, k, v)]
    changed[1][:, :, t:], changed[2][:, :, t:] = torch.nan, torch.inf
    shift = k.shape[2] - q.shape[2]
    changed[0][:, :, max(t - shift, 0) :] = 1e4
    after = anchor_attention(*changed, config, scale)
    unchanged = max(t // config.group_size * config.group_size - shift, 0)
    assert torch.equal(before[:, :, :unchanged], after[:, :, :unchanged])
    assert unchanged == q.shape[2] or after[:, :, -1].isnan().all()


@given(cases())
@settings(max_examples=60)
def test_chunks_on_group_boundaries_equal_one_shot(case):
    q, k, v, config, scale = case
    n = k.shape[2]
    q = q[:, :, :1].expand(-1, -1, n, -1) + k[:, :1]  # as many queries as keys
    whole, size = anchor_attention(q, k, v, config, scale), config.group_size
    for start in range(0, n, size):
        end = min(start + size, n)
        chunk = anchor_attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end], config, scale)
        torch.testing.assert_close(chunk, whole[:, :, start:end], atol=1e-4, rtol=1e-5)


@given(cases(integers=True), st.data())
@settings(max_examples=60)
def test_a_chunk_of_whole_blocks_keeps_a_subset_and_of_whole_groups_the_same(case, data):
    q, k, v, config, scale = case
    block, size, blocks = config.block_size, config.group_size, k.shape[2] // config.block_size
    first = data.draw(st.integers(0, blocks - 1))
    start, end = first * block, data.draw(st.integers(first + 1, blocks)) * block
    chunk = q[:, :, start:end], k[:, :, :end], v[:, :, :end]
    _, whole = anchor_attention(q, k, v, config, scale, return_trace=True)
    _, part = anchor_attention(*chunk, config, scale, return_trace=True)
    found = part.stripes.to_mask(end)
    expected = whole.stripes.to_mask(k.shape[2])[:, :, start // size : -(-end // size), :end]
    assert (expected | ~found).all()
    if start % size == 0 and (end % size == 0 or end == k.shape[2]):
        assert torch.equal(found, expected)


@given(cases(), st.lists(st.integers(0, 40), min_size=1, max_size=4))
@settings(max_examples=60)
def test_packed_sequences_equal_the_sequences_one_by_one(case, lengths):
    _, k, _, config, scale = case
    total = sum(lengths)
    if total == 0:
        return
    random = torch.Generator().manual_seed(total)
    q = torch.randn(1, 2 * k.shape[1], total, 8, generator=random)
    k, v = (torch.randn(1, k.shape[1], total, 8, generator=random) for _ in range(2))
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    packed, trace = anchor_attention(q, k, v, config, scale, bounds, return_trace=True)
    n_groups = 0
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if start == end:
            continue
        part = slice(start, end)
        alone, seen = anchor_attention(
            q[:, :, part], k[:, :, part], v[:, :, part], config, scale, return_trace=True
        )
        # The same sums in another place in memory: matrix products may differ by an ulp.
        torch.testing.assert_close(packed[:, :, part], alone, atol=1e-5, rtol=1e-5)
        for g in range(seen.stripes.counts.shape[2]):
            keys = trace.stripes.keys(0, 1, n_groups + g) - start
            assert torch.equal(keys, seen.stripes.keys(0, 1, g))
        n_groups += seen.stripes.counts.shape[2]
    assert trace.stripes.counts.shape[2] == n_groups


@given(cases())
@settings(max_examples=40)
def test_a_constant_added_to_all_scores_of_a_row_changes_nothing(case):
    q, k, v, config, scale = case
    q, k, v = q.double(), k.double(), v.double()
    # One more dimension in which every key is 1 adds c_i to every score of row i.
    shifted_q = torch.cat([q, 3 * torch.ones_like(q[..., :1])], -1)
    ones = torch.ones_like(k[..., :1])
    scale = scale or q.shape[-1] ** -0.5
    plain = anchor_attention(q, k, v, config, scale)
    shifted = anchor_attention(
        shifted_q, torch.cat([k, ones], -1), torch.cat([v, ones], -1), config, scale
    )
    _, _, margin = brute_force(q, k, v, config, scale)
    if margin > 1e-9 or math.isinf(config.theta):
        torch.testing.assert_close(shifted[..., :-1], plain, atol=1e-9, rtol=1e-9)


@given(cases())
@settings(max_examples=30)
def test_a_plan_and_its_mask_are_the_same_thing(case):
    q, k, v, config, scale = case
    _, trace = anchor_attention(q, k, v, config, scale, return_trace=True)
    plan, n = trace.stripes, k.shape[2]
    again = StripePlan.from_mask(plan.to_mask(n))
    for name in ("counts", "offsets", "indices"):
        assert torch.equal(getattr(plan, name), getattr(again, name))
        assert getattr(plan, name).dtype == getattr(again, name).dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_low_precision_input_is_computed_in_float32_and_rounded_once(dtype):
    torch.manual_seed(0)
    config = AnchorConfig(16, 2, 3.0)
    q, k, v = (torch.randn(2, h, 100, 16).to(dtype) for h in (4, 2, 2))
    out = anchor_attention(q, k, v, config)
    assert out.dtype == dtype
    wide = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
    assert torch.equal(out, anchor_attention(*wide, config).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compute_dtype_float64_computes_as_for_float64_inputs(dtype):
    torch.manual_seed(0)
    config = AnchorConfig(16, 2, 3.0)
    q, k, v = (torch.randn(2, h, 100, 16).to(dtype) for h in (4, 2, 2))
    exact = compute_anchor(q.double(), k.double(), v.double(), config)
    state = compute_anchor(q, k, v, config, compute_dtype=torch.float64)
    for name in ("max", "sum", "acc"):
        torch.testing.assert_close(getattr(state, name), getattr(exact, name), atol=1e-12, rtol=0)
    out, trace = anchor_attention(q, k, v, config, return_trace=True, compute_dtype=torch.float64)
    expected = anchor_attention(q.double(), k.double(), v.double(), config)
    assert trace.row_anchor.dtype == torch.float64
    assert torch.equal(out, expected.to(dtype))


def test_inputs_may_be_strided_and_are_never_changed():
    torch.manual_seed(0)
    config = AnchorConfig(16, 2, 3.0)
    q, k, v = (torch.randn(2, 70, h, 8).transpose(1, 2) for h in (4, 2, 2))
    copies = [x.clone() for x in (q, k, v)]
    state = compute_anchor(q, k, v, config)
    stripes = identify_stripes(q, k, state.max, config)
    handed = [*vars(state).values(), *vars(stripes).values()]
    handed_copies = [x.clone() for x in handed]
    out = attend_stripes(q, k, v, state, stripes, config)
    assert all(torch.equal(x, copy) for x, copy in zip((q, k, v), copies, strict=True))
    assert all(torch.equal(x, copy) for x, copy in zip(handed, handed_copies, strict=True))
    dense = anchor_attention(*(x.contiguous() for x in (q, k, v)), config)
    torch.testing.assert_close(out, dense, atol=1e-5, rtol=1e-5)


class TestNotANumber:
    """Token 20 of 64 goes wrong: row 4 of block 2 of 8 rows, in group 1 of 16."""

    config = AnchorConfig(8, 2, theta=0.0)

    def attend(self, **changes):
        random = torch.Generator().manual_seed(0)
        inputs = {name: torch.randn(1, 1, 64, 8, generator=random) for name in "qkv"}
        for name, change in changes.items():
            change(inputs[name][0, 0])
        out, trace = anchor_attention(*inputs.values(), self.config, return_trace=True)
        kept = kept_pairs(trace.stripes, self.config, 64, 64)[0, 0]
        return out[0, 0], kept, [set(trace.stripes.keys(0, 0, g).tolist()) for g in range(4)]

    def test_a_nan_query_is_nan_in_its_row_and_keeps_its_groups_candidates(self):
        out, _, stripes = self.attend(q=lambda q: q[20].fill_(torch.nan))
        _, _, before = self.attend()
        assert out.isnan().all(1).nonzero().flatten().tolist() == [20]
        assert out.isfinite().all(1).sum() == 63
        assert stripes == [before[0], set(range(8, 16)), *before[2:]]

    def test_a_nan_key_is_nan_in_its_own_and_every_later_row(self):
        out, _, stripes = self.attend(k=lambda k: k[20].fill_(torch.nan))
        assert out[:20].isfinite().all()
        assert out[20:].isnan().all()
        assert stripes[1] == set(range(8, 16))
        assert all(20 in keys for keys in stripes[2:])

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_a_value_reaches_the_rows_that_keep_it_and_those_before_it_in_its_block(self, value):
        out, kept, _ = self.attend(v=lambda v: v[20].fill_(value))
        assert out[16:20].isnan().all()
        reached = ~out.isfinite().any(1)
        expected = kept[:, 20].clone()
        expected[16:20] = True
        assert torch.equal(reached, expected)
        assert not expected.all()

    def test_a_score_of_minus_infinity_weighs_nothing(self):
        def positive(q):
            q[:, 0] = 1

        out, _, stripes = self.attend(q=positive, k=lambda k: k[20, 0].fill_(-torch.inf))
        assert out.isfinite().all()
        assert not any(20 in keys for keys in stripes)

    def test_a_score_of_plus_infinity_is_dropped_where_its_blocks_mean_is_low(self):
        def mostly_negative(q):
            q[:, 0] = 1
            q[48:, 0] = -1
            q[50, 0] = 1

        out, _, stripes = self.attend(q=mostly_negative, k=lambda k: k[20, 0].fill_(torch.inf))
        assert out[20:48].isnan().all()
        assert 20 not in stripes[3]
        assert out[48:].isfinite().all()


BATCH_2 = {"q": (2, 4, 10, 8), "k": (2, 2, 10, 8), "v": (2, 2, 10, 8)}
GOOD_SHAPES = {"q": (1, 4, 10, 8), "k": (1, 2, 10, 8), "v": (1, 2, 10, 8)}
# What is changed, the error, and the words that it must contain.
REFUSED = (
    ({"q": (4, 10, 8)}, ValueError, "q must have 4 dimensions"),
    ({"q": (1, 3, 10, 8)}, ValueError, "q must have a multiple of k's 2 heads"),
    ({"q": (1, 4, 11, 8)}, ValueError, "q must have at most as many tokens as k"),
    ({"q": (1, 4, 0, 8)}, ValueError, "q must have at least one element"),
    ({"k": (1, 2, 0, 8)}, ValueError, "k must have at least one element"),
    ({"k": (2, 2, 10, 8)}, ValueError, "k must have q's batch size 1"),
    ({"k": (1, 2, 10, 4)}, ValueError, "k must have q's head_dim 8"),
    ({"v": (1, 2, 9, 8)}, ValueError, "v must have k's shape"),
    ({"k": torch.float64}, TypeError, "k must have q's dtype"),
    ({"q": torch.int64}, TypeError, "q must have one of the dtypes"),
    ({"v": torch.device("meta")}, ValueError, "v must be on q's device cpu, got meta"),
    ({"k": None}, TypeError, "k must be a torch.Tensor, got list"),
    ({"scale": math.nan}, ValueError, "scale must be finite"),
    ({"scale": -math.inf}, ValueError, "scale must be finite, got -inf"),
    ({"scale": 10**400}, ValueError, "scale must be finite"),
    ({"scale": True}, TypeError, "scale must be a number"),
    ({"scale": "1"}, TypeError, "scale must be a number"),
    ({"cu_seqlens": torch.tensor([0, 6, 4, 10])}, ValueError, "cu_seqlens must rise"),
    ({"cu_seqlens": torch.tensor([1, 10])}, ValueError, "cu_seqlens must rise"),
    ({"cu_seqlens": torch.tensor([0, 9])}, ValueError, "cu_seqlens must rise"),
    ({"cu_seqlens": torch.tensor([0.0, 10.0])}, TypeError, "cu_seqlens must be int32 or int64"),
    ({"cu_seqlens": [0, 10]}, TypeError, "cu_seqlens must be of type Tensor, got list"),
    ({"cu_seqlens": torch.tensor([0])}, ValueError, "at least 2 entries"),
    ({"cu_seqlens": torch.tensor([0, 10]), **BATCH_2}, ValueError, "needs a batch of 1"),
    ({"cu_seqlens": torch.tensor([0, 10]), "q": (1, 4, 9, 8)}, ValueError, "as many queries"),
    ({"cu_seqlens": torch.tensor([[0, 10]])}, ValueError, "cu_seqlens must have one dim"),
    ({"compute_dtype": torch.float16}, ValueError, "compute_dtype must be torch.float32"),
    ({"config": 12.0}, TypeError, "config must be of type AnchorConfig, got float"),
)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(("change", "error", "words"), REFUSED)
def test_bad_input_is_refused_by_name(change, error, words):
    arguments = {name: torch.randn(shape) for name, shape in GOOD_SHAPES.items()}
    for name, value in change.items():
        if isinstance(value, tuple):
            arguments[name] = torch.randn(value)
        elif name in arguments and value is None:
            arguments[name] = arguments[name].tolist()
        elif name in arguments:
            arguments[name] = arguments[name].to(value)
        else:
            arguments[name] = value
    with pytest.raises(error, match=words):
        anchor_attention(**arguments)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_size", 0),
        ("block_size", 2.0),
        ("block_size", True),
        ("step", np.float64(2)),
        ("step", 0),
        ("init_blocks", -1),
        ("window_blocks", "1"),
        ("theta", math.nan),
        ("theta", "12"),
        ("theta", None),
        ("theta", False),
        ("theta", 10**400),
    ],
)
def test_config_refuses_nonsense_by_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"{field} must be .*got {re.escape(repr(value))}"):
        AnchorConfig(**{field: value})


@pytest.mark.usefixtures("unchecked_annotations")
def test_config_takes_numpy_numbers_and_keeps_python_ones():
    config = AnchorConfig(np.int8(100), np.int64(2), np.float32(0.5), np.uint8(1), np.int32(3), 7)
    assert config == AnchorConfig(100, 2, 0.5, 1, 3, 7)
    assert [type(value) for value in list(vars(config).values())[:6]] == [
        int, int, float, int, int, int,
    ]  # fmt: skip
    rows = AnchorConfig(outliers=np.int8(2), outlier_theta=np.float32(0.5))
    assert (type(rows.outliers), type(rows.outlier_theta)) == (int, float)
    assert AnchorConfig(theta=Fraction(1, 4)).theta == 0.25
    assert AnchorConfig(theta=math.inf).theta == math.inf


def test_defaults_and_signatures_are_those_of_the_contract():
    assert list(vars(AnchorConfig()).items()) == [
        ("block_size", 128), ("step", 16), ("theta", 12.0), ("init_blocks", 1),
        ("window_blocks", 0), ("tail", 0),
        ("outliers", 0), ("outlier_theta", None), ("outlier_choice", "cosine"),  # an extension
    ]  # fmt: skip
    more = {"scale": None, "cu_seqlens": None}
    for function, required, optional in (
        (anchor_attention, "q k v", {"config": None, **more, "return_trace": False}),
        (compute_anchor, "q k v config", more),
        (identify_stripes, "q k row_anchor config", more),
        (attend_stripes, "q k v state stripes config", more),
    ):
        parameters = inspect.signature(function).parameters
        assert " ".join(list(parameters)[: len(required.split())]) == required
        defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
        assert optional.items() <= defaults.items()


def test_no_config_means_the_default_one():
    torch.manual_seed(0)
    q, k = torch.zeros(1, 1, 2200, 4), torch.zeros(1, 1, 2200, 4)
    q[..., 0], k[..., 0] = 1, 24 * torch.rand(2200)  # differences of 0 to 24, θ is 12
    out, trace = anchor_attention(q, k, k, scale=1.0, return_trace=True)
    expected, default = anchor_attention(q, k, k, AnchorConfig(), 1.0, return_trace=True)
    assert 800 < len(trace.stripes.indices) < 1100
    assert torch.equal(trace.stripes.indices, default.stripes.indices)
    assert torch.equal(out, expected)


def test_boundaries_may_be_int32():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 8) for _ in range(3))
    bounds, config = torch.tensor([0, 15, 40]), AnchorConfig(4, 2, 1.0)
    outputs = [anchor_attention(q, k, v, config, cu_seqlens=b) for b in (bounds, bounds.int())]
    assert torch.equal(*outputs)


@pytest.mark.usefixtures("unchecked_annotations")
def test_sizes_that_do_not_fit_have_no_groups():
    for n_queries in (9, 0):
        with pytest.raises(ValueError, match=rf"n_queries must be in .* got {n_queries}"):
            groups(AnchorConfig(), n_queries, 8)
    with pytest.raises(TypeError, match="config must be of type AnchorConfig, got dict"):
        groups({}, 8, 8)
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0"):
        groups(AnchorConfig(), 8, 8, torch.tensor([0, 9]))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_gradients_are_refused_for_each_input(name):
    inputs = {other: torch.randn(1, 2, 20, 8) for other in "qkv"}
    inputs[name].requires_grad_()
    with pytest.raises(ValueError, match=f"{name} must not require a gradient"):
        anchor_attention(**inputs)
    with torch.no_grad():
        anchor_attention(**inputs)


@pytest.mark.usefixtures("unchecked_annotations")
def test_foreign_anchors_states_and_plans_are_refused():
    config = AnchorConfig(4, 2)
    q, k, v = (torch.randn(1, 2, 20, 8) for _ in range(3))
    state = compute_anchor(q, k, v, config)
    for row_anchor, error, words in (
        (state.max[:, :, :-1], ValueError, "row_anchor must have shape"),
        (state.max.half(), TypeError, "row_anchor must be float32 or float64"),
        (state.max.to("meta"), ValueError, "row_anchor must be on device cpu, got meta"),
        (state.max.tolist(), TypeError, "row_anchor must be of type Tensor, got list"),
    ):
        with pytest.raises(error, match=words):
            identify_stripes(q, k, row_anchor, config)
    stripes = identify_stripes(q, k, state.max, config)
    for wrong, error, words in (
        (state[:, :1], ValueError, r"state\.acc must have shape \(1, 2, 20, 8\)"),
        (SoftmaxState(state.max, state.sum[0], state.acc), ValueError, r"state\.sum must have"),
        (SoftmaxState(state.max.double(), state.sum, state.acc), TypeError, r"state\.max must be"),
        (state.max, TypeError, "state must be of type SoftmaxState, got Tensor"),
    ):
        with pytest.raises(error, match=words):
            attend_stripes(q, k, v, wrong, stripes, config)
    with pytest.raises(ValueError, match="stripes must have one list for each"):
        attend_stripes(q, k, v, state, stripes, AnchorConfig(4, 1))


def test_states_and_plans_compare_by_identity():
    q = torch.randn(1, 1, 20, 8)
    found = measure(q, q, q, AnchorConfig(4, 2))
    again = measure(q, q, q, AnchorConfig(4, 2))
    state = empty_state(q)
    for a, b in ((found, again), (found.trace, again.trace), (state, empty_state(q)),
                 (found.trace.stripes, again.trace.stripes)):  # fmt: skip
        assert a == a
        assert a != b


def test_memory_grows_linearly_and_no_square_matrix_is_made():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.untyped_storage().nbytes() // 4)
            return result

    largest = []
    config = AnchorConfig(32, 2, theta=-2.0)
    for n in (512, 1024, 2048):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, 1, n, 8) for _ in range(3))
        with Largest() as seen:
            measure(q, k, v, config)
        largest.append(seen.elements)
    assert largest[-1] < 2048 * 2048 / 8
    assert largest[2] <= 2.1 * largest[1] <= 4.5 * largest[0]
