"""Planted inputs: AnchorAttention at θ = 12 finds what was planted and nothing else."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_models import planted_stripes
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.measure import recall


def selected_by_definition(p, config) -> list[list[set[int]]]:
    """Stages 1 and 2 in float64, as the method is written: the keys of each head and group."""
    q, k = p.q[0].double(), p.k[0].double()
    n, b, group = q.shape[1], config.block_size, config.block_size * config.step
    key = torch.arange(n)
    chosen = []
    for h in range(len(q)):
        scores = q[h] @ k[h // (len(q) // len(k))].T / q.shape[-1] ** 0.5
        chosen.append([])
        for start in range(0, n, group):
            keep = torch.zeros(n, dtype=torch.bool)
            for t in range(start, min(start + group, n), b):
                block = scores[t : t + b]
                row = torch.arange(t, t + len(block)).unsqueeze(1)
                seen = (key <= row) & ((key < b) | (key >= start))
                anchor = block.masked_fill(~seen, -torch.inf).amax(1).mean()
                keep |= anchor - block.mean(0) <= 12
            keep &= (key >= b) & (key < start)
            chosen[h].append(set(keep.nonzero().flatten().tolist()))
    return chosen


@settings(max_examples=25)
@given(
    n=st.integers(1, 600),
    block_size=st.sampled_from([1, 16, 64]),
    step=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    head_dim=st.sampled_from([1, 4, 8, 16, 64, 128]),
    density=st.sampled_from([0.0, 0.01, 0.03, 0.2, 1.0]),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_exactly_the_planted_candidates_are_selected(
    n, block_size, step, heads, head_dim, density, seed, dtype
):
    p = planted_stripes(
        n,
        q_heads=heads[0],
        kv_heads=heads[1],
        head_dim=head_dim,
        density=density,
        seed=seed,
        dtype=dtype,
    )
    config = AnchorConfig(block_size=block_size, step=step)
    planted = set(p.positions.tolist())
    by_definition = selected_by_definition(p, config)
    _, trace = anchor_attention(p.q, p.k, p.v, config, return_trace=True)
    for g in range(len(by_definition[0])):
        expected = {j for j in planted if block_size <= j < g * config.group_size}
        for h in range(heads[0]):
            assert by_definition[h][g] == expected
            assert set(trace.stripes.keys(0, h, g).tolist()) == expected


def test_selection_holds_at_the_default_sizes():
    p, config = planted_stripes(6200, q_heads=4, kv_heads=1, seed=3), AnchorConfig()
    _, trace = anchor_attention(p.q, p.k, p.v, config, return_trace=True)
    for g in range(4):
        expected = [j for j in p.positions.tolist() if 128 <= j < g * 2048]
        for h in range(4):
            assert trace.stripes.keys(0, h, g).tolist() == expected
    kept = recall(p.q, p.k, trace.stripes, config)
    assert kept.min() > 0.999


def test_scores_have_the_parts_they_were_made_of():
    p = planted_stripes(2000, q_heads=1, kv_heads=1, seed=5)
    scores = p.q[0, 0] @ p.k[0, 0].T / 8
    heavy = torch.zeros(2000, dtype=torch.bool)
    heavy[p.positions] = True
    heavy[0] = True
    distance = torch.arange(2000).unsqueeze(1) - torch.arange(2000)
    # Noise deviates by less than 0.25, and each mean is over 1900 scores or more.
    assert scores[:, heavy][distance[:, heavy] > 100].mean() == pytest.approx(21, abs=0.2)
    assert scores[:, ~heavy][distance[:, ~heavy] > 100].mean() == pytest.approx(0, abs=0.2)
    own, further = scores.diagonal()[~heavy], scores.diagonal(-16)[~heavy[:-16]]
    assert own.mean() == pytest.approx(3, abs=0.1)
    assert further.mean() < own.mean() / 1.5


def test_the_local_part_is_as_exact_at_the_end_as_at_the_start():
    p = planted_stripes(131_072, q_heads=1, kv_heads=1, density=0.0)
    local = slice(1, 31)
    start = p.q[0, 0, 1:201, local] @ p.k[0, 0, 1:201, local].T
    end = p.q[0, 0, -200:, local] @ p.k[0, 0, -200:, local].T
    assert torch.allclose(start, end, atol=1e-3)


@given(n=st.integers(1, 400), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_positions_are_as_many_as_asked_for_ascending_and_never_the_sink(n, density, seed):
    p = planted_stripes(n, q_heads=1, kv_heads=1, head_dim=8, density=density, seed=seed)
    positions = p.positions.tolist()
    assert positions == sorted(set(positions))
    assert len(positions) == min(round(density * n), n - 1)
    assert all(1 <= j < n for j in positions)


@given(runs=st.integers(1, 40), together=st.integers(1, 50), rest=st.integers(0, 49),
       density=st.floats(0, 1))  # fmt: skip
def test_runs_of_planted_keys_are_whole_and_begin_at_multiples(runs, together, rest, density):
    n = runs * together + rest % together
    few = {"q_heads": 1, "kv_heads": 1, "head_dim": 8}
    p = planted_stripes(n, density=density, together=together, **few)
    by_run = p.positions.view(-1, together)
    assert len(by_run) == min(round(density * n / together), runs - 1)
    assert ((by_run - by_run[:, :1]) == torch.arange(together)).all()
    starts = by_run[:, 0].tolist()
    assert starts == sorted(set(starts))
    assert all(j % together == 0 and 0 < j <= n - together for j in starts)
    heavy = p.k[0, 0, :, 0] > 0
    assert heavy.nonzero().flatten().tolist() == [0, *p.positions.tolist()]


def test_the_same_seed_gives_the_same_and_another_seed_another():
    first, again, other = (planted_stripes(300, seed=seed) for seed in (1, 1, 2))
    for name in ("q", "k", "v", "positions"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    half = planted_stripes(300, seed=1, dtype=torch.bfloat16)
    assert torch.equal(half.q, first.q.bfloat16())
    wide = planted_stripes(300, seed=1, q_heads=6, kv_heads=3, head_dim=32)
    assert torch.equal(wide.positions, first.positions)
    assert wide.q.shape == (1, 6, 300, 32)
    assert wide.k.shape == wide.v.shape == (1, 3, 300, 32)


@pytest.mark.gpu
def test_positions_are_the_same_on_a_gpu():
    here, there = planted_stripes(5000), planted_stripes(5000, device="cuda", dtype=torch.bfloat16)
    assert there.q.is_cuda
    assert there.v.dtype == torch.bfloat16
    assert torch.equal(there.positions.cpu(), here.positions)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"q_heads": 3}, ValueError, "q_heads must be a multiple of kv_heads 2, got 3"),
        ({"kv_heads": 0}, ValueError, "kv_heads must be at least 1, got 0"),
        ({"head_dim": 0}, ValueError, "head_dim must be at least 1, got 0"),
        ({"density": 1.5}, ValueError, r"density must be in \[0, 1\], got 1.5"),
        ({"density": float("nan")}, ValueError, r"density must be in \[0, 1\], got nan"),
        ({"together": 0}, ValueError, r"together must be in 1\.\.64, got 0"),
        ({"together": 65}, ValueError, r"together must be in 1\.\.64, got 65"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a floating-point dtype, got torch.int"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        planted_stripes(**{"n": 64, **arguments})


def test_each_head_draws_noise_of_its_own():
    x = planted_stripes(300, q_heads=4, kv_heads=2)
    for heads in (x.q[0], x.k[0], x.v[0]):
        assert all((one != other).any() for one, other in pairwise(heads))
