"""Mean and delta correction against loops over rows, and their cost, in both places."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_lab.methods import (
    AnchorAttention,
    BlockTopK,
    Dense,
    MoBA,
    StreamingLLM,
    TokenTopK,
    evaluate,
)
from anchor_lab.methods.corrections import CORRECTIONS, DeltaCorrection, MeanCorrection
from anchor_lab.methods.in_a_model import attend
from anchor_ref import AnchorConfig

METHODS = (
    Dense(),
    StreamingLLM(3, 11, 4),
    BlockTopK(1, 8),
    TokenTopK(4),
    MoBA(1, 9),
    AnchorAttention(AnchorConfig(8, 2, theta=-0.5)),
)
methods, lengths = st.sampled_from(METHODS), st.integers(1, 80)
tails = st.sampled_from([0, 0, 5, 60, 400])


def inputs(n, heads=(4, 2), seed=0, dim=8, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    counts = (heads[0], heads[1], heads[1])
    return [torch.randn(2, h, n, dim, generator=random).to(dtype) for h in counts]


def attention(q, keys, values, more):
    """Softmax attention of one query; `more` is added to the scores."""
    scores = [float(q @ key) + extra for key, extra in zip(keys, more, strict=True)]
    powers = [math.exp(score - max(scores)) for score in scores]
    return sum(p * v for p, v in zip(powers, values, strict=True)) / sum(powers)


def slow_mean(q, k, v, mask, block):
    """A head's output and how many pseudo-keys its rows see, from means of the dropped keys."""
    out, seen = torch.empty_like(q), 0
    for i in range(len(q)):
        keys = [k[j] for j in range(i + 1) if mask[i, j]]
        values = [v[j] for j in range(i + 1) if mask[i, j]]
        more = [0.0] * len(keys)
        for start in range(0, i + 1, block):
            lost = [j for j in range(start, min(start + block, i + 1)) if not mask[i, j]]
            if lost:
                keys.append(sum(k[j] for j in lost) / len(lost))
                values.append(sum(v[j] for j in lost) / len(lost))
                more.append(math.log(len(lost)))
                seen += 1
        out[i] = attention(q[i], keys, values, more)
    return out, seen


def slow_delta(q, k, v, mask, gamma, last):
    """A head's output, and the rows that are computed densely."""
    n = len(q)

    def row(i, kept):
        return attention(q[i], k[kept], v[kept], [0.0] * len(kept))

    sparse = [row(i, [j for j in range(i + 1) if mask[i, j]]) for i in range(n)]
    dense = [row(i, list(range(i + 1))) for i in range(n)]
    out, rows = torch.empty_like(q), set()
    for i in range(n):
        lead = i - i % gamma
        rows.add(lead)
        if i >= n - n % gamma - last:
            rows.add(i)
            out[i] = dense[i]
        elif mask[i, : i + 1].all():
            out[i] = sparse[i]
        else:
            out[i] = sparse[i] + dense[lead] - sparse[lead]
    return out, rows


def errors(q, k, v, out):
    """Distance of an output to dense attention, head by head."""
    repeat = q.shape[1] // k.shape[1]
    dense = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), is_causal=True
    )
    return (out - dense).norm(dim=(-2, -1)) / dense.norm(dim=(-2, -1))


@settings(max_examples=20, deadline=None)
@given(methods, lengths, st.sampled_from([1, 4, 16, 64]), tails)
def test_mean_correction(method, n, block, tail):
    q, k, v = inputs(n, seed=n)
    selection = method.select(q, k, tail=tail)
    found = evaluate(q, k, v, selection, correction=MeanCorrection(block))
    plain = evaluate(q, k, v, selection)
    out, density = attend(q, k, v, selection, correction=MeanCorrection(block))
    mask, pairs, added = selection.to_mask(), n * (n + 1) / 2, torch.zeros(2, 4).double()
    expected = torch.empty_like(q)
    for b in range(2):
        for h in range(4):
            one = (q[b, h] / 8**0.5, k[b, h // 2], v[b, h // 2], mask[b, h], block)
            expected[b, h], added[b, h] = slow_mean(*one)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.output_error, errors(q, k, v, expected), rtol=0, atol=1e-12)
    assert torch.equal(found.recall, plain.recall)
    assert torch.equal(found.density, plain.density)
    more = found.executed_density - plain.executed_density
    torch.testing.assert_close(more, added / pairs, rtol=0, atol=1e-12)
    assert density == pytest.approx(float((plain.density + added / pairs).mean()))


@settings(max_examples=20, deadline=None)
@given(methods, lengths, st.sampled_from([1, 3, 8, 64]), st.sampled_from([0, 5, 20, 128]), tails)
def test_delta_correction(method, n, gamma, last, tail):
    q, k, v = inputs(n, seed=n)
    correction, selection = DeltaCorrection(gamma, last), method.select(q, k, tail=tail)
    found = evaluate(q, k, v, selection, correction=correction)
    plain = evaluate(q, k, v, selection)
    out, density = attend(q, k, v, selection, correction=correction)
    mask, pairs, expected = selection.to_mask(), n * (n + 1) / 2, torch.empty_like(q)
    for b in range(2):
        for h in range(4):
            one = (q[b, h] / 8**0.5, k[b, h // 2], v[b, h // 2], mask[b, h], gamma, last)
            expected[b, h], rows = slow_delta(*one)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.output_error, errors(q, k, v, expected), rtol=0, atol=1e-12)
    rows = sorted(rows)
    assert (found.recall[:, :, rows] == 1).all()
    others = [i for i in range(n) if i not in rows]
    assert torch.equal(found.recall[:, :, others], plain.recall[:, :, others])
    mask[:, :, rows] = torch.ones(n, n).tril().bool()[rows]
    torch.testing.assert_close(
        found.density, mask.sum((-2, -1)).double() / pairs, rtol=0, atol=1e-12
    )
    more = found.executed_density - plain.executed_density
    dense = torch.full_like(more, sum(i + 1 for i in rows) / pairs)
    torch.testing.assert_close(more, dense, rtol=0, atol=1e-12)
    assert density == pytest.approx(float(found.density.mean()))


@pytest.mark.parametrize("kind", CORRECTIONS.values())
def test_where_all_is_kept_nothing_is_corrected(kind):
    q, k, v = inputs(300)
    found = evaluate(q, k, v, Dense().select(q, k), correction=kind())
    assert (found.output_error < 1e-12).all()
    assert (found.density == 1).all()


def test_a_block_of_equal_keys_is_lost_without_a_trace():
    """Whole blocks dropped, each of one key and value over and over: their mean is exact."""
    q, k, v = inputs(64)
    k, v = (x[:, :, ::8].repeat_interleave(8, 2) for x in (k, v))
    selection = BlockTopK(2, 8).select(q, k)
    assert (evaluate(q, k, v, selection).output_error > 0.01).all()
    found = evaluate(q, k, v, selection, correction=MeanCorrection(8))
    assert (found.output_error < 1e-12).all()


def test_what_all_rows_of_a_block_miss_alike_is_given_back():
    """Equal queries drop the same heavy keys: the first row's difference is that of all."""
    n = 64
    q, k, v = torch.zeros(3, 1, 1, n, 4).double()
    k[..., 1, 0], q[..., 0], v[..., 1, 0] = 40.0, 1.0, 1.0
    selection = StreamingLLM(0, 4, 4).select(q, k)
    plain = evaluate(q, k, v, selection)
    found = evaluate(q, k, v, selection, correction=DeltaCorrection(8, 0))
    assert plain.output_error > 0.5
    assert found.output_error < 0.3


@pytest.mark.parametrize("kind", CORRECTIONS.values())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_corrected_in_float32(kind, dtype):
    q, k, v = inputs(140, dtype=dtype)
    selection = StreamingLLM(3, 11, 4).select(q, k)
    low = evaluate(q, k, v, selection, correction=kind(16))
    wide = evaluate(*(x.float() for x in (q, k, v)), selection, correction=kind(16))
    torch.testing.assert_close(low.output_error, wide.output_error, rtol=0.02, atol=0.01)
    out, _ = attend(q, k, v, selection, correction=kind(16))
    assert out.dtype == dtype


def test_wrong_knobs_are_refused_by_name(unchecked_annotations):
    with pytest.raises(ValueError, match="block_size must be an integer of at least 1, got 0"):
        MeanCorrection(0)
    with pytest.raises(ValueError, match="gamma must be an integer of at least 1, got 0"):
        DeltaCorrection(0)
    with pytest.raises(ValueError, match="last must be an integer of at least 0, got -1"):
        DeltaCorrection(last=-1)
