"""METHOD's promises, each a property, against float64 attention over the full N x N matrix.

The truth is `tests.brute_force`, which shares no code with the reference.
"""

import math

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
from anchor_ref.measure import density, measure, recall
from anchor_ref.online_softmax import SoftmaxState, merge, normalise, partial_softmax
from anchor_ref.regions import groups
from tests.brute_force import brute_force, brute_masks, kept_pairs


@st.composite
def cases(draw, integers=False):
    """(q, k, v, config, scale): ragged N, r = 1, 2, 4, 7, chunks, ties, large scores."""
    block, step = draw(st.sampled_from([(4, 1), (4, 3), (8, 2), (16, 2), (5, 3)]))
    n_k = draw(st.integers(1, 90))
    n_q = draw(st.one_of(st.just(n_k), st.integers(1, n_k)))
    repeat, kv_heads = draw(st.sampled_from([(1, 2), (2, 2), (4, 1), (7, 1)]))
    config = AnchorConfig(
        block_size=block,
        step=step,
        theta=draw(st.sampled_from([math.inf, -math.inf, 0.0, -1.0, 0.5, 2.0, 12.0])),
        init_blocks=draw(st.integers(0, 2)),
        window_blocks=draw(st.integers(0, 2)),
    )
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, dim = draw(st.integers(1, 2)), draw(st.sampled_from([4, 16]))
    if integers:
        # Small integers and a power of two: float32 is exact, ties are real ties. Blocks of 4, 8
        # and 16 queries are averaged exactly; a ragged one is not, so lengths are whole blocks.
        block = 4 if block == 5 else block
        config = AnchorConfig(block, step, config.theta, config.init_blocks, config.window_blocks)
        n_q = n_k = -(-n_k // block) * block

        def values(heads, n):
            return torch.randint(-2, 3, (batch, heads, n, dim), generator=random).float()
    else:
        strength = draw(st.sampled_from([0.3, 1.0, 8.0]))

        def values(heads, n):
            return strength * torch.randn(batch, heads, n, dim, generator=random)

    scale = draw(st.sampled_from([None, 0.25, 0.5]))
    q, k, v = values(kv_heads * repeat, n_q), values(kv_heads, n_k), values(kv_heads, n_k)
    return q, k, v, config, scale


@given(cases())
@settings(max_examples=150)
def test_selection_and_output_agree_with_float64(case):
    q, k, v, config, scale = case
    out, trace = anchor_attention(q, k, v, config, scale, return_trace=True)
    exact, kept, margin = brute_force(q, k, v, config, scale)
    # A sum of D products rounds by at most D·2^-24 of the sum of their sizes; four of them meet.
    largest = (q.abs().amax() * k.abs().amax() * q.shape[-1] * (scale or 1)).item()
    if margin > 4 * q.shape[-1] * 2**-24 * largest or math.isinf(config.theta):
        found = kept_pairs(trace.stripes, config, q.shape[2], k.shape[2])
        assert torch.equal(found, kept)
        size = v.abs().max()
        torch.testing.assert_close(out.double() / size, exact / size, atol=1e-4, rtol=0)


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
@settings(max_examples=60)
def test_measures_agree_with_their_definitions(case):
    q, k, v, config, scale = case
    found = measure(q, k, v, config, scale)
    kept = kept_pairs(found.trace.stripes, config, q.shape[2], k.shape[2])
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores, causal, *_ = brute_masks(q, k, config, factor)
    weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    torch.testing.assert_close(found.recall.double(), (weights * kept).sum(-1), atol=2e-4, rtol=0)
    torch.testing.assert_close(found.density, kept.double().sum((-2, -1)) / causal.sum())
    assert (found.executed_density >= found.density).all()
    assert (found.output_error >= 0).all()
    pooled = sum(len(g.blocks) * len(g.candidates) for g in groups(config, q.shape[2], k.shape[2]))
    expected = torch.full_like(found.density, pooled / 2 / causal.sum().item())
    torch.testing.assert_close(found.identification_cost, expected)


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
    wide = anchor_attention(*(x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v)),
                            config)  # fmt: skip
    assert torch.equal(out, wide.to(dtype))


def test_inputs_may_be_strided_and_are_never_changed():
    torch.manual_seed(0)
    config = AnchorConfig(16, 2, 3.0)
    q, k, v = (torch.randn(2, 70, h, 8).transpose(1, 2) for h in (4, 2, 2))
    copies = [x.clone() for x in (q, k, v)]
    state = compute_anchor(q, k, v, config)
    stripes = identify_stripes(q, k, state.max, config)
    kept = SoftmaxState(state.max.clone(), state.sum.clone(), state.acc.clone())
    out = attend_stripes(q, k, v, state, stripes, config)
    assert all(torch.equal(x, copy) for x, copy in zip((q, k, v), copies, strict=True))
    assert torch.equal(state.acc, kept.acc)
    dense = anchor_attention(*(x.contiguous() for x in (q, k, v)), config)
    torch.testing.assert_close(out, dense, atol=1e-5, rtol=1e-5)


def test_what_is_not_a_number_stays_visible():
    torch.manual_seed(0)
    config = AnchorConfig(8, 2, 0.0)
    q, k, v = (torch.randn(1, 1, 64, 8) for _ in range(3))
    k[0, 0, 20] = torch.nan
    out, trace = anchor_attention(q, k, v, config, return_trace=True)
    assert 20 in trace.stripes.keys(0, 0, 3)
    assert out[0, 0, :20].isfinite().all()
    assert out[0, 0, 20:].isnan().all()


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
    ({"scale": "1"}, TypeError, "scale must be a number"),
    ({"cu_seqlens": torch.tensor([0, 6, 4, 10])}, ValueError, "cu_seqlens must rise"),
    ({"cu_seqlens": torch.tensor([1, 10])}, ValueError, "cu_seqlens must rise"),
    ({"cu_seqlens": torch.tensor([0, 9])}, ValueError, "cu_seqlens must rise"),
    ({"cu_seqlens": torch.tensor([0.0, 10.0])}, TypeError, "cu_seqlens must be an int32"),
    ({"cu_seqlens": torch.tensor([[0, 10]])}, ValueError, "cu_seqlens must have one dim"),
    ({"compute_dtype": torch.float16}, ValueError, "compute_dtype must be torch.float32"),
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
        ("step", 0),
        ("init_blocks", -1),
        ("window_blocks", "1"),
        ("theta", math.nan),
        ("theta", "12"),
        ("theta", None),
    ],
)
def test_config_refuses_nonsense_by_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"{field} must be .*got {value!r}"):
        AnchorConfig(**{field: value})


@pytest.mark.usefixtures("unchecked_annotations")
def test_gradients_and_foreign_states_are_refused():
    config = AnchorConfig(4, 2)
    q, k, v = (torch.randn(1, 2, 20, 8) for _ in range(3))
    with pytest.raises(ValueError, match="q must not require a gradient"):
        anchor_attention(q.clone().requires_grad_(), k, v, config)
    with torch.no_grad():
        anchor_attention(q.clone().requires_grad_(), k, v, config)
    state = compute_anchor(q, k, v, config)
    with pytest.raises(ValueError, match="row_anchor must have shape"):
        identify_stripes(q, k, state.max[:, :, :-1], config)
    with pytest.raises(TypeError, match="row_anchor must be float32 or float64"):
        identify_stripes(q, k, state.max.half(), config)
    stripes = identify_stripes(q, k, state.max, config)
    with pytest.raises(ValueError, match="stripes must have one list for each"):
        attend_stripes(q, k, v, state, stripes, AnchorConfig(4, 1))
    with pytest.raises(ValueError, match=r"state\.acc must have shape"):
        attend_stripes(q, k, v, state[:, :1], stripes, config)


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
