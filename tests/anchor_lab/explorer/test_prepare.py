"""One dense pass keeps what the N x N computation says, at any length."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_lab.explorer import prepare_head
from anchor_ref import AnchorConfig, compute_anchor

SCALE = 0.3


def head(n: int, dim: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(n, dim, generator=random) for _ in range(2))
    k[0] *= 3  # a sink, so that weights differ by orders of magnitude
    return q, k


def log_weights(q, k) -> torch.Tensor:
    scores = (q.double() @ k.double().T * SCALE).masked_fill(
        ~torch.ones(len(q), len(q)).tril().bool(), -torch.inf
    )
    return scores.log_softmax(-1) / math.log(10)


@settings(max_examples=12)
@given(
    n=st.sampled_from([1, 5, 127, 128, 129, 300, 513, 700]),
    cells=st.sampled_from([1, 2, 16, 64, 1024]),
)
def test_levels_are_the_largest_weight_of_each_cell(n, cells):
    q, k = head(n)
    prepared, exact = prepare_head(q, k, SCALE, cells=cells), log_weights(q, k)
    assert len(prepared.levels[0]) <= cells
    assert prepared.cell == 1 or n > cells * prepared.cell / 2, "coarser than it must be"
    for number, level in enumerate(prepared.levels):
        cell = prepared.cell << number
        assert len(level) == -(-n // cell)
        for i in range(len(level)):
            for j in (0, i // 2, i, min(i + 1, len(level) - 1)):
                part = exact[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
                expected = part.max().float()
                torch.testing.assert_close(level[i, j].float(), expected, atol=4e-3, rtol=1e-3)


@settings(max_examples=10)
@given(n=st.sampled_from([1, 127, 129, 256, 300, 641]), step=st.sampled_from([1, 2, 4]))
def test_anchors_are_those_of_stage_1_for_every_step(n, step):
    q, k = head(n)
    prepared = prepare_head(q, k, SCALE, steps=[1, 2, 4])
    q, k = q[None, None], k[None, None]
    expected = compute_anchor(q, k, k, AnchorConfig(step=step), SCALE).max[0, 0]
    torch.testing.assert_close(prepared.anchors[step], expected, atol=1e-5, rtol=1e-5)


def test_row_sums_are_those_of_softmax():
    q, k = head(300)
    prepared = prepare_head(q, k, SCALE)
    scores = (q @ k.T * SCALE).masked_fill(~torch.ones(300, 300).tril().bool(), -torch.inf)
    torch.testing.assert_close(prepared.log_sum, scores.logsumexp(-1))


@pytest.mark.parametrize("cells", [0, -4, 3, 1000])
def test_cells_must_be_a_power_of_two(cells):
    with pytest.raises(ValueError, match=f"cells must be a power of two, got {cells}"):
        prepare_head(*head(10), SCALE, cells=cells)


@pytest.mark.parametrize("elsewhere", ["q", "k"])
def test_heads_on_another_device_are_refused(elsewhere):
    tensors = dict(zip("qk", head(64), strict=True))
    tensors[elsewhere] = tensors[elsewhere].to("meta")
    with pytest.raises(ValueError, match=r"q and k must be on the CPU, got .*meta"):
        prepare_head(**tensors, scale=SCALE)
