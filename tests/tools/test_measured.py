"""Tables of docs/measured.md are those that the committed results make."""

import pandas
import pytest

from tests.tools.made_up import losses
from tools import measured


def results(*ms):
    settings = {"device": "GPU", "torch": "2", "triton": "3", "kernels": "abc"}
    cells = []
    for n, ours, theirs in ms:
        for method, time in (("anchor", ours), ("sdpa-cudnn", theirs), ("sdpa-flash", None)):
            cell = {"source": "planted", "layer": None, "n": n, "density": 0.05, "run": 0}
            said = {"status": "skipped"} if time is None else {"status": "ok"}
            cells.append({**cell, **said, "method": method, "ms": {"median": time}, "kept": 0.067})
    return {"settings": settings, "runs": [{"date": "2026-01-01"}], "rows": cells}


def test_speeds_are_those_measured():
    long = (131_072, 23.6, 238.0)
    said = measured.speed(
        results((4096, 4.0, 1.0), (16_384, 2.0, 4.0), long), results((16_384, 8.0, 4.0), long)
    )
    assert "| 16\u202f384 | 6.7 % | 2 ms | 4 ms | – | 2.0 |" in said
    assert "| 131\u202f072 | 6.7 % | 23.6 ms | 238 ms | – | 10.1 |" in said
    assert "4096" not in said
    assert "GPU, 2026-01-01, torch 2, Triton 3, kernels abc;" in said
    assert "overtakes cuDNN at 10\u202f300 tokens" in said
    assert "another machine, with one GPU, did so at 26\u202f500" in said


def test_times_of_several_runs_are_not_one_table():
    mixed = results((16_384, 2.0, 4.0), (131_072, 23.6, 238.0))
    mixed["rows"][0]["run"] = 1
    with pytest.raises(ValueError, match="lengths must be of one run, got runs"):
        measured.speed(mixed, results((16_384, 2.0, 4.0), (131_072, 23.6, 238.0)))
    with pytest.raises(ValueError, match="lengths must be of one run, got runs"):
        measured.speed(results((16_384, 2.0, 4.0), (131_072, 23.6, 238.0)), mixed)


def test_choices_are_those_measured():
    measures = ("recall_mean", "recall_p10", "recall_min", "executed_density", "output_error")
    rows, cells = [], []
    for number, method in enumerate(measured.METHODS):
        for density, recall in ((0.4, 0.8), (0.6, 0.9 + number / 1000), (0.8, 1.0)):
            row = {"text": "document", "method": method, "configuration": f"{density}", "n": 4096}
            row |= {"layer": 0, "head": 0, "knob": "x", "value": density, "order": 0}
            row |= {"density": density, "total_cost": density, "identification_cost": 0.0}
            rows.append(row | dict.fromkeys(measures, recall))
        cell = {"length": 8192, "row": method, "task": "a", "density": 0.5, "kept": 0.5}
        cells.append({**cell, "right": number, "asked": 10, "prompts": 10})
    for name, right in (("Dense", 9), ("AnchorAttention, θ = −∞", 3)):
        cells.append({**cells[0], "row": name, "density": None, "right": right})
    for row in rows:  # whose tiles hold what it does not keep
        row["executed_density"] = row["density"] + 0.1 * (row["method"] == "VerticalSlash")
    said = measured.choice(pandas.DataFrame(rows), cells)
    assert "| AnchorAttention | 0.850 | 70 % | 0 % (0–28) |" in said
    assert "| FlexPrefill | 0.851 | 70 % | 20 % (6–51) |" in said
    assert "dense attention finds 90 %" in said
    assert "initial region and window alone find 30 %" in said
    assert "the recall of vertical-slash (MInference) is 0.800 in place of 0.851; the" in said
    assert "others in the table lose 0.000 to 0.000" in said


def test_layers_are_medians_and_heads_are_means():
    rows = [
        {
            "part": "heads",
            "length": 8192,
            "text": text,
            "layer": layer,
            "floor": 0.3,
            "density": [0.3, density],
            "recall": [0.5, 0.9],
            "recall_p10": [0.5, 0.8],
            "error": [0.1, 0.1],
            "recall_least": [0.1, 0.1],
            "density_most": [1, 1],
            "error_most": [1, 1],
        }
        for text in ("code", "chat")
        for layer, density in ((0, 0.2), (1, 0.7))
    ]
    ways = {"AnchorAttention, tail 512": [4.0, 2.0, 9.0], "cuDNN": [1.0, 3.0, 2.0]}
    for n in (8192, 65_536):  # of the second no head was looked at
        time = {"part": "times", "length": n, "status": "ok"}
        rows += [{**time, "way": way, "layers_ms": ms} for way, ms in ways.items()]
    settings = {"device": "GPU", "torch": "2", "kernels": "abc", "thetas": [None, 12.0]}
    said = measured.layers({"settings": settings, "rows": rows})
    assert "GPU, torch 2, kernels abc, θ = 12." in said
    assert "means over all heads and code, chat;" in said
    assert "| 8\u202f192 | 45 % | 0.900 | 4 ms | 2 ms | 0.50 |" in said
    assert "65\u202f536" not in said


def test_each_text_says_what_it_loses_and_how_much_of_it_is_looked_up():
    files = [losses(8192), losses(8192, texts=("lorna_doone",))]
    said = measured.lost(files)
    *three, novel = [line for line in said.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0] for line in three] == ["| prose", "| code", "| chat"]
    # Of ten tokens of `made_up` seven are new.
    assert novel == "| a novel | 30 % | 60 % / 20 % | 0.200 / 0.300 | number 3 of 4 |"
    assert "The same model, 8\u202f192 tokens of each text" in said


def test_where_texts_differ_in_length_each_says_its_own_the_shorter_first():
    said = measured.lost([losses(32_768), losses(8192, texts=("lorna_doone",))])
    novel, *three = [line for line in said.splitlines() if line.startswith("| ")][2:]
    assert novel.startswith("| a novel, 8\u202f192 tokens | 30 % |")
    assert three[0].startswith("| prose, 32\u202f768 tokens | 30 % |")
    assert "The same model, 8\u202f192 or 32\u202f768 tokens of each text" in said


def test_a_models_own_activations_are_counted_layer_by_layer():
    long = (131_072, 23.6, 238.0)
    own = results((16_384, 2.0, 4.0), long)
    for layer, ours, kept in ((0, 2.0, 0.7), (1, 0.5, 1.0), (2, 3.0, 0.9)):
        for method, ms in (("anchor", ours), ("sdpa-cudnn", 1.0)):
            cell = {"source": "bundled", "layer": layer, "n": 8192, "density": None, "run": 0}
            cell |= {"status": "ok", "method": method, "ms": {"median": ms}, "kept": kept}
            own["rows"].append(cell)
    said = measured.speed(own, results((16_384, 8.0, 4.0), long))
    assert "keeps 70 % to 100 % of the pairs, it is slower than cuDNN in 2 of 3 layers" in said
    assert "(8\u202f192 tokens)" in said
    none = measured.speed(results((16_384, 2.0, 4.0), long), results((16_384, 8.0, 4.0), long))
    assert "slower than cuDNN in" not in none


def test_a_cpu_s_ratios_are_those_measured():
    rows = [{"n": 8192, "ratio": 0.46}, {"n": 16_384, "ratio": 0.265}]
    runs = [{"device": "CPU", "threads": 2}]
    said = measured.reference({"settings": {}, "runs": runs, "rows": rows})
    assert "On a CPU (CPU, 2 threads) the reference takes 0.46 of the time" in said
    assert "at 8\u202f192 tokens, 0.27 at 16\u202f384 (3 % planted" in said
