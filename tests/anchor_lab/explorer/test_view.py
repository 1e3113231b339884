"""What the explorer shows is what the method keeps, and no move costs more than it may."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from anchor_lab.analysis import sampled_recall
from anchor_lab.explorer import Window, figure, look, prepare_head, select
from anchor_lab.explorer import view as views
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.measure import density, recall
from tests.anchor_lab.explorer.test_prepare import SCALE, head, log_weights

N = 1100  # no multiple of a block
STEPS = (1, 2)


@pytest.fixture(scope="module")
def prepared():
    return prepare_head(*head(N), SCALE, STEPS, cells=256)


@pytest.fixture(scope="module")
def exact():
    return log_weights(*head(N))


def kept_pairs(selection) -> torch.Tensor:
    """The selection as an N x N mask, by the definition of the regions."""
    config, block = selection.config, selection.config.block_size
    mask = torch.zeros(N, N, dtype=torch.bool)
    for g, start in enumerate(range(0, N, config.group_size)):
        rows = slice(start, start + config.group_size)
        mask[rows, : min(block, start) if start else 0] = True
        mask[rows, start : start + config.group_size] = True
        mask[rows, selection.stripes.keys(0, 0, g).long()] = True
        mask[max(start, N - config.tail) : rows.stop, : rows.stop] = True
    return mask


@pytest.mark.parametrize("tail", [0, 90])
@pytest.mark.parametrize("step", STEPS)
def test_selection_is_that_of_the_method(prepared, step, tail):
    config = AnchorConfig(step=step, theta=3.0, tail=tail)
    found = select(prepared, config)
    q, k = (x[None, None] for x in head(N))
    _, trace = anchor_attention(q, k, k, config, SCALE, return_trace=True)
    assert found.stripes.indices.tolist() == trace.stripes.indices.tolist()
    assert found.density == pytest.approx(float(density(trace.stripes, config, N, N)))
    assert found.recall == pytest.approx(
        float(recall(q, k, trace.stripes, config, SCALE).mean()), abs=0.05
    )
    sample = sampled_recall(q, k, trace.stripes, config, views.RECALL_ROWS, SCALE)
    assert found.recall == float(sample.mean), "of few rows, but at the head's own scale"
    assert 0 < sum(found.shares) < len(found.shares), "the test needs some stripes and not all"
    last = len(trace.stripes.keys(0, 0, len(found.groups) - 1))
    assert found.shares[-1] == last / len(found.groups[-1].candidates)


@settings(max_examples=30)
@given(
    size=st.sampled_from([1, 7, 32, 100, 129, 600, 1024, N, 5000]),
    query=st.integers(-50, N + 50),
    key=st.integers(-50, N + 50),
    pairs=st.sampled_from([1, 10_000, 2**22]),
    pixels=st.sampled_from([64, 512]),
    step=st.sampled_from(STEPS),
    tail=st.sampled_from([0, 1, 90, 300, N + 1]),
)
def test_a_window_shows_the_heaviest_pair_and_the_kept_share_of_each_cell(
    prepared, exact, size, query, key, pairs, pixels, step, tail
):
    selection = select(prepared, AnchorConfig(step=step, theta=3.0, tail=tail))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "EXACT_PAIRS", pairs)
        patch.setattr(views, "PIXELS", pixels)
        view = look(prepared, selection, Window(query, key, size))
    at, cell, cells = view.window, view.cell, len(view.log_weight)
    assert cells <= pixels
    assert min(at.query, at.key) >= 0
    mask = kept_pairs(selection)
    corners = {(0, 0), (cells - 1, 0), (0, cells - 1), (cells - 1, cells - 1)}
    for i, j in corners | {(cells // 2, cells // 3)}:
        rows = slice(at.query + i * cell, at.query + (i + 1) * cell)
        keys = slice(at.key + j * cell, at.key + (j + 1) * cell)
        part = exact[rows, keys]
        if not part.numel():  # beyond the last token, where a cell is not full
            continue
        expected = part.max().float()
        torch.testing.assert_close(view.log_weight[i, j], expected, atol=4e-3, rtol=1e-3)
        # Windows run with their group, so a cell's later keys count like its earlier ones.
        if part.shape[1] == cell:
            share = mask[rows, keys].double().mean(1).max()
            assert float(view.kept[i, j]) == pytest.approx(float(share))


def test_a_window_outside_moves_inside_and_an_empty_one_is_refused(prepared):
    selection = select(prepared, AnchorConfig(step=1))
    assert look(prepared, selection, Window(9999, -5, 100)).window == Window(N - 100, 0, 100)
    with pytest.raises(ValueError, match="size of at least 1, got 0"):
        look(prepared, selection, Window(0, 0, 0))


@pytest.mark.parametrize("change", [{"step": 3}, {"block_size": 64}, {"window_blocks": 1}])
def test_sizes_that_were_not_prepared_are_refused(prepared, change):
    with pytest.raises(ValueError, match="step of 1, 2 and default sizes"):
        select(prepared, replace(AnchorConfig(step=1), **change))


def test_every_move_scores_a_bounded_number_of_pairs_at_16384_tokens():
    n, dim = 16384, 4
    q, k = head(n, dim)
    # Prepared by hand: only the shapes count here, and a dense pass would take seconds.
    small = prepare_head(q[:256], k[:256], SCALE)
    levels = [torch.zeros(1024 >> i, 1024 >> i).half() for i in range(5)]
    anchors = {step: torch.zeros(n) for step in (1, 16)}
    prepared = replace(
        small, q=q, k=k, log_sum=torch.zeros(n), anchors=anchors, levels=tuple(levels), cell=16
    )

    def pairs(action) -> float:
        with FlopCounterMode(display=False) as counter:
            action()
        return counter.get_total_flops() / (2 * dim)

    dense = n * (n + 1) / 2
    for step, theta in ((1, 9.0), (16, -math.inf), (16, math.inf)):
        config = AnchorConfig(step=step, theta=theta)
        cost = pairs(lambda config=config: select(prepared, config))
        # Pooled queries, and the rows of the sample.
        assert 0 < cost <= n / 128 * n + 2 * views.RECALL_ROWS * n < 0.04 * dense
    selection = select(prepared, AnchorConfig(theta=9.0))
    for size in (n, n // 2, 4096, 2048, 2047, 1024, 32):
        window = Window(n - size, 0, size)
        assert pairs(lambda window=window: look(prepared, selection, window)) <= 2**22
        view = look(prepared, selection, window)
        assert len(view.log_weight) <= 512
        assert len(view.log_weight) >= min(size, 256), "blurred more than it must be"


def test_the_words_of_a_small_window_are_those_of_its_stripes(prepared, capsys):
    config = AnchorConfig(step=1, theta=3.0)
    found, window = select(prepared, config), Window(query=1000, key=300, size=16)
    tokens = [f"w{j}" for j in range(N)]
    stripes = set(found.stripes.keys(0, 0, 1000 // config.group_size).tolist())
    expected = [f"w{j}" for j in range(300, 316) if j in stripes]
    assert figure.data_columns(look(prepared, found, window), tokens) == expected
    figure.show_views(prepared, found, window, tokens, "a head")
    said = capsys.readouterr().out
    assert f"the columns of {', '.join(expected) or 'nothing'}." in said
    assert f"of which {found.density:.0%} are computed" in said
