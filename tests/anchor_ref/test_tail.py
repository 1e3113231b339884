"""The tail: the last rows of each sequence see everything, and nothing else changes."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_ref import AnchorConfig, anchor_attention, compute_anchor
from anchor_ref.inputs import INPUT_DTYPES
from anchor_ref.regions import groups
from anchor_ref.tail import attend_tail
from tests.brute_force import brute_force, cases, score_slack

TAILS = st.one_of(st.integers(0, 20), st.integers(0, 200))
DENSE = AnchorConfig(block_size=1000, step=1)  # one group, whose window is every earlier key


@given(cases(dtypes=INPUT_DTYPES), TAILS)
@settings(max_examples=150)
def test_rows_of_the_tail_are_dense_and_the_others_as_without(case, tail):
    q, k, v, config, scale = case
    without, trace = anchor_attention(q, k, v, config, scale, return_trace=True)
    config = replace(config, tail=tail)
    out, other = anchor_attention(q, k, v, config, scale, return_trace=True)
    first = max(q.shape[2] - tail, 0)
    assert torch.equal(out[:, :, :first], without[:, :, :first])
    exact, _, _ = brute_force(q, k, v, DENSE, scale)
    eps = torch.finfo(torch.float32).eps if q.dtype != torch.float64 else 2.3e-16
    bound = 2 * score_slack(q, k, scale, torch.float32) + k.shape[2] * eps
    bound += torch.finfo(q.dtype).eps
    size = v.abs().max().double()
    torch.testing.assert_close(
        out[:, :, first:].double() / size, exact[:, :, first:] / size, atol=bound, rtol=0
    )
    # What was selected and seen on the way does not know of the tail.
    assert torch.equal(trace.row_anchor, other.row_anchor)
    assert torch.equal(trace.stripes.indices, other.stripes.indices)
    assert torch.equal(trace.stripes.counts, other.stripes.counts)


@given(cases())
@settings(max_examples=50)
def test_a_tail_of_all_rows_is_dense_attention_whatever_theta(case):
    q, k, v, config, scale = case
    exact, _, _ = brute_force(q, k, v, DENSE, scale)
    for tail in (q.shape[2], q.shape[2] + 1, 10**9):
        out = anchor_attention(q, k, v, replace(config, theta=-torch.inf, tail=tail), scale)
        size = v.abs().max()
        torch.testing.assert_close(out.double() / size, exact / size, atol=1e-4, rtol=0)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), TAILS, st.integers(0, 2**31))
@settings(max_examples=60)
def test_each_packed_sequence_has_a_tail_of_its_own(lengths, tail, seed):
    if not sum(lengths):
        lengths = [*lengths, 1]
    random = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, sum(lengths), 8, generator=random) for heads in (4, 2, 2))
    config = AnchorConfig(4, 2, theta=0.5, tail=tail)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    packed = anchor_attention(q, k, v, config, None, bounds)
    for start, end in pairwise(bounds.tolist()):
        if start < end:
            one = [x[:, :, start:end] for x in (q, k, v)]
            assert torch.allclose(
                packed[:, :, start:end], anchor_attention(*one, config), atol=1e-6
            )


@given(st.integers(1, 60), st.integers(1, 60), TAILS)
def test_the_tail_is_the_last_queries_at_hand(n_queries, earlier, tail):
    config = AnchorConfig(4, 3, tail=tail)
    found = groups(config, n_queries, n_queries + earlier)
    rows = [row for group in found for row in group.tail]
    assert rows == list(range(max(n_queries - tail, 0), n_queries))
    for group in found:
        assert set(group.tail) <= set(group.rows)
        assert not group.tail or group.tail.stop == group.rows.stop


def test_a_chunk_that_is_not_the_last_keeps_what_one_call_keeps_and_more():
    """A chunk cannot know that it is not the last: its own last rows are dense too."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 8) for _ in range(3))
    config = AnchorConfig(4, 2, theta=-torch.inf, tail=3)
    whole = anchor_attention(q, k, v, config)
    chunk = anchor_attention(q[:, :, 16:32], k[:, :, :32], v[:, :, :32], config)
    dense = anchor_attention(q, k, v, DENSE)
    torch.testing.assert_close(chunk[:, :, :-3], whole[:, :, 16:29])
    torch.testing.assert_close(chunk[:, :, -3:], dense[:, :, 29:32])
    assert not torch.allclose(chunk[:, :, -3:], whole[:, :, 29:32], atol=1e-3)


def test_appended_tokens_move_the_tail():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 8) for _ in range(3))
    config = AnchorConfig(4, 2, theta=-torch.inf, tail=3)
    short = anchor_attention(q[:, :, :32], k[:, :, :32], v[:, :, :32], config)
    long = anchor_attention(q, k, v, config)
    torch.testing.assert_close(short[:, :, :29], long[:, :, :29])
    assert not torch.allclose(short[:, :, 29:32], long[:, :, 29:32], atol=1e-3)


def test_stage_by_stage_neither_the_state_nor_the_output_of_stage_3_is_written_over():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 8) for _ in range(3))
    config = AnchorConfig(4, 2, tail=5)
    state = compute_anchor(q, k, v, config)
    out, acc = torch.zeros_like(q), state.acc.clone()
    found = attend_tail(q, k, v, state, out, config)
    assert (found[:, :, :-5] == 0).all()
    assert (out == 0).all()
    assert torch.equal(state.acc, acc)


@pytest.mark.parametrize("tail", [-1, 1.0, 2.5, "512", None, True])
def test_a_tail_that_is_no_count_is_refused_by_name(unchecked_annotations, tail):
    with pytest.raises(ValueError, match="tail must be an integer of at least 0, got"):
        AnchorConfig(tail=tail)
