"""Effects of the published layout, against direct counting and against the method as written."""

import re

import nbformat
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anchor_lab.analysis import discrepancies
from anchor_ref import AnchorConfig, anchor_attention, compute_anchor
from anchor_ref.measure import dense_attention
from anchor_ref.regions import groups
from tests.brute_force import brute_force, cases, score_slack
from tests.tree import ROOT

EVERYTHING = AnchorConfig(block_size=4, step=4, theta=float("inf"))  # S = 16


def tensors(n: int, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(1, heads, n, 8, generator=random) for heads in (4, 2, 2))


@settings(max_examples=60)
@given(case=cases())
def test_the_written_layout_counts_each_kept_key_once_and_is_the_method(case):
    q, k, v, config, scale = case
    n = q.shape[2]
    k, v = k[:, :, :n], v[:, :, :n]
    out, kept, margin = brute_force(q, k, v, config, scale)
    slack = score_slack(q, k, scale, torch.float32)
    assume(margin > slack)  # nearer to θ than rounding, a key may fall either way
    counted = discrepancies.times_counted(q, k, config, groups(config, n, n), scale)
    assert (counted == kept).all()
    found = discrepancies.attend_counted(q, k, v, counted, scale)
    # A score that is off by ε moves a weight by 2ε of itself.
    allowed = (2 * slack + n * torch.finfo(torch.float32).eps) * v.abs().max()
    assert (found - out).abs().max() <= allowed


@pytest.mark.parametrize("n", [7, 16, 17, 40, 64])
def test_published_regions_overlap_and_leave_a_hole_by_definition(n):
    q, k, _ = tensors(n)
    layout = discrepancies.published_groups(EVERYTHING, n)
    counted = discrepancies.times_counted(q, k, EVERYTHING, layout)
    for i in range(n):
        start = i // 16 * 16
        for j in range(n):
            expected = (j < 16 and start > 0) + (start <= j) + (4 <= j < start - 4)
            assert (counted[:, :, i, j] == (expected if j <= i else 0)).all(), (i, j)


def test_a_key_counted_twice_weighs_as_two_equal_keys():
    q, k, v = tensors(9)
    counted = torch.ones(1, 4, 9, 9, dtype=torch.int8).tril()
    torch.testing.assert_close(
        discrepancies.attend_counted(q, k, v, counted), dense_attention(q, k, v)
    )
    counted[..., 8, 3] = 2
    twice = [0, 1, 2, 3, 3, 4, 5, 6, 7, 8]
    last = discrepancies.attend_counted(q, k, v, counted)[:, :, 8]
    expected = dense_attention(q[:, :, 8:], k[:, :, twice], v[:, :, twice])[:, :, 0]
    torch.testing.assert_close(last, expected)


def test_rounding_is_that_of_bfloat16_in_base_2():
    q, k, v = tensors(48)
    config = AnchorConfig(block_size=48 // 3, step=1)
    anchor = compute_anchor(q, k, v, config).max
    found = discrepancies.round_test(q, k, anchor, config)
    wanted, rounded = [], []
    to_base_2 = 1.4426950408889634
    for rows, last in ((slice(16, 32), 16), (slice(32, 48), 32)):
        keys = k[:, :, 16:last].repeat_interleave(2, 1)  # the first 16 are the initial region
        mean_q, mean_a = q[:, :, rows].mean(2, keepdim=True), anchor[:, :, rows].mean(2)[..., None]
        wanted.append((mean_a - (mean_q @ keys.mT)[:, :, 0] * 8**-0.5).flatten())
        mean_q = mean_q.bfloat16().float()
        scores = ((mean_q @ keys.mT)[:, :, 0] * 8**-0.5 * to_base_2).bfloat16().float()
        difference = (mean_a * to_base_2).bfloat16().float() - scores
        rounded.append((difference / to_base_2).flatten())
    torch.testing.assert_close(found.exact, torch.cat(wanted))
    # One score that lies between two bfloat16 may go to either.
    assert ((found.rounded - torch.cat(rounded)).abs() > 1e-5).float().mean() < 0.05


def test_the_grid_grows_with_the_scores_and_the_exact_test_does_not_care():
    q, k, _ = tensors(96)
    config = AnchorConfig(block_size=8, step=4)
    one = torch.ones(1, 1, 96, 1)
    errors = []
    for constant in (0, 8):
        q_up = torch.cat([q, constant * one.expand(1, 4, -1, -1)], -1)
        k_up = torch.cat([k, one.expand(1, 2, -1, -1)], -1)
        anchor = compute_anchor(q_up, k_up, k_up, config, 1.0).max
        test = discrepancies.round_test(q_up, k_up, anchor, config, 1.0)
        errors.append((test.exact - test.rounded).abs().mean())
        if constant == 0:
            plain = test.exact
    torch.testing.assert_close(test.exact, plain, atol=1e-4, rtol=0)
    assert errors[1] > 2 * errors[0]


@given(n=st.integers(1, 200), size=st.integers(1, 40))
def test_rows_are_written_once_but_for_whole_groups(n, size):
    sparse, dense = discrepancies.written_rows(n, size)
    if n % size:
        assert [*sparse, *dense] == list(range(n))
        assert len(dense) == n % size
        pairs = sum(i + 1 for i in range(n - n % size, n)) / sum(range(1, n + 1))
        assert discrepancies.dense_share(n, size) == pytest.approx(pairs)
    else:
        assert len(sparse) == len(dense) == 0
        assert discrepancies.dense_share(n, size) == 0


def test_memory_is_that_of_the_tensors():
    # Llama-3.1-8B's heads at 128k: the dense buffer is 1 GiB.
    found = discrepancies.memory(131072, 32, 8, 128, 0.1)
    assert found["published"] == {"keys and values": 2**31, "selection": 2**30}
    assert found["project"]["keys and values"] == 2**29
    # And on a small scale that of a real plan, all candidates selected.
    q, k, v = tensors(90)
    _, trace = anchor_attention(q, k, v, EVERYTHING, return_trace=True)
    plan = trace.stripes
    held = plan.indices.nbytes + plan.counts.nbytes + plan.offsets.nbytes
    wanted = discrepancies.memory(90, 4, 2, 8, 1.0, EVERYTHING)["project"]
    mean_queries = sum(  # of 8 numbers, and an anchor: float32
        q[:, :, block.start : block.stop].mean(2).nbytes + 4 * q.shape[1]
        for group in groups(EVERYTHING, 90, 90)
        for block in group.blocks
    )
    assert wanted["selection"] == held + plan.indices.numel() / 8 + mean_queries
    assert wanted["keys and values"] == 2 * k.numel() * 2


@pytest.mark.parametrize("name", ["15_method_and_code"])
def test_tests_named_in_the_notebooks_exist(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    sections = [x for x in words.split("\n## ") if "**What to notice.**" in x]
    assert len(sections) == 6, [x[:40] for x in sections]
    for section in sections:
        named = re.findall(r"`(tests/[\w/]+\.py): (test_\w+)`", section)
        assert named, f"no test guards: {section[:80]}"
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{file}: {test}"
