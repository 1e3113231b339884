"""The benchmark of many ranks: every part on one rank, a quick run on two, and the page."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from anchor_lab.experiments.page import spaced
from anchor_lab.experiments.parallel import measure as parallel
from anchor_lab.experiments.parallel import page
from anchor_lab.experiments.parallel.page import EXPERIMENT
from anchor_lab.experiments.parallel.whole_models import MODES, WAYS
from anchor_lab.experiments.store import Store, read
from anchor_models.parallel.cost import LLAMA_8B, ModelShape, bytes_sent, memory
from tests.tree import RESULTS

COMMITTED = RESULTS / "parallel" / "parallel.json"
BUNDLED = ModelShape(8, 256, 704, 8, 2, 64, 4096, tied=True)
RUN = {"date": "2026-01-01", "command": "python -m anchor_lab parallel"}


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The file that a quick run on two processes writes."""
    out = tmp_path_factory.mktemp("quick") / "new" / "parallel.json"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        assert EXPERIMENT.run(["--quick", "--out", str(out)]) == 0
    return out


def part(rows: list[dict], name: str) -> list[dict]:
    return [row for row in rows if row["part"] == name]


def one(rows: list[dict], **fields) -> dict:
    (found,) = [row for row in rows if fields.items() <= row.items()]
    return found


def prefill(mode: str, seconds: float, attention_ms: list[float], **more) -> dict:
    """A made-up row of AnchorAttention."""
    return {
        "part": "prefill",
        "model": "m",
        "tokens": 4096,
        "mode": mode,
        "attention": "anchor_attention",
        "tail": 512,
        "refused": None,
        "seconds": seconds,
        "checks": 0.5 if mode == "sequence" else None,
        "peak": [3 * 2**30, 2**30],
        "paper": 2.0**31,
        "sent": [2.0**30, 2.0**29],
        "attention_ms": attention_ms,
        "waits_ms": [0.0, 20.0],
        "exchange_ms": [None, None],
        **more,
    }


def results(*rows: dict) -> dict:
    settings = {"ranks": 2, "repeats": 3, "device": "GPU", "torch": "2"}
    return {"settings": settings, "runs": [RUN], "rows": list(rows)}


@pytest.mark.usefixtures("one_rank")
def test_one_rank_is_one_process_and_a_run_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    sizes = replace(parallel.QUICK, check=140, lengths=(), text=(), random=(150,))
    out, cpu = tmp_path / "a.json", torch.device("cpu")
    store = Store(out, parallel.KEY, {}, RUN)
    parallel.collect(store, sizes, cpu)
    found = part(store.rows, "logits")
    assert {(row["model"], row["mode"]) for row in found} >= {
        (model, mode)
        for model in ("bundled, float32", "random")
        for mode in ("sequence", "tensor")
    }
    for row in found:
        assert row["difference"][0] < 1e-3
        assert row["same token"] == [1]
    for row in part(store.rows, "prefill"):
        assert row["sent"] == [0]
        assert row["waits_ms"] == [0]
    paper = memory(sizes.shape, "tensor", 150, 1, 0.0, element=4)
    row = one(store.rows, part="prefill", mode="tensor", attention="sdpa")
    assert row["paper"] == paper["at once"] - paper["keys and values of all layers"]
    for name in ("check", "of_model"):  # what is there is not measured again
        monkeypatch.setattr(parallel, name, lambda *_: pytest.fail("measured again"))
    again = Store(out, parallel.KEY, {}, RUN)
    parallel.collect(again, replace(sizes, lengths=(140,)), cpu)
    assert [row["part"] for row in again.rows[len(store.rows) :]] == ["attention"]
    assert again.rows[-1]["difference"] == [0]


def test_a_quick_run_measures_every_field_on_two_processes(quick):
    found = read(quick)
    rows = found["rows"]
    assert found["settings"]["ranks"] == 2
    cases = [(row["mode"], row["attention"], row["tail"]) for row in part(rows, "prefill")]
    every = [
        (mode, way, tail) for mode in MODES for way, tail in zip(WAYS, (None, 40), strict=True)
    ]
    every += [(mode, WAYS[1], 0) for mode in MODES]
    assert sorted(cases, key=str) == sorted(
        every + [x for x in every if x[0] != "tensor"] + [("tensor", "any", None)], key=str
    )
    for row in part(rows, "prefill"):
        for name in ("sent", "attention_ms", "waits_ms", "exchange_ms", "peak"):
            assert row["refused"] or len(row[name]) == 2
        assert row["refused"] or (row["checks"] is not None) == (row["mode"] == "sequence")
        timed = not row["refused"] and None not in row["exchange_ms"]
        assert timed == (row["mode"] == "sequence")


def test_both_ranks_have_the_logits_of_one_process(quick):
    for row in part(read(quick)["rows"], "logits"):
        assert len(row["difference"]) == 2
        assert max(row["difference"]) < 1e-3
        assert row["same token"] == [1, 1]


def test_heads_that_two_ranks_cannot_split_are_refused_in_words_and_run_by_tokens(quick):
    rows = part(read(quick)["rows"], "prefill")
    refused = one(rows, model="random", mode="tensor")
    assert refused["refused"] == (
        "query heads must be a multiple of the 2 ranks that share them, got 9"
    )
    assert one(rows, model="random", mode="sequence", attention="sdpa")["seconds"] > 0
    assert refused["refused"] in quick.with_suffix(".md").read_text()


def test_bytes_are_those_of_the_formulas(quick):
    rows = part(read(quick)["rows"], "prefill")
    n = parallel.QUICK.text[0]
    told = 5000  # what the ranks say about their shapes, in bytes
    for mode in ("sequence", "tensor"):
        row = one(rows, model="bundled", mode=mode, attention="sdpa")
        layers = n * BUNDLED.layers * bytes_sent(BUNDLED, mode, 2, element=4)
        # Beside the layers of tensor parallel: a sum of embeddings, and logits of one token.
        more = 2 * 4 * n * 256 + 4 * 4096 if mode == "tensor" else 0
        assert layers + more <= sum(row["sent"]) < layers + more + told
    assert one(rows, model="bundled", mode="one", attention="sdpa")["sent"] == [0, 0]


def test_answers_of_all_ways_are_those_of_one_process(quick):
    written = {(row["mode"], row["written"]) for row in part(read(quick)["rows"], "answers")}
    assert {mode for mode, _ in written} == set(MODES)
    assert len({words for _, words in written}) == 1


def test_the_committed_page_is_that_of_the_committed_numbers():
    committed = COMMITTED.with_suffix(".md")
    assert committed.read_text() == EXPERIMENT.page(read(COMMITTED), committed)


def test_the_page_sets_each_way_beside_one_gpu_with_the_same_tail():
    rows = [
        prefill("one", 8.0, [100.0, 100.0]),
        prefill("one", 1.0, [90.0, 90.0], tail=0),
        prefill("sequence", 4.0, [60.0, 40.0]),
        prefill("sequence", 0.5, [55.0, 38.0], tail=0),
    ]
    found = page.values(results(*rows))
    assert [line[5] for line in found["prefills"]] == ["1.00 ×", "2.00 ×"]
    # Alone nobody waits, whatever the times differ by.
    assert found["spread"][0][4:8] == ["100 / 100", "1.000", "0 / 20", "–"]
    assert found["prefills"][1][6:] == ["3.00 / 1.00", "2.00", "1.000 / 0.500"]
    # 60 over 50 on average; a mean wait of 10 ms in 4 s.
    assert found["spread"][1][4:8] == ["60 / 40", "1.200", "0 / 20", "0.25 %"]
    # One GPU takes 1 s without a tail and 8 s with it, two 0.5 and 4.
    assert found["tails"][1][3:] == ["55 / 38", "5.00 / 2.00", "3500.0", "2.00 ×", "2.00 ×"]
    assert found["tail_beside_one"] == [0.5]  # 5 ms on the busiest rank, 10 alone
    assert found["checks"] == [("m", "4\u202f096", "500")]


def test_other_pages_get_seconds_memory_and_what_was_refused():
    refused = prefill("tensor", 0.0, [], attention="any", tail=None, refused="no such heads")
    rows = [prefill("one", 8.0, []), prefill("sequence", 4.0, []), refused]
    said = page.in_short(results(*rows))
    assert "| 8.000 s, 3.0 GiB | 4.000 s, 3.0 GiB | refused |" in said
    assert 'Tensor parallel refuses m: "no such heads".' in said
    assert "1.5 to 1.5 times" in page.beyond_paper(results(*rows))
    assert page.beyond_paper(results()) == ""
    assert "not measured" in page.in_short(results())


def test_a_page_of_half_a_run_leaves_out_what_is_not_there():
    said = EXPERIMENT.page(results(prefill("one", 8.0, [1.0, 1.0])), Path())
    assert "## Prefills" in said
    assert "## Logits" not in said


def test_the_answers_table_holds_whatever_a_model_writes_and_says_what_was_not_answered():
    row = {"part": "answers", "model": "m", "tokens": 4096, "mode": "one", "attention": "sdpa"}
    row |= {"tail": None, "answer": "12345", "written": " 1.\n|x|", "found": False}
    said = EXPERIMENT.page(results(row), Path())
    assert r"| m | 4 096 | sdpa | 1 GPU | ` 1.\n\|x\|` | 12345 |" in said.splitlines()
    assert "of 4 096 tokens it answers none of them" in said
    assert "loses the answer on one GPU" not in said
    assert "none of them" not in EXPERIMENT.page(results(row | {"found": True}), Path())
    other = row | {"attention": "anchor_attention"}  # the prompt was not chosen by it
    assert "none of them" not in EXPERIMENT.page(results(other), Path())


def test_a_quick_page_does_not_speak_of_the_models_of_the_large_one(quick):
    said = quick.with_suffix(".md").read_text()
    assert "Small models, to see that it runs." in said
    assert "SmolLM2" not in said
    assert "of the 32 layers" not in said


def test_paper_knows_the_rank_with_the_most_heads():
    nine = ModelShape(1, 72, 96, 9, 3, 8, 99)
    even = ModelShape(1, 72, 96, 10, 10, 8, 99)
    name = "anchors, and sums of weights"
    assert memory(nine, "sequence", 64, 2, 0.0)[name] == memory(even, "sequence", 64, 2, 0.0)[name]
    assert memory(LLAMA_8B, "sequence", 64, 2, 0.0)[name] == 8 * 64 * 16


def test_what_goes_wrong_on_a_rank_is_the_exit_status_and_no_page_is_written(
    tmp_path, monkeypatch
):
    ended = subprocess.CompletedProcess([], returncode=3)
    monkeypatch.setattr(parallel.subprocess, "run", lambda *_, **__: ended)
    assert EXPERIMENT.run(["--quick", "--out", str(tmp_path / "parallel.json")]) == 3
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_the_large_run_does_not_begin(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert EXPERIMENT.run(["--out", str(tmp_path / "a.json")]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_answer_that_is_lost_on_one_gpu_is_not_blamed_on_sharing():
    def row(attention, mode, n, found):
        return {"part": "answers", "model": "m", "tokens": n, "mode": mode, "found": found,
                "attention": attention}  # fmt: skip

    lost = row("anchor_attention", "one", 4096, False)
    assert page.lost_on_one([row("sdpa", "one", 4096, True), lost]) == [spaced(4096)]
    assert page.lost_on_one([row("sdpa", "one", 4096, False), lost]) == []
    shared = row("anchor_attention", "sequence", 8192, False)
    assert page.lost_on_one([row("sdpa", "one", 8192, True), shared]) == []
