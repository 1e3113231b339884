"""Sorted keys, gated chunks and aligned tokens against loops written from their descriptions."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_lab.methods import BFLA, HeadAveragedTopK, MoBA, PBSAttention, TokenTopK, select
from tests.anchor_lab.methods.test_published import (
    blocks_of,
    check_against,
    heads_of,
    mask_of_blocks,
    prompt,
    prompts,
    ranked,
)

scales = st.sampled_from([None, 0.1, 1.0])
examples = settings(max_examples=40)


def until(masses, share, taken=()):
    """Places in falling order, up to and including the first with which they hold the share."""
    held, found = 0.0, set(taken)
    for place in ranked(masses):
        if held >= share * sum(masses):
            break
        found.add(place)
        held += masses[place]
    return found


def weights_of(scores):
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def slow_pbs(method, q, k, scale):
    n, b, size = len(q), method.block_size, method.segment
    complete = n // size * size
    last = range(max(0, n - method.last), n)
    order = list(range(n))
    if complete:
        importance = [0.0] * complete
        for i in last:
            row = weights_of([float(q[i] @ k[j]) * scale for j in range(complete)])
            for j in range(complete):
                importance[j] += row[j] / len(last)
        for start in range(0, complete, size):
            inside = ranked(importance[start : start + size])
            order[start : start + size] = [start + place for place in inside]
    blocks = blocks_of(n, b)
    members = [[order[place] for place in block] for block in blocks]
    means = [sum(k[j] for j in block) / len(block) for block in members]
    mask, executed, scored = torch.zeros(n, n).bool(), 0, len(last) * complete
    for t, rows in enumerate(blocks):
        mean = sum(q[i] for i in rows) / len(rows)
        segment = t * b // size
        before = [u for u in range(len(blocks)) if u * b // size < segment]
        scored += len(before)
        kept = {u for u in range(len(blocks)) if u * b // size == segment}
        kept |= {u for u, block in enumerate(members) if 0 in block}
        if before:
            masses = weights_of([float(mean @ means[u]) * scale for u in before])
            kept |= {before[place] for place in until(masses, method.threshold)}
        executed += len(kept) * b * b
        for u in kept:
            for i in rows:
                for j in members[u]:
                    mask[i, j] = j <= i
    return mask, executed, scored / 2


def slow_moba(method, q, k, scale):
    n, size = len(q), method.chunk_size
    chunks = blocks_of(n, size)
    means = [sum(k[j] for j in chunk) / len(chunk) for chunk in chunks]
    mask, scored, readers = torch.zeros(n, n).bool(), 0, [0] * len(chunks)
    for i in range(n):
        own = i // size
        gates = [float(q[i] @ means[u]) * scale for u in range(own)]
        scored += own
        for u in ranked(gates)[: method.chunks - 1]:
            mask[i, list(chunks[u])] = True
            readers[u] += 1
        mask[i, own * size : i + 1] = True
    executed = 0
    for chunk, count in zip(chunks, readers, strict=True):
        high = math.ceil(len(chunk) / 128)
        executed += math.ceil(count / 128) * high + sum(range(1, high + 1))
    return mask, executed * 128 * 128, scored / 2


def slow_bfla(method, q_heads, k, scale):
    """One key head, all query heads that share it."""
    n, b, g = len(k), method.block_size, method.group
    size = math.ceil(n / b)
    kept, scored = set(), 0
    for number, q in enumerate(q_heads):
        for t in range(size):
            scores = []
            for u in range(t + 1):
                best = -math.inf
                for first_q in range(t * b, (t + 1) * b, g):
                    for first_k in range(u * b, (u + 1) * b, g):
                        total = 0.0
                        for token in range(g):
                            scored += number == 0
                            if max(first_q, first_k) + token < n:
                                total += float(q[first_q + token] @ k[first_k + token]) * scale
                        best = max(best, total)
                scores.append(best)
            kept |= {(t, u) for u in until(weights_of(scores), method.mass)}
            kept |= {(t, 0)} | {(t, u) for u in range(max(0, t - method.local_blocks), t + 1)}
    return *mask_of_blocks(kept, n, b, b), scored / 2


@examples
@given(
    prompts(),
    st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.97]),
    st.sampled_from([(16, 8), (8, 8), (32, 8), (15, 5), (256, 128)]),
    st.sampled_from([1, 7, 128]),
    scales,
)
def test_pbs_attention(qk, threshold, sizes, last, scale):
    check_against(slow_pbs, PBSAttention(threshold, *sizes, last), *qk, scale)


@examples
@given(prompts(), st.integers(1, 6), st.sampled_from([1, 5, 16, 33, 200]), scales)
def test_moba(qk, chunks, size, scale):
    check_against(slow_moba, MoBA(chunks, size), *qk, scale)


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(1, 3))
def test_moba_gathers_queries_in_whole_tiles(seed, chunks):
    q, k = prompt(700, (2, 1), planted=True, seed=seed)
    check_against(slow_moba, MoBA(chunks, 150), q, k)


@settings(max_examples=40, deadline=None)
@given(
    prompts(),
    st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    st.integers(0, 2),
    st.sampled_from([(16, 4), (8, 8), (9, 3), (6, 1), (128, 64)]),
    scales,
)
def test_bfla(qk, mass, local, sizes, scale):
    q, k = qk
    method = BFLA(mass, local, *sizes)
    selection = select(q, k, method, scale)
    mask = selection.to_mask()
    for b in range(q.shape[0]):
        for h, readers in enumerate(q[b].split(q.shape[1] // k.shape[1])):
            one = (method, readers, k[b, h], scale or q.shape[-1] ** -0.5)
            truth, executed, scored = slow_bfla(*one)
            for inside in range(len(readers)):
                place = h * len(readers) + inside
                assert torch.equal(mask[b, place], truth), f"batch {b}, head {place}"
                assert selection.executed[b, place] == executed
    assert selection.scored == scored


@examples
@given(prompts(), st.sampled_from([1, 4, 30, 400]), scales)
def test_one_list_is_that_of_the_mean_attention(qk, count, scale):
    q, k = qk
    scale = scale or q.shape[-1] ** -0.5
    selection = HeadAveragedTopK(count).select(q, k, scale)
    mask, n = selection.to_mask(), q.shape[2]
    for b in range(q.shape[0]):
        for i in range(n):
            mean = [0.0] * (i + 1)
            for (batch, _), one_q, one_k in heads_of(q, k):
                if batch == b:
                    row = weights_of([float(one_q[i] @ one_k[j]) * scale for j in range(i + 1)])
                    mean = [x + y / q.shape[1] for x, y in zip(mean, row, strict=True)]
            kept = mask[b, :, i].nonzero()[:, 1].view(q.shape[1], -1)
            assert (kept == kept[:1]).all()
            # By mass: sums in another order may part keys that hold the same.
            held = sum(mean[j] for j in kept[0].tolist())
            best = sum(sorted(mean, reverse=True)[:count])
            assert kept.shape[1] == min(count, i + 1)
            assert held == pytest.approx(best, rel=1e-9)
    assert selection.scored == n * (n + 1) / 4
    assert selection.executed is None


def test_one_head_has_the_list_that_it_would_have_alone():
    q, k = prompt(150, (1, 1), strength=2.0)
    one, alone = (kind(9).select(q, k).to_mask() for kind in (HeadAveragedTopK, TokenTopK))
    assert torch.equal(one, alone)


def test_lists_of_a_sweep_grow():
    q, k = prompt(200, (4, 2), strength=2.0)
    masks = [HeadAveragedTopK(count).select(q, k).to_mask() for count in (1, 2, 16, 64)]
    for fewer, more in pairwise(masks):
        assert not (fewer & ~more).any()
    assert [x.k for x in HeadAveragedTopK.sweep()] == [2**p for p in range(4, 13)]


def test_heavy_keys_that_lie_apart_share_a_block_once_they_are_sorted():
    """One heavy key in each of two blocks: sorted, one block has both, and is all that is kept."""
    n = 32
    q, k = torch.zeros(2, 1, 1, n, 4).double()
    q[..., 0], k[..., [9, 13], 0] = 10.0, 1.0
    mask = PBSAttention(0.5, segment=8, block_size=4, last=4).select(q, k).to_mask()[0, 0]
    kept = mask[28].nonzero().flatten().tolist()
    # The block of key 0; both heavy keys and the first two others of their segment; its own.
    assert kept == [0, 1, 2, 3, 8, 9, 10, 13, *range(24, 29)]


def test_a_single_dropped_token_changes_no_other_row_of_moba():
    """Each query decides for itself: that is what tells it from methods of query blocks."""
    q, k = prompt(120, planted=True)
    before = MoBA(2, 16).select(q, k).to_mask()[0, 0]
    q[0, 0, 100] *= -1
    after = MoBA(2, 16).select(q, k).to_mask()[0, 0]
    changed = (before != after).any(-1).nonzero().flatten().tolist()
    assert changed == [100]


def test_bfla_compares_tokens_at_the_same_place_and_no_means():
    """Heavy keys of a block in step with the queries win; one place on they are not found."""
    n = 64
    q, k = torch.zeros(2, 1, 1, n, 8).double()
    q[0, 0, 48:] = 3 * torch.eye(8).repeat(2, 1)
    k[0, 0, 16:32] = 3 * torch.eye(8).repeat(2, 1)
    k[0, 0, 32:48] = torch.eye(8).repeat(2, 1)
    method = BFLA(0.9, 0, block_size=16, group=8)
    in_step = method.select(q, k).to_mask()[0, 0, 48, 16:48]
    k[0, 0, 16:32] = k[0, 0, 16:32].roll(1, 0)
    out_of_step = method.select(q, k).to_mask()[0, 0, 48, 16:48]
    assert in_step[:16].all()
    assert not in_step[16:].any()
    assert torch.equal(out_of_step, ~in_step)


@pytest.mark.parametrize(
    ("kind", "knobs", "message"),
    [
        (PBSAttention, {"threshold": 1.5}, "threshold must be a number in"),
        (PBSAttention, {"segment": 200}, r"segment must be a multiple of block_size \(128\)"),
        (PBSAttention, {"last": 0}, "last must be an integer of at least 1, got 0"),
        (MoBA, {"chunks": 0}, "chunks must be an integer of at least 1, got 0"),
        (MoBA, {"chunk_size": 0}, "chunk_size must be an integer"),
        (BFLA, {"mass": -0.1}, "mass must be a number in"),
        (BFLA, {"local_blocks": -1}, "local_blocks must be an integer of at least 0"),
        (BFLA, {"block_size": 100}, r"block_size must be a multiple of group \(64\), got 100"),
        (HeadAveragedTopK, {"k": 0}, "k must be an integer of at least 1"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_wrong_knobs_are_refused_by_name(kind, knobs, message):
    with pytest.raises(ValueError, match=message):
        kind(**knobs)
