"""Some blocks of rows in the place of all: which they are, and that they say the same."""

import pytest
import torch

from anchor_lab.experiments.sampled_rows import evaluate_rows, spread_blocks
from anchor_lab.methods import (
    AnchorAttention,
    SkipSoftmax,
    StreamingLLM,
    TokenTopK,
    evaluate_all,
)
from anchor_ref import AnchorConfig
from anchor_ref.measure import density_floor, output_error
from anchor_ref.regions import causal_pairs

FIRST = 64
METHODS = (
    AnchorAttention(AnchorConfig(block_size=16, step=4, theta=1.0)),
    StreamingLLM(8, 40, 16),
    SkipSoftmax(0.3, 16),
    TokenTopK(7),
)


@pytest.fixture(scope="module")
def inputs():
    random = torch.Generator().manual_seed(0)
    return [2 * torch.randn(2, heads, 300, 16, generator=random) for heads in (4, 2, 2)]


def test_all_blocks_say_what_the_evaluation_of_all_rows_says(inputs):
    q, k, v = inputs
    selections = [method.select(q, k, 0.25) for method in METHODS]
    looked = evaluate_rows(q, k, v, selections, 0.25, spread_blocks(300, 99), FIRST)
    whole = evaluate_all(q, k, v, selections, 0.25)
    for method, selection, one, other in zip(METHODS, selections, looked, whole, strict=True):
        torch.testing.assert_close(one.recall, other.recall[:, :, FIRST:])
        for name in ("density", "executed_density", "identification_cost"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), msg=str(method))
        reused = 0 if selection.reused is None else selection.reused / causal_pairs(300)
        cost = other.executed_density + other.identification_cost - reused
        torch.testing.assert_close(one.total_cost, cost)
        torch.testing.assert_close(one.recall_p10, other.recall[:, :, FIRST:].quantile(0.1, -1))


def test_error_is_that_of_the_rows_beyond_the_first_group_alone(inputs):
    q, k, v = inputs
    selection = METHODS[1].select(q, k, 0.25)
    blocks = [range(128), range(128, 256)]
    (one,) = evaluate_rows(q, k, v, [selection], 0.25, blocks, FIRST)
    scores = (q @ k.repeat_interleave(2, 1).mT) * 0.25
    causal, values = torch.ones(300, 300).tril().bool(), v.repeat_interleave(2, 1)
    dense = scores.masked_fill(~causal, -torch.inf).softmax(-1) @ values
    sparse = scores.masked_fill(~selection.to_mask(), -torch.inf).softmax(-1) @ values
    rows = slice(FIRST, 256)
    torch.testing.assert_close(
        one.output_error, output_error(sparse[:, :, rows], dense[:, :, rows])
    )
    assert one.recall.shape == (2, 4, 256 - FIRST)
    kept = selection.to_mask()[:, :, :256].sum((-2, -1)) / causal_pairs(256)
    torch.testing.assert_close(one.density, kept.double())


@pytest.mark.parametrize("n", [8192, 32_768, 65_536, 5000])
@pytest.mark.parametrize("count", [8, 16, 32])
def test_each_part_has_its_block_and_the_last_block_is_none(n, count):
    blocks, size = spread_blocks(n, count), -(-n // 128)
    assert len(blocks) == count
    assert all(len(rows) == 128 and rows.start % 128 == 0 for rows in blocks)
    assert blocks == sorted(blocks, key=lambda rows: rows.start)
    assert blocks[-1].stop <= (size - 1) * 128
    for part, rows in enumerate(blocks):
        assert size * part // count <= rows.start // 128 < size * (part + 1) // count


@pytest.mark.parametrize(("n", "count"), [(8192, 16), (32_768, 16), (32_768, 32), (65_536, 32)])
def test_the_blocks_see_windows_as_all_rows_do(n, count):
    """What they say of the pairs of initial region and window is known of all rows."""
    config = AnchorConfig()
    kept = every = 0
    for rows in spread_blocks(n, count):
        start = rows.start // config.group_size * config.group_size
        before = min(start, config.block_size)
        kept += sum(row - start + 1 + before for row in rows)
        every += causal_pairs(len(rows), rows.stop)
    assert kept / every == pytest.approx(density_floor(config, n, n).item(), rel=0.012)


@pytest.mark.parametrize(("n", "count"), [(8192, 16), (32_768, 16)])
def test_ten_layers_look_at_all_places_of_a_group(n, count):
    places = [0] * 16
    for layer in range(10):
        blocks = spread_blocks(n, count, layer / 10)
        assert len(blocks) == count
        assert blocks[-1].stop < n
        for rows in blocks:
            places[rows.start // 128 % 16] += rows.start >= 2048
    mean = sum(places) / 16
    # The last place of the last group has gone to the one before.
    assert all(0.75 * mean <= times <= 1.35 * mean for times in places[:14]), places
    assert places[14] + places[15] == pytest.approx(2 * mean, rel=0.1)


def test_as_many_blocks_as_there_are_are_all_of_them():
    assert spread_blocks(300, 3) == [range(128), range(128, 256), range(256, 300)]
    assert spread_blocks(100, 16) == [range(100)]
    # Few parts of one block each: none twice.
    assert len(spread_blocks(17 * 128, 16)) == len(set(spread_blocks(17 * 128, 16)))


def test_no_block_and_no_row_beyond_are_refused(inputs):
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        spread_blocks(300, 0)
    with pytest.raises(ValueError, match=r"phase must be in \[0, 1\), got 1"):
        spread_blocks(300, 2, 1.0)
    q, k, v = inputs
    selection = METHODS[1].select(q, k, 0.25)
    with pytest.raises(ValueError, match="blocks must have a row beyond the first 128"):
        evaluate_rows(q, k, v, [selection], 0.25, [range(128)], 128)
