"""The page and the picture, from rows that were made up."""

import pytest
from matplotlib import pyplot as plt

from anchor_lab.experiments.side_by_side import figure, page
from anchor_lab.experiments.side_by_side.ladders import OURS

HEADS = {"q_heads": 9, "kv_heads": 3, "head_dim": 64}
ABSENT = "ModuleNotFoundError: No module named 'flash|attn'"


def row(part, method, way, ms=None, n=8192, source="planted", goal=None, **more) -> dict:
    base = {"part": part, "source": source, "n": n, **HEADS, "method": method, "way": way}
    if ms is None:
        return {**base, "goal": goal, "status": "error", "message": ABSENT, **more}
    times = {"median": ms, "p10": 0.9 * ms, "p90": 1.2 * ms, "repeats": 3}
    told = {"status": "ok", "ms": times, "error": 0.0012, "density": 0.25}
    return {**base, "goal": goal, **told, **more}


def at(method, way, ms, goal="recall 0.95", **more) -> dict:
    more = {"knob": 0.5, "recall": 0.961, "scored": 0.03, "wrong": 0.003, **more}
    return row("recall", method, way, ms, source="nine heads", goal=goal, **more)


def lost(method, setting, loss) -> dict:
    shown = {"setting": setting, "loss": loss, "kept": 0.4}
    return {"part": "loss", "n": 8192, "method": method, "status": "ok", "nats": 3 + loss, **shown}


def timed(method, way, ms, layer, knob, **more) -> dict:
    goal = None if method == "dense" else "loss at θ = 12"
    more = {} if knob is None else {"knob": knob, "scored": 0.1, **more}
    return row("equal_loss", method, way, ms, source=layer, goal=goal, **more)


ROWS = [
    row("planted", OURS, "tail 0", 1.0),
    row("planted", OURS, "tail 0", 3.0, n=16_384),
    row("planted", "dense", "cuDNN", 2.5),
    row("planted", "dense", "FlashAttention-4"),
    row("planted", "the same blocks", "FlexAttention", 7.0, density=0.997, wrong=0.001),
    row("recall", "dense", "cuDNN", 2.0, source="nine heads"),
    row("recall", "dense", "SDPA", 3.0, source="nine heads"),
    at("FlexPrefill", "FlashAttention-4", None),
    at("FlexPrefill", "FlexAttention", 4.0),
    at("FlexPrefill", "FlashInfer", 3.5),
    at(OURS, "tail 0", 1.5, knob=9.0),
    at(OURS, "tail 512", 1.75, knob=9.0),
    lost("dense", None, 0.0),
    lost(OURS, 12.0, 0.02),
    lost("XAttention", 0.9, 0.0187),
    timed("dense", "cuDNN", 2.0, "layer 3", None),
    timed("dense", "cuDNN", 4.0, "layer 9", None),
    timed("XAttention", "FlexAttention", 4.0, "layer 3", 0.9),
    timed("XAttention", "FlashInfer", 8.0, "layer 3", 0.9),
    timed("XAttention", "FlexAttention", 5.0, "layer 9", 0.9),
    timed("XAttention", "FlashInfer", 3.0, "layer 9", 0.9, density=0.45),
    timed(OURS, "tail 0", 1.0, "layer 3", 12.0),
    timed(OURS, "tail 0", 2.0, "layer 9", 12.0),
    timed(OURS, "tail 512", 2.0, "layer 3", 12.0),
    timed(OURS, "tail 512", 3.0, "layer 9", 12.0),
]
ABSENT_PACKAGES = {"flash-attn-4": "absent", "flashinfer-python": "absent"}
RESULTS = {
    "settings": {"device": "a device", "torch": "2.11", "kernels": "k", "model": "smollm2"},
    "runs": [
        {"date": "d", "command": "c", "packages": ABSENT_PACKAGES | {"flash-attn-4": "4.0"}},
        {"date": "e", "command": "c", "packages": ABSENT_PACKAGES},
    ],
    "rows": ROWS,
}


def test_planted_times_stand_by_way_and_length():
    (table,) = page.planted(ROWS)
    assert table["heads"] == "9 / 3 heads of 64"
    times = {name: cells for name, *cells in table["times"]}
    assert times["**AnchorAttention, tail 0**"] == ["1 [0.9–1.2]", "3 [2.7–3.6]"]
    assert times["cuDNN, dense"] == ["2.5 [2.25–3]", "–"]
    assert times["FlashAttention-4, dense"] == ["error", "–"]
    densities = {name: cells for name, *cells in table["densities"]}
    assert densities["FlexAttention, the same blocks"] == ["99.7 %", "–"]
    assert densities["FlashAttention-4, dense"] == ["–", "–"]


def test_inputs_for_columns_and_for_blocks_each_have_a_table():
    found = [
        row("made_for", OURS, "tail 0", 1.0, source="single keys"),
        row("made_for", "dense", "cuDNN", 2.0, source="single keys", density=1.0),
        row("made_for", "FlashPrefillV2", "FlashAttention-4", source="single keys", setting=0.1),
        row("made_for", "FlashPrefillV2", "FlexAttention", 3.0, source="single keys", setting=0.1,
            density=0.99, scored=0.004),
        row("made_for", "FlashPrefillV2", "FlexAttention", source="single keys", setting=0.6),
        row("made_for", OURS, "tail 0", 4.0, source="whole blocks"),
    ]  # fmt: skip
    keys, whole = page.input_tables(found)
    assert keys["title"] == "Single keys, 8\u202f192 tokens"
    assert keys["lines"] == [
        [OURS, "its own kernels", "25 %", "–", "1 [0.9–1.2]", "0.0012"],
        ["dense", "cuDNN", "100 %", "–", "2 [1.8–2.4]", "0.0012"],
        ["FlashPrefillV2, α = 0.1", "FlexAttention", "99 %", "0.4 %", "3 [2.7–3.6]", "0.0012"],
    ]
    assert [line[4] for line in whole["lines"]] == ["4 [3.6–4.8]"]
    assert page.input_tables(ROWS) == []


def test_at_equal_recall_the_fastest_that_ran_stands_for_a_method_and_ours_by_its_tails():
    (table,) = page.equal_recall(ROWS)
    assert table["title"] == "nine heads, 8\u202f192 tokens, recall 0.95"
    assert [(line[0], line[5], line[6]) for line in table["lines"]] == [
        ("dense", "cuDNN", "2 [1.8–2.4]"),
        ("FlexPrefill", "FlashInfer", "3.5 [3.15–4.2]"),
        ("**AnchorAttention, tail 0**", "its own kernels", "1.5 [1.35–1.8]"),
        ("**AnchorAttention, tail 512**", "its own kernels", "1.75 [1.57–2.1]"),
    ]
    assert table["lines"][1][1:5] == ["gamma 0.5", "0.961", "25 %", "3 %"]
    without, tailed = (line[2:4] for line in table["lines"][2:])
    assert without == ["0.961", "25 %"]
    assert tailed == ["–", "–"], "with a tail neither was measured"


def test_at_equal_loss_means_are_over_layers_each_with_its_fastest():
    (table,) = page.equal_loss(ROWS)
    assert table["lines"] == [
        ["dense", "", "0", "100 %", "cuDNN", "3"],
        ["XAttention", "threshold 0.9", "0.0187", "35 %", "FlexAttention, FlashInfer", "3.5"],
        ["**AnchorAttention, tail 0**", "theta 12", "0.0200", "25 %", "its own kernels", "1.5"],
        ["**AnchorAttention, tail 512**", "theta 12", "–", "–", "its own kernels", "2.5"],
    ]


def test_a_method_that_one_layer_lacks_has_no_mean():
    rows = [x for x in ROWS if (x.get("source"), x["method"]) != ("layer 9", "XAttention")]
    (table,) = page.equal_loss(rows)
    assert table["lines"][1] == ["XAttention", "", "–", "–", "nobody", "ok"]


def test_gaps_are_grouped_by_what_failed_and_how():
    model = {"part": "recall", "source": "model", "n": 1, "status": "error", "message": "no model"}
    found = page.gaps([*ROWS, model])
    message = ABSENT.replace("|", "\\|")
    assert found == [["FlashAttention-4", "planted, recall", "dense, FlexPrefill", 2, message]]
    (only,) = page.gaps([model])
    assert only == ["the model", "recall", "", 1, "no model"]


def test_the_page_names_executors_versions_and_whose_code_may_be_faster(tmp_path):
    text = page.page(RESULTS, tmp_path / "side.md")
    assert "Others' own code may be faster" in text
    assert "run it (FlashInfer, FlexAttention)" in text
    fewer = [row for row in RESULTS["rows"] if row.get("way") != "FlashInfer"]
    left_out = page.page({**RESULTS, "rows": fewer}, tmp_path / "side.md")
    assert "run it (FlexAttention; not asked for here: FlashInfer)" in left_out
    assert "flash-attn-4: 4.0, flashinfer-python: absent." in text
    assert "| XAttention | 0.9 | +0.0187 | 40 % |" in text
    assert "side.png" in text


def test_the_picture_shows_what_ran(monkeypatch):
    assert figure.data_planted(ROWS) == {
        (OURS, "tail 0"): {8192: 1.0, 16_384: 3.0},
        ("dense", "cuDNN"): {8192: 2.5},
        ("the same blocks", "FlexAttention"): {8192: 7.0},
    }
    assert figure.data_recalls(ROWS) == {
        "nine heads, 8192 tokens": {"recall 0.95": {"FlexPrefill": 3.5, OURS: 1.5}}
    }
    drawn = figure.draw(RESULTS)
    lines, bars = drawn.axes
    assert len(lines.lines) == 3
    widths = {label.get_text(): bar.get_width() for label, bar in zip(
        bars.get_yticklabels(), bars.patches, strict=True)}  # fmt: skip
    assert widths == {"FlexPrefill": 3.5, "ours": 1.5}
    plt.close(drawn)


@pytest.mark.parametrize("rows", [[], ROWS[:3], ROWS[5:12], ROWS[12:]])
def test_a_file_of_some_parts_has_a_page_and_a_picture(rows, tmp_path):
    results = {**RESULTS, "rows": rows}
    assert page.page(results, tmp_path / "side.md").startswith("# Side by side")
    plt.close(figure.draw(results))
