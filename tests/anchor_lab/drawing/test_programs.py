"""The numbers behind the figures of notebooks 09 to 11, counted by hand or one by one."""

import re

import nbformat
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from anchor_lab.drawing import programs, style
from anchor_models import planted_stripes
from anchor_ref import AnchorConfig, compute_anchor
from tests.tree import ROOT

N, TILE = 150, 8  # a ragged last group, and a ragged last tile
CONFIG = AnchorConfig(block_size=16, step=3, init_blocks=1, window_blocks=1)


def seen_in_stage_1(row: int) -> set[int]:
    """Initial region and window of a query, as the method words them."""
    size, block = CONFIG.group_size, CONFIG.block_size
    window = max(0, row // size * size - CONFIG.window_blocks * block)
    return set(range(min(CONFIG.init_blocks * block, row + 1))) | set(range(window, row + 1))


@pytest.mark.parametrize("first_row", range(0, N, TILE))
def test_loaded_tiles_hold_what_the_rows_see_and_each_key_once(first_row):
    data = programs.data_stage1_loads(CONFIG, N, first_row, TILE)
    loaded = [key for start, end, _ in data["tiles"] for key in range(start, end)]
    first, end = data["rows"].tolist()
    assert (first, end) == (first_row, min(first_row + TILE, N))
    assert len(loaded) == len(set(loaded))
    assert set(loaded) == set().union(*(seen_in_stage_1(row) for row in range(first, end)))


def test_tiles_that_may_need_a_mask_come_first():
    data = programs.data_stage1_loads(CONFIG, N, first_row=112, tile=TILE)
    window = [(start, start + 8, "window") for start in (112, 104, 96, 88, 80)]
    assert data["tiles"] == [(0, 8, "initial"), (8, 16, "initial"), *window]


def test_headroom_is_the_largest_score_over_that_of_the_masked_tiles():
    inputs = planted_stripes(N, q_heads=4, kv_heads=2, head_dim=16, density=0.1)
    data = programs.data_headroom(inputs.q[0], inputs.k[0], CONFIG, 0.25, TILE)
    for head, row in ((0, 0), (1, 40), (2, 47), (3, 101), (2, 149)):
        scores = 0.25 * inputs.k[0, head // 2].double() @ inputs.q[0, head, row].double()
        seen = seen_in_stage_1(row)
        window = max(0, row // 48 * 48 - 16)
        masked = {key for key in seen if key < min(16, window) or key >= row // 8 * 8}
        # A weight of 2^headroom, in powers of two.
        expected = (scores[sorted(seen)].max() - scores[sorted(masked)].max()) * 1.4426950408889634
        assert data["headroom"][head, row].item() == pytest.approx(expected.item(), abs=1e-5)
    assert data["headroom"].shape == (4, N)
    assert data["headroom"].max() > 1  # the planted keys of the window
    assert data["position"].tolist() == list(range(N))


def test_the_limits_shown_are_those_of_the_kernels():
    pytest.importorskip("triton", reason="Triton has wheels for Linux only")
    from anchor_kernels.online_softmax import weight_limit

    for names, power in programs.LIMITS.items():
        for name in names.split(" and "):
            assert weight_limit(getattr(torch, name)) == 2.0**power


def test_chunks_hold_each_candidate_of_a_group_once():
    kept = [torch.tensor([g + 20], dtype=torch.int32) for g in range(4)]
    data = programs.data_chunks(CONFIG, N, 40, kept)
    # Candidates end one block before the group.
    assert data["chunks"] == [(1, 16, 32), (2, 16, 56), (2, 56, 80), *LAST_GROUP]
    assert [keys.tolist() for keys in data["kept"]] == [[20], [21], [22], [23]]
    assert data["groups"][3] == (144, 150, 16, 128)


LAST_GROUP = [(3, 16, 56), (3, 56, 96), (3, 96, 128)]


def test_two_parts_lose_nothing_where_one_loses_half_a_unit():
    # bfloat16 has 8 bits: 1 + 2^-9 becomes 1, and the rest fits exactly. The key becomes 3.
    pooled, k = torch.tensor([[1 + 2.0**-9]]), torch.tensor([[3 + 2.0**-8], [-1.0]])
    error = programs.data_split_error(pooled, k, 0.5, torch.bfloat16)
    assert error["rounded"].tolist() == [0.5 * 2.0**-9, 1.5 * 2.0**-9]
    assert error["split"].tolist() == [0.0, 0.0]
    assert error["float32"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_errors_of_rounded_means_stay_within_their_bounds(dtype, bits):
    random = torch.Generator().manual_seed(0)
    pooled, k = (torch.randn(n, 64, generator=random) for n in (16, 300))
    error = programs.data_split_error(pooled, k, 0.125, dtype)
    rounded = k.to(dtype).double()
    largest = (0.125 * pooled.double().abs() @ rounded.abs().T).max()
    sums = 2 * 64 * 2.0**-24
    assert error["rounded"][-1] <= largest * (2.0**-bits + sums)
    assert error["split"][-1] <= largest * (2.0 ** (-2 * bits) + 2.0**-24 + sums)
    assert error["float32"][-1] <= largest * sums
    assert error["rounded"].median() > 50 * error["split"].median()
    assert all((x.diff() >= 0).all() for x in error.values())


def test_three_lists_by_hand():
    lists = [[0, 1, 0, 0, 1, 1, 0, 0], [0] * 8, [1, 0, 0, 1, 0, 0, 0, 1]]
    data = programs.data_compaction(torch.tensor(lists).bool())
    assert data["words"].tolist() == [2 + 16 + 32, 0, 1 + 8 + 128]
    assert data["counts"].tolist() == [3, 0, 3]
    assert data["starts"].tolist() == [0, 3, 3]
    assert data["places"][0].tolist() == [-1, 0, -1, -1, 1, 2, -1, -1]
    assert data["places"][2].tolist() == [3, -1, -1, 4, -1, -1, -1, 5]


def test_gathered_slots_hold_the_stripes_in_order():
    keys = torch.tensor([17, 18, 40, 77, 79], dtype=torch.int32)
    data = programs.data_gather(CONFIG, N, 2, keys, tile=4)
    assert data["slots"].tolist() == [[17, 18, 40, 77], [79, -1, -1, -1]]
    assert data["bounds"].tolist() == [16, 80, 144]
    whole = programs.data_gather(CONFIG, N, 2, keys[:4], tile=4)
    assert whole["slots"].tolist() == [[17, 18, 40, 77]]


def test_a_schedule_by_hand():
    work = torch.tensor([1, 1, 3])
    natural = programs.data_schedule(work, 2, torch.tensor([0, 1, 2]))
    assert natural["start"].tolist() == [0, 0, 1]
    assert natural["end"].tolist() == [1, 1, 4]
    assert natural["processor"].tolist() == [0, 1, 0]
    longest = programs.data_schedule(work, 2, torch.tensor([2, 0, 1]))
    assert longest["end"].tolist() == [1, 2, 3]


@given(
    work=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    processors=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_schedules_keep_every_processor_busy_until_nothing_waits(work, processors, seed):
    work = torch.tensor(work)
    order = torch.randperm(len(work), generator=torch.Generator().manual_seed(seed))
    data = programs.data_schedule(work, processors, order)
    assert torch.equal(data["end"] - data["start"], work)
    assert (data["start"][order].diff() >= 0).all()  # handed out in order
    for time in range(int(data["end"].max())):
        running = (data["start"] <= time) & (time < data["end"])
        assert len(data["processor"][running].unique()) == running.sum()  # one at a time
        if (data["start"] > time).any():
            assert running.sum() == processors


def test_every_figure_draws():
    style.use_style()
    inputs = planted_stripes(N, q_heads=2, kv_heads=1, density=0.1)
    q, k = inputs.q[0], inputs.k[0]
    state = compute_anchor(inputs.q, inputs.k, inputs.v, CONFIG)
    assert state.max.isfinite().all()
    keys = torch.tensor([20, 21, 60], dtype=torch.int32)
    programs.show_stage1_loads(programs.data_stage1_loads(CONFIG, N, 112, TILE), "here")
    programs.show_headroom(programs.data_headroom(q, k, CONFIG, 0.125, TILE), "here")
    programs.show_chunks(programs.data_chunks(CONFIG, N, 40, [keys] * 4), "here")
    errors = {
        dtype: programs.data_split_error(q[0, :4], k[0], 0.125, dtype)
        for dtype in (torch.float16, torch.bfloat16)
    }
    programs.show_split_errors(errors, "here")
    programs.show_compaction(programs.data_compaction(torch.eye(3, 8).bool()), "here")
    programs.show_gather(programs.data_gather(CONFIG, N, 2, keys, tile=8), "here")
    schedule = programs.data_schedule(torch.tensor([2, 0, 5]), 2, torch.arange(3))
    programs.show_schedules({"one order": schedule, "another": schedule})
    assert not plt.get_fignums()


@pytest.mark.parametrize("number", ["09", "10", "11"])
def test_functions_that_the_notebooks_name_exist(number):
    """Written `file.py: function` in the text; kernels are tuned and renamed, text is not run."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    named = re.findall(r"`([\w/]+\.py): (\w+)`", text)
    assert len(named) >= 4
    for file, name in named:
        folder = ROOT if "/" in file else ROOT / "kernels" / "anchor_kernels"
        assert re.search(rf"^(def|class) {name}\b", (folder / file).read_text(), re.M), name
