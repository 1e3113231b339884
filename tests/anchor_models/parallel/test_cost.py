"""The page on paper: its tables are the formulas', and the formulas hold where one can count."""

import re

import pytest

from anchor_models import load_bundled
from anchor_models.parallel.cost import (
    GIB,
    LLAMA_8B,
    ModelShape,
    bytes_sent,
    memory,
    tables,
    work,
)
from anchor_ref import AnchorConfig
from anchor_ref.regions import groups
from tests.tree import ROOT

PAGE = ROOT / "docs" / "memory_and_communication.md"
N = 2**20


def test_the_tables_of_the_page_are_recomputed():
    stored = re.search(r"<!-- tables -->\n(.*)<!-- /tables -->", PAGE.read_text(), re.DOTALL)
    assert stored.group(1) == tables()


def test_numbers_of_the_text_are_those_of_the_tables():
    text = PAGE.read_text().replace("\n", " ")
    sequence, tensor = (bytes_sent(LLAMA_8B, mode, 8) for mode in ("sequence", "tensor"))
    assert f"{tensor / sequence:.1f} times as much" in text
    flop = work(LLAMA_8B, N, 0.05)
    assert f"{flop['attention, dense'] / flop['attention, anchor']:.0f} times less" in text
    one = memory(LLAMA_8B, "sequence", N, 1, 0.05)
    assert f"{one['at once'] / GIB:.0f} GiB on one GPU" in text
    assert f"{one['keys and values of all layers'] / N / 1024:.0f} KiB a token" in text


def test_parameters_are_those_of_the_model():
    model = load_bundled()[0]
    shape = ModelShape.of(model.config)
    parameters = shape.matrices + shape.embeddings + shape.norms
    assert parameters == sum(x.numel() for x in model.parameters())
    # Published sizes of the 8B model: 8.03 billion parameters.
    assert LLAMA_8B.matrices + LLAMA_8B.embeddings + LLAMA_8B.norms == 8_030_261_248


def test_memory_by_hand_for_a_small_case():
    shape = ModelShape(2, 8, 24, 4, 2, 2, 10)
    n = 4096  # two groups; the second chooses among 2048 − 128 keys
    found = memory(shape, "sequence", n, 2, 0.5)
    assert found["keys and values of all layers"] == 2 * 2 * 2 * 2 * 2048 * 2
    assert found["hidden states, before and after a norm"] == 2 * 8 * 2048 * 2
    assert found["q, k, v and output of one layer"] == 2 * (4 + 4 + 2 + 2) * 2 * 2048 * 2
    assert found["gate and up of the MLP"] == 2 * 24 * 2048 * 2
    lists = 4 * 960 + 12 * 2 + 1920 / 8
    assert found["mean queries and lists of stripes"] == 2 * (lists + 32 * 4 * (2 + 1))
    # 512 rows: an output of 2 bytes an element, and a float32 that says what it weighs.
    assert found["candidates' part of the tail's rows"] == 2 * 512 * (2 * 2 + 4)
    split = memory(shape, "tensor", n, 2, 0.5)
    assert split["hidden states, before and after a norm"] == 2 * 8 * 4096 * 2
    assert split["q, k, v and output of one layer"] == (4 + 4 + 2 + 2) * 2 * 2048 * 2
    # Half of them, 2 bytes each; embedding and output layer are 10 · 8 each.
    assert found["weights"] - split["weights"] == shape.matrices + 2 * 10 * 8


def test_one_rank_sends_nothing():
    assert bytes_sent(LLAMA_8B, "sequence", 1) == bytes_sent(LLAMA_8B, "tensor", 1) == 0
    with pytest.raises(ValueError, match="mode must be 'sequence' or 'tensor', got 'ring'"):
        bytes_sent(LLAMA_8B, "ring", 8)


def test_bytes_by_hand_where_ranks_share_a_kv_head():
    shape = ModelShape(2, 8, 24, 4, 2, 2, 10)
    # Four ranks hold two copies of each of 2 kv heads: 4 heads each of q, k, v and output.
    assert bytes_sent(shape, "sequence", 4, element=4) == 4 * 2 * (4 + 4 + 4 + 4) * 3 / 4
    assert bytes_sent(shape, "tensor", 4, element=4) == 4 * 4 * 8 * 3
    # Copies are for a layer while it runs: of all layers a rank keeps its own tokens, no copies.
    kept = memory(shape, "sequence", 4096, 4, 0.5)["keys and values of all layers"]
    assert kept == 2 * 2 * 2 * 2 * (4096 / 4) * 2
    half, full = (memory(shape, "sequence", 4096, 2, 0.5, element=size) for size in (2, 4))
    for part in ("weights", "keys and values of all layers", "q, k, v and output of one layer"):
        assert full[part] == 2 * half[part]
    lists = "mean queries and lists of stripes"  # float32 and integers
    assert full[lists] == half[lists]


def test_work_counts_the_pairs_that_are_kept():
    n, config = 8192, AnchorConfig()
    layout = groups(config, n, n)
    always = sum(
        row + 1 if row >= n - 512 else len(group.init) + row + 1 - group.window_start
        for group in layout
        for row in group.rows
    )
    pooled = sum(len(group.blocks) * len(group.candidates) for group in layout)
    flop = work(ModelShape(1, 1, 1, 1, 1, 1, 1), n, 0.0)
    assert flop["attention, dense"] == 4 * n * (n + 1) / 2
    assert flop["attention, anchor"] == pytest.approx(4 * always + 2 * pooled)
    everything = work(ModelShape(1, 1, 1, 1, 1, 1, 1), n, 1.0)
    assert everything["attention, anchor"] == pytest.approx(4 * n * (n + 1) / 2 + 2 * pooled)
