"""A map of blocks against masks written out: what is in it, how much that is, what it holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anchor_ref
from anchor_lab.experiments.attention.jobs import Case
from anchor_lab.experiments.side_by_side import blocks as maps
from anchor_lab.methods import AnchorAttention, FlexPrefill, SpargeAttention, evaluate
from anchor_lab.methods.selection import block_selection
from anchor_models import planted_stripes
from anchor_ref import AnchorConfig

BLOCK = 128


def some_map(n=300, heads=4, seed=0) -> maps.BlockMap:
    size = -(-n // BLOCK)
    generator = torch.Generator().manual_seed(seed)
    marked = torch.rand(1, heads, size, size, generator=generator) < 0.5
    return maps.BlockMap(marked.tril(-1), n)


def pairs_of(blocks: maps.BlockMap) -> torch.Tensor:
    """Every causal pair in the blocks, `[B, H, N, N]`, pair by pair."""
    n, block = blocks.n, torch.arange(blocks.n) // BLOCK
    own = block[:, None] == block
    kept = blocks.before[:, :, block][..., block] | own
    return kept & torch.ones(n, n, dtype=torch.bool).tril()


def inputs(n=400, seed=0, head_dim=16):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (3 * torch.randn(1, h, n, head_dim, generator=generator) for h in (4, 2, 2))
    return q, k, v


@settings(max_examples=20)
@given(n=st.integers(1, 600), seed=st.integers(0, 99))
def test_density_counts_the_causal_pairs_of_the_blocks_one_by_one(n, seed):
    blocks = some_map(n, seed=seed)
    counted = pairs_of(blocks).sum().item() / (4 * n * (n + 1) / 2)
    assert blocks.density == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("n", [128, 300, 512])
def test_everything_is_dense(n):
    blocks = maps.everything(2, 3, n, "cpu")
    assert blocks.density == 1
    assert pairs_of(blocks).sum() == 6 * n * (n + 1) // 2


@pytest.mark.parametrize("method", [SpargeAttention(0.4, similarity=-0.1), FlexPrefill(0.3)])
def test_a_selection_is_rounded_up_to_blocks_and_no_further(method):
    q, k, _ = inputs(470)
    selection = method.select(q, k)
    blocks = maps.of_selection(selection)
    kept = selection.to_mask()
    assert not (kept & ~pairs_of(blocks)).any()
    size = blocks.before.shape[-1]
    for h in range(4):
        for t in range(size):
            for u in range(t):
                rows, keys = slice(t * BLOCK, (t + 1) * BLOCK), slice(u * BLOCK, (u + 1) * BLOCK)
                assert bool(blocks.before[0, h, t, u]) == bool(kept[0, h, rows, keys].any())


def test_our_blocks_are_those_of_our_selection():
    x = planted_stripes(700, q_heads=4, kv_heads=2, head_dim=16, density=0.01)
    config = AnchorConfig(step=2)
    ours = maps.of_ours(Case(x.q, x.k, x.v, None, config, anchor_ref))
    same = maps.of_selection(AnchorAttention(config).select(x.q, x.k))
    assert torch.equal(ours.before, same.before)
    assert 0.3 < ours.density < 1
    with pytest.raises(ValueError, match="block_size must be 128, got 64"):
        maps.of_ours(Case(x.q, x.k, x.v, None, AnchorConfig(block_size=64), anchor_ref))


@pytest.mark.parametrize("n", [256, 410])
def test_recall_is_that_of_the_blocks_as_a_selection(n):
    q, k, v = inputs(n)
    blocks = some_map(n, seed=n)
    mass = maps.block_mass(q, k, 16**-0.5)
    torch.testing.assert_close(mass.sum(-1), torch.ones(1, 4, n))
    expected = evaluate(q, k, v, block_selection(blocks.whole, n, BLOCK, BLOCK, 0.0))
    torch.testing.assert_close(blocks.recall(mass), expected.recall)
    assert blocks.density == pytest.approx(expected.density.mean().item())


def test_the_matrix_of_all_heads_names_the_blocks_of_each_heads_own_keys():
    blocks = some_map(512, heads=6)
    starts, lists = blocks.flattened(kv_heads=3)
    assert starts.dtype == lists.dtype == torch.int32
    for h in range(6):
        for t in range(4):
            row = lists[starts[h * 4 + t] : starts[h * 4 + t + 1]].tolist()
            own = [u for u in range(t) if blocks.before[0, h, t, u]]
            assert row == [h // 2 * 4 + u for u in [*own, t]], "the diagonal must come last"
    assert starts[-1] == len(lists)


@given(first=st.integers(0, 40), count=st.integers(1, 40))
def test_the_first_that_reaches_is_found_in_few_looks(first, count):
    looks = []

    def reaches(place):
        looks.append(place)
        return place >= first

    found = maps.first_that(reaches, count)
    assert found == (first if first < count else None)
    assert len(looks) <= 1 + count.bit_length()


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match="before must be 3 x 3 blocks for 300 tokens"):
        maps.BlockMap(torch.zeros(1, 1, 2, 2, dtype=torch.bool), 300)
    with pytest.raises(ValueError, match="no block on the diagonal or after it"):
        maps.BlockMap(torch.eye(3, dtype=torch.bool)[None, None], 300)
    with pytest.raises(ValueError, match="must be of one prompt, got 2"):
        maps.everything(2, 1, 128, "cpu").flattened(1)
