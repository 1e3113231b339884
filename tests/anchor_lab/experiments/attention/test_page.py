"""The tables and the figure of the GPU benchmark: what they say about results that are known."""

from math import inf, isclose
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from anchor_lab.experiments.attention import cells, figure
from anchor_lab.experiments.attention.measure import KEY
from anchor_lab.experiments.attention.page import EXPERIMENT, page, values
from anchor_lab.experiments.store import read, write_json
from tests.anchor_lab.experiments.attention.test_measure import ABOUT, RUN, SETTINGS
from tests.tree import RESULTS

FOLDER = RESULTS / "attention"


def table(results: dict) -> str:
    """The page, of a file that lies alone."""
    return page(results, Path("nowhere") / "a.md")


def of_ratios(ratios: list[float]) -> tuple[dict[int, float], dict[int, float]]:
    lengths = [1000 * 2**i for i in range(len(ratios))]
    return dict(zip(lengths, ratios, strict=True)), dict.fromkeys(lengths, 1.0)


def test_break_even_of_power_laws_is_their_crossing():
    ours, theirs = ({n: time(n) for n in (8192, 1024, 2048, 4096)} for time in (linear, square))
    assert isclose(cells.break_even(ours, theirs), 3000, rel_tol=1e-9)
    both = {n: ours[n] for n in (8192, 1024)}
    assert cells.break_even(both, theirs) == pytest.approx(3000)


def linear(n: int) -> float:
    return n * 3.0


def square(n: int) -> float:
    return n**2 / 1000


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.5, 0.4], 0.0),
        ([2.0, 1.5], inf),
        ([0.5, 2.0], inf),
        ([2.0, 1.0], inf),
        ([1.0, 0.5], 1000.0),
        ([2.0, 0.5, 2.0, 0.5], 4000.0 * 2**0.5),  # from there on for good
    ],
)
def test_break_even_is_where_the_first_stays_ahead(ratios, expected):
    assert cells.break_even(*of_ratios(ratios)) == pytest.approx(expected)


def test_break_even_without_a_shared_length_is_refused_with_what_there_is():
    message = r"ours and theirs must share a length, got \[1000, 2000\] and \[4000\]"
    with pytest.raises(ValueError, match=message):
        cells.break_even({2000: 1.0, 1000: 1.0}, {4000: 1.0})


CHOICE = "SDPA without a forced backend is FLASH_ATTENTION"


def made_up(method, n, ms, density=0.05, source="planted", layer=None, **more) -> dict:
    """A cell as `measure` makes it, with chosen times."""
    return {
        "source": source,
        "layer": layer,
        "n": n,
        "density": density,
        "method": method,
        "run": 0,
        "status": "ok",
        "ms": {"median": ms, "p10": 0.9 * ms, "p90": 1.1 * ms, "repeats": 7},
        "kept": 0.125,
        "tflops": 345.0,
        "floor_ms": ms / 1.5,
        "floor_ratio": 1.5,
        "extra_mib": 321.0,
        "input_output_mib": 2048.0,
        "heads": [1, 32, 8, 128],
        "error_mean": 0.0018,
        "error_worst_head": 0.0042,
        **({"note": CHOICE} if "sdpa" in method else {}),
        **more,
    }


@pytest.fixture
def results() -> dict:
    rows = []
    for n, ours, flash, cudnn in ((131_072, 20.0, 418.0, 254.0), (65_536, 60.0, 102.8, 57.0)):
        rows += [
            made_up("anchor", n, ours),
            made_up("stage1", n, ours / 4),
            made_up("stage2", n, ours / 8),
            made_up("stage3", n, ours / 2),
            made_up("sdpa-flash", n, flash),
            made_up("sdpa-cudnn", n, cudnn),
        ]
    nothing = {"status": "out of memory", "message": "no | room"}
    where = {"source": "planted", "layer": None, "run": 0, "density": 0.05}
    rows.append({**where, "n": 131_072, "method": "flex", **nothing})
    rows += [made_up(m, 131_072, 44.0, density=0.2) for m in ("anchor", *cells.STAGES)]
    rows.append(made_up("anchor", 16_384, 3.0, None, "llama", 7))
    rows.append(made_up("sdpa-cudnn", 16_384, 3.3, None, "llama", 7))
    return {"settings": SETTINGS, "runs": [RUN], "rows": rows}


def section(text: str, title: str) -> list[dict[str, str]]:
    """The rows of the table under a title, by column."""
    lines = text.split(f"## {title}", 1)[1].split("\n## ", 1)[0].splitlines()
    rows = [
        [part.strip() for part in line.strip("| ").split(" | ")]
        for line in lines
        if line.startswith("|")
    ]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_the_table_gives_times_quantiles_and_both_dense_backends(results):
    shorter, longer = section(table(results), "End to end, 5 % stripes")
    assert longer["N"] == "131072"
    assert longer["AnchorAttention, ms"] == "20 [18–22]"
    assert longer["SDPA flash, ms"] == "418 [376–460]"
    assert longer["SDPA cuDNN, ms"] == "254 [229–279]"
    assert longer["flash / ours"] == "20.90"
    assert longer["cuDNN / ours"] == "12.70"
    assert longer["ours / floor"] == "1.5"
    assert longer["error, ours"] == "0.0018"
    assert shorter["cuDNN / ours"] == "0.95"


def test_the_table_says_what_has_no_result_and_why(results):
    text = table(results)
    shorter, longer = section(text, "End to end")
    assert longer["FlexAttention, ms"] == "out of memory"
    assert shorter["FlexAttention, ms"] == "–"
    assert "| planted | 131072 | 5 % | flex | out of memory | no \\| room |" in text


def test_the_table_names_break_even_device_and_command(results):
    text = table(results)
    # log(60/57) = 0.05129 before, log(20/254) = -2.54160 after: 65536 · 2^(0.05129 / 2.59289).
    assert "Break-even with SDPA cuDNN: N = 66441, interpolated" in text
    assert "Break-even with SDPA flash: below N = 65536, the shortest measured" in text
    for value in (*SETTINGS.values(), *ABOUT.values(), RUN["command"], "790", "4.3"):
        assert str(value) in text
    assert CHOICE in text


def test_the_table_of_stages_adds_them_up(results):
    row = section(table(results), "Stages, 5 % stripes")[1]
    assert row["sum"] == "17.5"
    assert row["end to end, ms"] == "20 (345)"
    assert [row[f"stage {i}, ms"] for i in (1, 2, 3)] == ["5 (345)", "2.5 (345)", "10 (345)"]


def test_the_table_by_density_holds_every_method_that_was_measured_there(results):
    results["rows"].append(made_up("flex", 131_072, 330.0, density=0.2, kept=0.998))
    few, many = section(table(results), "By stripe density, N = 131072")
    assert (few["stripes"], many["stripes"]) == ("5 %", "20 %")
    assert few["SDPA cuDNN, ms"] == "254 [229–279]"
    assert many["AnchorAttention, ms"].startswith("44 ")
    assert many["Flex / ours"] == "7.50"
    assert many["pairs in Flex's blocks"] == "99.8 %"
    assert many["SDPA cuDNN, ms"] == many["cuDNN / ours"] == "–"


def test_the_table_of_memory_holds_its_numbers(results):
    memory = section(table(results), "Peak memory")
    assert memory[0]["inputs and output"] == "2048"
    assert memory[0]["AnchorAttention"] == "321"


def test_the_table_of_captures_goes_by_model_length_and_layer(results):
    results["rows"].append(made_up("anchor", 8192, 2.0, None, "llama", 7))
    results["rows"].append(made_up("anchor", 16_384, 3.0, None, "llama", 3))
    rows = section(table(results), "Activations of a model")
    keys = [(row["model"], row["N"], row["layer"]) for row in rows]
    assert keys == [("llama", "8192", "7"), ("llama", "16384", "3"), ("llama", "16384", "7")]
    last = rows[-1]
    assert last["heads"] == "32 / 8 of 128"
    assert last["cuDNN / ours"] == "1.10"
    assert last["ours, worst head"] == "0.0042"


def test_a_table_of_nothing_but_failures_is_a_table():
    failed = {"status": "out of memory", "message": "no room", "n": 300, "method": "anchor"}
    where = {"source": "planted", "layer": None, "run": 0, "density": 0.05}
    text = table({"settings": SETTINGS, "runs": [RUN], "rows": [where | failed]})
    assert "out of memory | no room" in text
    assert "Break-even with SDPA cuDNN: no length has both." in text


def test_without_5_percent_the_table_stands_on_the_density_measured_first(results):
    for found in results["rows"]:
        if found["density"] == 0.05:
            found["density"] = 0.02
    assert "## End to end, 2 % stripes" in table(results)


def test_page_and_picture_are_written_beside_the_results(results, tmp_path, capsys):
    out = tmp_path / "a.json"
    write_json(out, results["settings"], results["rows"], results["runs"])
    assert EXPERIMENT.run(["--out", str(out), "--table"]) == 0
    text = (tmp_path / "a.md").read_text()
    assert text == page(read(out), tmp_path / "a.md")
    assert text.count("](a.png)\n\nMedians") == 1
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_page_leads_to_results_of_later_kernels(results, tmp_path):
    run = RUN | {"date": "2099-01-01"}
    later = {**results, "runs": [run], "settings": SETTINGS | {"kernels": "later"}}
    same = {**results, "runs": [run]}
    for name, found in (("attention", results), ("attention_x", later), ("attention_y", same)):
        write_json(tmp_path / f"{name}.json", found["settings"], found["rows"], found["runs"])

    def lines(name: str) -> list[str]:
        return page(read(tmp_path / f"{name}.json"), tmp_path / f"{name}.md").splitlines()

    first = f"**These kernels, {SETTINGS['kernels']}, are older than those of "
    assert lines("attention")[2].startswith(first)
    assert "[attention_x.md](attention_x.md), later" in lines("attention")[2]
    for name in ("attention_x", "attention_y"):
        assert lines(name)[2].startswith("![Four panels")


def in_words(results: dict) -> str:
    return table(results).split("![")[1].split("](a.png)")[0]


def test_the_picture_is_told_in_words(results):
    assert in_words(results) == (
        f"Four panels, {SETTINGS['device']}. Time of a call from 65536 to 131072 tokens: 60 to 20 "
        "ms. At 131072 tokens cuDNN takes 13 times as long. Time from 5 % to 20 % stripes at "
        "131072 tokens: 20 to 44 ms, cuDNN 254 to 254 ms; its stage 3 10 to 44 ms. On layers of a "
        "model cuDNN's time over ours is 1.10 to 1.10."
    )
    failed = [cell for cell in results["rows"] if cell["status"] != "ok"]
    assert "not measured" in in_words({**results, "rows": failed})


def test_what_the_page_shows_is_what_was_measured(results):
    found = values(results)
    assert (found["density"], found["compared_at"]) == (0.05, 131_072)
    assert found["shape"] == [1, 32, 8, 128]
    assert found["gains"] == [pytest.approx(1.1)]
    assert found["even"]["SDPA flash"] == (0.0, [65_536, 131_072])
    assert [row["flex"]["status"] for row in found["lengths"].values()] == ["–", "out of memory"]
    assert [cell["method"] for cell in found["gaps"]] == ["flex"]


def test_dots_that_lie_close_share_a_label():
    dots = [(0.5, 0.6, 0), (0.995, 0.20, 4), (1.0, 0.21, 2), (1.0, 0.5, 3), (1.0, 0.19, 1)]
    assert figure.data_labels(dots) == [
        (0.5, 0.6, "0"),
        (1.0, 0.21, "1, 2, 4"),
        (1.0, 0.5, "3"),
    ]


# The figure


def test_the_figure_shows_the_times_of_the_table(results):
    lines = figure.data_times(results)
    assert lines["anchor"] == ([65_536, 131_072], [60.0, 20.0])
    assert lines["sdpa-cudnn"] == ([65_536, 131_072], [57.0, 254.0])
    assert "flex" not in lines
    assert lines["floor"] == ([65_536, 131_072], pytest.approx([40.0, 13.333], rel=1e-3))
    even, lengths = cells.crossing(cells.by_inputs(results), "sdpa-cudnn")
    assert even == pytest.approx(66_441, abs=1)
    assert lengths == [65_536, 131_072]
    assert cells.crossing(cells.by_inputs(results), "flex") == (None, [])


def test_the_figure_marks_the_break_even_length_where_there_is_one(results):
    lines = figure.data_times(results)
    for even, marks in ((66_441.0, 1), (0.0, 0), (inf, 0), (None, 0)):
        drawn, ax = plt.subplots()
        figure.draw_times(lines, ax, even)
        assert sum("break-even" in text.get_text() for text in ax.texts) == marks
        plt.close(drawn)


def test_the_figure_shows_every_density_stage_and_layer_of_the_table(results):
    n, lines = figure.data_densities(results)
    assert n == 131_072
    assert lines["anchor"] == ([0.05, 0.2], [20.0, 44.0])
    assert lines["sdpa-flash"] == ([0.05], [418.0])
    n, densities = cells.by_density(cells.by_inputs(results))
    stages = figure.data_stages(densities)
    assert (n, stages.pop("at")) == (131_072, [0.05, 0.2])
    assert list(stages.values()) == [[5.0, 44.0], [2.5, 44.0], [10.0, 44.0]]
    assert figure.data_layers(results) == [("llama", 16_384, 7, 0.125, pytest.approx(1.1))]


@pytest.mark.parametrize("kept", ["all", "no dense", "failures"])
def test_the_figure_can_be_drawn_whatever_is_missing(results, kept):
    if kept == "no dense":
        results["rows"] = [c for c in results["rows"] if "sdpa" not in c["method"]]
    if kept == "failures":
        results["rows"] = [c for c in results["rows"] if c["status"] != "ok"]
    drawn = figure.draw(results)
    drawn.canvas.draw()
    assert len(drawn.axes) == 4
    plt.close(drawn)


@pytest.mark.parametrize("name", ["attention", "attention_h100"])
def test_the_committed_pages_are_what_the_committed_results_give(name):
    path = FOLDER / f"{name}.json"
    assert (FOLDER / f"{name}.md").read_text() == page(read(path), path.with_suffix(".md"))
    assert (FOLDER / f"{name}.png").exists()


@pytest.mark.parametrize("name", ["attention", "attention_h100"])
def test_the_committed_results_hold_each_cell_once(name):
    rows = read(FOLDER / f"{name}.json")["rows"]
    assert len({tuple(row[field] for field in KEY) for row in rows}) == len(rows) == 331
