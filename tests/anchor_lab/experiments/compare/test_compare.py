"""The comparison: a row for each head and configuration, none measured twice; equal budgets."""

import json
import math
import shutil
from itertools import pairwise

import pandas as pd
import pytest
import torch

from anchor_lab.experiments.compare import measure as compare
from anchor_lab.experiments.compare.equal import at_equal, budget_for, mean_curves
from anchor_lab.experiments.compare.measure import (
    BEYOND,
    COLUMNS,
    MEASURES,
    compare_heads,
    compare_layer,
    group_for,
    label_configurations,
    sweeps,
)
from anchor_lab.experiments.compare.page import EXPERIMENT
from anchor_lab.experiments.compare.runs import (
    KEY,
    MEASURING,
    TEXT_COLUMNS,
    describe,
    open_table,
    run_comparison,
)
from anchor_lab.experiments.environment import sources_version
from anchor_lab.experiments.store import read_table
from anchor_lab.methods import (
    METHODS,
    AnchorAttention,
    Dense,
    FlexPrefill,
    StreamingLLM,
    TokenTopK,
    evaluate,
)
from anchor_lab.sources import planted, read_by_model
from anchor_models import Captured, load_bundled, texts
from anchor_ref import AnchorConfig
from tests.tree import RESULTS, ROOT

FOLDER = RESULTS / "compare"
N = 300


def table_in(folder, settings):
    return open_table(folder / "compare.csv", settings)


def missing(table, labels, layer, heads):
    """Heads that lack a configuration of "Mine" on the text "document"."""
    one = {"text": "document", "method": "Mine", "layer": layer}
    return [
        head
        for head in heads
        if not all(table.holds(**one, head=head, configuration=label) for label in labels)
    ]


def frame_in(path):
    return pd.DataFrame(read_table(path, TEXT_COLUMNS))


def captured(n=N, q_heads=4, kv_heads=2, layer=5, batch=1, **more):
    random = torch.Generator().manual_seed(0)
    heads = (q_heads, kv_heads, kv_heads)
    q, k, v = (torch.randn(batch, h, n, 16, generator=random) for h in heads)
    return Captured(2 * q, k, v, 0.25, layer=layer, **more)


def small_sweep():
    return [AnchorAttention(AnchorConfig(16, 4, theta)) for theta in (0.5, 2.0, 5.0)]


# -- what is measured


def test_a_head_is_measured_as_its_selections_are_evaluated():
    x = captured()
    one = (x.q[:, 3:], x.k[:, 1:], x.v[:, 1:])
    (rows,) = compare_heads(*one, small_sweep(), 0.25)
    for method, row in zip(small_sweep(), rows, strict=True):
        found = evaluate(*one, method.select(*one[:2], 0.25), 0.25)
        assert row["recall_mean"] == pytest.approx(found.recall.mean().item())
        assert row["recall_p10"] == pytest.approx(found.recall.quantile(0.1).item())
        assert row["recall_min"] == found.recall.min().item()
        assert all(math.isnan(row[name]) for name in BEYOND)  # all rows are of one group
    (rows,) = compare_heads(*one, small_sweep(), 0.25, group_size=64)
    for method, row in zip(small_sweep(), rows, strict=True):
        found = evaluate(*one, method.select(*one[:2], 0.25), 0.25)
        beyond = found.recall[0, 0, 64:]
        assert row["recall_beyond_mean"] == pytest.approx(beyond.mean().item())
        assert row["recall_beyond_p10"] == pytest.approx(beyond.quantile(0.1).item())
        for name in ("density", "executed_density", "identification_cost", "output_error"):
            assert row[name] == getattr(found, name).item()
        assert row["total_cost"] == row["executed_density"] + row["identification_cost"]
        assert row["identification_cost"] > 0


@pytest.mark.parametrize("wide", [4, 12])
def test_values_of_another_width_than_keys_are_compared_too(wide):
    """As in multi-head latent attention: what it keeps follows from q and k, its error from v."""
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, h, N, 8, generator=random, dtype=torch.float64) for h in (4, 2))
    v = torch.randn(1, 2, N, wide, generator=random, dtype=torch.float64)
    x = Captured(q, k, v, 0.3, layer=3)
    rows = compare_layer(x, "TokenTopK", [TokenTopK(8)])
    lower = torch.ones(N, N, dtype=torch.bool).tril()
    score = (0.3 * q @ k.repeat_interleave(2, 1).mT).masked_fill(~lower, -torch.inf)
    best = score.topk(8).indices  # rows of fewer keys than that keep them all
    kept = torch.zeros_like(score, dtype=torch.bool).scatter_(-1, best, True) & lower
    values = v.repeat_interleave(2, 1)
    dense = score.softmax(-1) @ values
    sparse = score.masked_fill(~kept, -torch.inf).softmax(-1) @ values
    for row, a, b in zip(rows, sparse[0], dense[0], strict=True):
        assert row["output_error"] == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-4)


def test_each_query_head_reads_its_own_key_head():
    x = captured()
    rows = compare_layer(x, "TokenTopK", [TokenTopK(8)], [1, 2])
    assert [(row["layer"], row["head"], row["length"]) for row in rows] == [(5, 1, N), (5, 2, N)]
    for row, (head, kv) in zip(rows, ((1, 0), (2, 1)), strict=True):
        one = (x.q[:, [head]], x.k[:, [kv]], x.v[:, [kv]])
        ((expected,),) = compare_heads(*one, [TokenTopK(8)], 0.25)
        assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize("name", METHODS)
def test_heads_looked_at_together_are_the_heads_looked_at_alone(name, monkeypatch):
    """Four heads and their two key heads at once, each key head alone, each head alone."""
    x, sweep = captured(), sweeps([name], 128)[name][::4]
    together = pd.DataFrame(compare_layer(x, name, sweep))
    monkeypatch.setattr(compare, "SCORES", 1)
    by_key = pd.DataFrame(compare_layer(x, name, sweep, [3, 0, 1, 2]))
    alone = pd.DataFrame(
        [row for head in range(4) for row in compare_layer(x, name, sweep, [head])]
    )
    assert list(by_key["head"].unique()) == [3, 0, 1, 2]
    for other in (by_key.sort_values("head", kind="stable", ignore_index=True), alone):
        pd.testing.assert_frame_equal(together, other, rtol=1e-4, atol=1e-6)


def test_heads_go_by_the_models_numbers_where_few_were_captured():
    x = captured(q_heads=2, heads=(3, 6))
    rows = compare_layer(x, "Dense", [Dense()])
    assert [row["head"] for row in rows] == [3, 6]
    with pytest.raises(ValueError, match=r"heads must be of those captured, \(3, 6\), got 0"):
        compare_layer(x, "Dense", [Dense()], [0])


def test_dense_attention_loses_nothing():
    (row,) = compare_layer(captured(), "Dense", [Dense()], [0])
    assert (row["density"], row["recall_min"]) == (1.0, 1.0)
    assert row["output_error"] < 1e-6


def test_what_is_no_causal_attention_is_refused():
    with pytest.raises(ValueError, match="sees a window of 64 keys"):
        compare_layer(captured(sliding_window=64), "Dense", [Dense()])
    with pytest.raises(ValueError, match="captured must hold one prompt, got 2"):
        compare_layer(captured(batch=2), "Dense", [Dense()])


# -- what is swept


def test_every_method_has_a_sweep_and_each_configuration_a_label_of_its_own():
    found = sweeps(group_size=512)
    assert list(found) == list(METHODS)
    for name, sweep in found.items():
        labels = label_configurations(sweep)
        assert len(set(labels)) == len(sweep) == len(METHODS[name].sweep())
        for method in sweep:
            assert not hasattr(method, "config") or method.config.group_size == 512


def test_labels_name_the_knobs_that_move():
    assert label_configurations(small_sweep())[0] == "theta=0.5"
    assert label_configurations([Dense()]) == ["default"]
    assert label_configurations([StreamingLLM(8, 64), StreamingLLM(8, 128)])[1] == "window=128"
    two = [FlexPrefill(0.3, min_budget=128), FlexPrefill()]
    assert label_configurations(two) == ["gamma=0.3 min_budget=128", "gamma=0.95 min_budget=1024"]


def test_unknown_methods_and_groups_are_refused():
    with pytest.raises(ValueError, match=r"methods must be of Dense, .*, got Sparse"):
        sweeps(["Dense", "Sparse"])
    with pytest.raises(ValueError, match="multiple of the block size 128, got 200"):
        sweeps(["AnchorAttention"], 200)


def test_methods_are_known_by_the_words_of_the_readme():
    names = ["MInference", "vertical-slash", "SpargeAttn", "anchorattention", "Streaming LLM"]
    found = list(sweeps(names))
    assert found == ["VerticalSlash", "SpargeAttention", "AnchorAttention", "StreamingLLM"]
    newer = list(sweeps(["BLASST", "skip-softmax", "FlashPrefill V2", "Sale"]))
    assert newer == ["SkipSoftmax", "FlashPrefillV2", "SALE"]
    with pytest.raises(ValueError, match=r"also MInference for VerticalSlash, .*, got Minfer$"):
        sweeps(["Minfer"])


@pytest.mark.parametrize(
    ("length", "size"), [(100_000, 2048), (8192, 2048), (8191, 1920), (4096, 1024), (200, 128)]
)
def test_short_prompts_get_four_groups(length, size):
    assert group_for(length) == size
    assert length < 512 or length // size in (4, 5) or size == 2048


# -- what is kept


def test_rows_are_kept_and_found_again(tmp_path):
    sweep = small_sweep()
    labels, rows = label_configurations(sweep), compare_layer(captured(), "Mine", sweep, [0, 2])
    results = table_in(tmp_path / "new", {"length": N})
    assert missing(results, labels, 5, [0, 1, 2]) == [0, 1, 2]
    results.add(rows[:-1])
    again = table_in(tmp_path / "new", {"length": N})
    assert missing(again, labels, 5, [0, 1, 2]) == [1, 2]  # one of head 2 is not there
    again.add(rows[3:])
    assert missing(again, labels, 5, [0, 2]) == []
    assert missing(again, labels, 4, [0]) == [0]
    kept = frame_in(tmp_path / "new" / "compare.csv")
    assert tuple(kept.columns) == COLUMNS
    expected = pd.DataFrame(rows)
    pd.testing.assert_frame_equal(kept, expected, rtol=1e-5, check_dtype=False)


def test_an_interrupted_write_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    results = table_in(tmp_path, {})
    rows = compare_layer(captured(), "Dense", [Dense()], [0, 1])
    results.add(rows[:1])
    before = (tmp_path / "compare.csv").read_text()
    monkeypatch.setattr("pathlib.Path.replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results.add(rows[1:])
    assert (tmp_path / "compare.csv").read_text() == before


def test_other_settings_are_refused_by_name(tmp_path):
    table_in(tmp_path, {"length": 4096, "model": "bundled"}).add([dict.fromkeys(KEY, 0)])
    with pytest.raises(ValueError, match="made with length 4096, this run has 8192: give another"):
        table_in(tmp_path, {"length": 8192, "model": "bundled"})
    with pytest.raises(ValueError, match="made with group_size None, this run has 128"):
        table_in(tmp_path, {"length": 4096, "model": "bundled", "group_size": 128})
    with pytest.raises(ValueError, match="made with model 'bundled', this run has None"):
        table_in(tmp_path, {"length": 4096})


def test_a_run_that_stopped_before_its_first_row_binds_no_later_one(tmp_path):
    table_in(tmp_path, {"length": 4096})
    table_in(tmp_path, {"length": 8192}).add([dict.fromkeys(KEY, 0)])
    assert json.loads((tmp_path / "settings.json").read_text()) == {"length": 8192}


@pytest.mark.parametrize("text", ['{"editor.fontSize": 14}', "[1]", "// no JSON"])
def test_settings_of_somebody_else_stay(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match="is not of an experiment: give another folder"):
        table_in(tmp_path, {"length": 4096})
    assert (tmp_path / "settings.json").read_text() == text


def test_a_table_that_nobody_knows_the_settings_of_is_not_adopted(tmp_path):
    results = table_in(tmp_path, {"length": N})
    results.add(compare_layer(captured(), "Dense", [Dense()], [0]))
    (tmp_path / "settings.json").unlink()
    before = (tmp_path / "compare.csv").read_text()
    for _ in range(2):  # the refused run must not leave settings that the next one believes
        with pytest.raises(ValueError, match=r"holds compare\.csv without settings\.json"):
            table_in(tmp_path, {"length": N})
    assert (tmp_path / "compare.csv").read_text() == before


def test_of_rows_measured_twice_the_newest_is_kept(tmp_path):
    results = table_in(tmp_path, {})
    (row,) = compare_layer(captured(), "Dense", [Dense()], [0])
    results.add([row])
    results.add([row | {"recall_mean": 0.5}])
    assert [row["recall_mean"] for row in results.rows] == [0.5]
    assert frame_in(tmp_path / "compare.csv")["recall_mean"].tolist() == [0.5]


@pytest.fixture(scope="module")
def loaded():
    return load_bundled()


def test_a_run_goes_on_where_it_stopped_and_adds_what_is_asked_for(loaded, tmp_path):
    source = read_by_model(loaded[0], "bundled", texts.read_text("document", loaded[1], 200))
    chosen = sweeps(["StreamingLLM", "AnchorAttention"], group_for(200))
    settings = describe(source, group_for(200))
    seen = []

    def stop_after_one(left):
        seen.append(list(left))
        yield left[0]
        raise KeyboardInterrupt

    def watch(left):
        seen.append(list(left))
        return left

    with pytest.raises(KeyboardInterrupt):
        run_comparison(source, table_in(tmp_path, settings), chosen, [1], [0, 5], stop_after_one)
    run = (source, table_in(tmp_path, settings), chosen)
    frame = run_comparison(*run, [1], [0, 5], watch)
    assert seen == [[(1, "StreamingLLM"), (1, "AnchorAttention")], [(1, "AnchorAttention")]]
    assert len(frame) == 2 * (7 + 10)
    assert set(zip(frame["layer"], frame["head"], strict=True)) == {(1, 0), (1, 5)}
    more = run_comparison(*run, [1, 2], [0], watch)
    assert seen[-1] == [(2, "StreamingLLM"), (2, "AnchorAttention")]
    assert set(zip(more["layer"], more["head"], strict=True)) == {(1, 0), (2, 0)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.csv", "settings.json"]
    with pytest.raises(ValueError, match=r"heads must be in 0\.\.7, got 8"):
        run_comparison(*run, [1], [8])


def test_rows_of_another_method_under_the_same_label_are_not_given(loaded, tmp_path):
    results = table_in(tmp_path, {})
    (row,) = compare_layer(captured(layer=1), "Dense", [Dense()], [0])
    results.add([row, row | {"method": "Other"}])
    source = read_by_model(loaded[0], "bundled", texts.read_text("document", loaded[1], 64))
    frame = run_comparison(source, results, {"Dense": [Dense()]}, [1], [0])
    assert frame["method"].tolist() == ["Dense"]


def test_other_weights_or_another_configuration_are_other_settings(loaded):
    model, tokenizer = loaded
    text = texts.read_text("document", tokenizer, 64)
    before = describe(read_by_model(model, "bundled", text), 128)
    weight = model.model.layers[6].mlp.up_proj.weight
    old = weight[-1, -1].item()
    with torch.no_grad():
        weight[-1, -1] = old + 1
    try:
        after = describe(read_by_model(model, "bundled", text), 128)
    finally:
        with torch.no_grad():
            weight[-1, -1] = old
    assert {name for name in before if before[name] != after[name]} == {"weights"}
    model.config.rms_norm_eps = 2 * (eps := model.config.rms_norm_eps)
    try:
        other = describe(read_by_model(model, "bundled", text), 128)
    finally:
        model.config.rms_norm_eps = eps
    assert {name for name in before if before[name] != other[name]} == {"config_sha256"}
    assert describe(read_by_model(model, "bundled", text), 128) == before
    assert before["length"] == 64
    assert set(before["versions"]) == {"anchor-attention", "torch", "transformers"}


def copied(folder):
    """The packages, without weights."""
    for package in ("anchor_ref", "anchor_models", "anchor_lab"):
        ignored = shutil.ignore_patterns("model", "__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("anchor_ref/measure.py", "anchor_models/capture.py", "anchor_lab/sources.py"),
        *("anchor_lab/methods/xattention.py", "anchor_lab/experiments/compare/measure.py"),
    ],
)
def test_a_correction_of_what_measures_is_another_setting(tmp_path, name):
    copy = copied(tmp_path)
    before = sources_version(copy, MEASURING)
    with (copy / name).open("a") as file:
        file.write("\n")
    assert sources_version(copy, MEASURING) != before


def test_the_code_is_that_which_runs_and_a_figure_is_no_part_of_it(loaded, tmp_path):
    copy = copied(tmp_path)
    (copy / "anchor_lab" / "drawing" / "style.py").unlink()
    text = texts.read_text("document", loaded[1], 64)
    found = describe(read_by_model(loaded[0], "bundled", text), 128)["code"]
    assert found == sources_version(copy, MEASURING), "wherever it is installed"


def test_a_prompt_beyond_the_models_positions_is_refused(loaded):
    text = texts.Text("long", torch.zeros(1, 40_000, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"at most the model's \d+ positions, got 40000"):
        read_by_model(loaded[0], "bundled", text)


# -- what is read


def test_texts_are_exactly_as_long_as_asked(loaded, tmp_path):
    _, tokenizer = loaded
    assert texts.read_text("document", tokenizer, 777).tokens.shape == (1, 777)
    retrieval = texts.read_text("retrieval", tokenizer, 777)
    assert 777 - 16 <= retrieval.tokens.shape[1] <= 777
    assert "Question:" in tokenizer.decode(retrieval.tokens[0])
    (tmp_path / "a.txt").write_text("The harbour was quiet. " * 50, "utf-8")
    whole = texts.read_text(tmp_path / "a.txt", tokenizer)
    cut = texts.read_text(tmp_path / "a.txt", tokenizer, 30)
    assert torch.equal(whole.tokens[:, :30], cut.tokens)
    assert whole.name == "a.txt"
    assert whole.sha256 != cut.sha256


@pytest.mark.parametrize("name", ["document", "retrieval"])
def test_a_seed_makes_up_one_text_and_another_seed_another(loaded, name):
    one, again, other = (texts.read_text(name, loaded[1], 300, seed).sha256 for seed in (5, 5, 6))
    assert one == again != other


def test_standard_input_is_read(loaded, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("The harbour was quiet."))
    found = texts.read_text("-", loaded[1])
    assert loaded[1].decode(found.tokens[0], skip_special_tokens=True) == "The harbour was quiet."


WORDS = "Zwölf Häuser — θ, naïve. " * 20


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("locale", ["latin-1", "ascii", "cp1252"])
def test_a_text_is_utf8_whatever_the_locale_and_a_mark_is_no_token(
    loaded, monkeypatch, tmp_path, mark, locale
):
    import io

    found = mark + WORDS.encode()
    expected = loaded[1](WORDS).input_ids
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(found), encoding=locale))
    assert texts.read_text("-", loaded[1]).tokens[0].tolist() == expected
    (tmp_path / "a.txt").write_bytes(found)
    assert texts.read_text(tmp_path / "a.txt", loaded[1]).tokens[0].tolist() == expected


def test_a_standard_input_that_is_no_utf8_is_named(loaded, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(WORDS.encode("utf-16"))))
    with pytest.raises(ValueError, match="text must be UTF-8, - is not"):
        texts.read_text("-", loaded[1])


def test_texts_that_cannot_be_read_are_named(loaded, tmp_path):
    _, tokenizer = loaded
    (tmp_path / "short.txt").write_text("Too short.")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.bin").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"at least 100 tokens, short\.txt has \d"):
        texts.read_text(tmp_path / "short.txt", tokenizer, 100)
    with pytest.raises(ValueError, match=r"text must not be empty, got empty\.txt"):
        texts.read_text(tmp_path / "empty.txt", tokenizer)
    with pytest.raises(ValueError, match=r"must be UTF-8, .*bytes\.bin is not"):
        texts.read_text(tmp_path / "bytes.bin", tokenizer)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        texts.read_text(tmp_path / "nowhere.txt", tokenizer)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        texts.read_text("document", tokenizer, 0)


# -- who is ahead


def frame_of(*curves):
    """Curves of two heads each: (method, [(density, recall), ...])."""
    return pd.DataFrame(
        {
            "text": "document",
            "method": method,
            "configuration": str(place),
            "layer": 0,
            "head": head,
            "length": N,
            **dict.fromkeys(MEASURES, 0.0),
            "recall_mean": recall,
            "density": density + 0.02 * head - 0.01,
            "executed_density": density + 0.1,
            "total_cost": density + 0.2,
        }
        for method, points in curves
        for place, (density, recall) in enumerate(points)
        for head in (0, 1)
    )


CURVES = frame_of(
    ("steep", [(0.1, 0.5), (0.3, 0.9), (0.3, 0.8), (0.5, 1.0)]),
    ("late", [(0.4, 0.9), (0.8, 1.0)]),
)


def test_curves_are_means_over_heads():
    means = mean_curves(CURVES)
    assert means["heads"].tolist() == [2] * 6
    steep = means[means["method"] == "steep"]
    assert steep["density"].tolist() == pytest.approx([0.1, 0.3, 0.3, 0.5])


def test_a_mean_over_other_heads_is_refused():
    with pytest.raises(ValueError, match=r"lacks \(layer, head\) \(0, 1\) for late with 1"):
        mean_curves(CURVES.iloc[:-1])
    other = CURVES[CURVES["head"] == 0].assign(text="other")  # a text has heads of its own
    assert set(mean_curves(pd.concat([CURVES, other]))["heads"]) == {1, 2}


def test_recall_at_equal_budget_is_read_off_the_line():
    means = mean_curves(CURVES)
    found = at_equal(means, "density", 0.2)
    assert found["steep"] == pytest.approx(0.7)
    assert pd.isna(found["late"])  # it cannot be set so low
    found = at_equal(means, "density", 0.6)
    assert found["steep"] == 1.0  # it has nothing more to keep
    assert found["late"] == pytest.approx(0.95)
    assert list(found.index) == ["steep", "late"]
    # Of configurations that cost the same the better one counts.
    assert at_equal(means, "density", 0.3)["steep"] == pytest.approx(0.9)
    assert at_equal(means, "total_cost", 0.4)["steep"] == pytest.approx(0.7)
    halved = mean_curves(CURVES.assign(recall_p10=CURVES["recall_mean"] / 2))
    assert at_equal(halved, "density", 0.2, "recall_p10")["steep"] == pytest.approx(0.35)


def test_the_budget_for_a_recall_is_read_off_the_same_line():
    means = mean_curves(CURVES)
    found = budget_for(means, "density", 0.95)
    assert found["steep"] == pytest.approx(0.4)
    assert found["late"] == pytest.approx(0.6)
    assert list(found.index) == ["steep", "late"]
    assert budget_for(means, "density", 0.6)["late"] == pytest.approx(0.4)  # it has no less
    flat = mean_curves(frame_of(("flat", [(0.1, 0.5), (0.3, 1.0), (0.5, 1.0)])))
    assert budget_for(flat, "density", 1.0)["flat"] == pytest.approx(0.3)
    unreached = mean_curves(frame_of(("poor", [(0.1, 0.2), (0.9, 0.6)])))
    assert pd.isna(budget_for(unreached, "density", 0.7)["poor"])


def test_budgets_and_levels_that_are_none_are_refused():
    means = mean_curves(CURVES)
    with pytest.raises(ValueError, match=r"budget must be one of density, .*, got 'recall'"):
        at_equal(means, "recall", 0.5)
    with pytest.raises(ValueError, match=r"level must be above 0, got 0\.0"):
        at_equal(means, "density", 0.0)
    with pytest.raises(ValueError, match="recall must be in"):
        budget_for(means, "density", 1.5)
    with pytest.raises(ValueError, match=r"recall must be in \(0, 1\], got 0\.0"):
        budget_for(means, "density", 0.0)
    both = pd.concat([means, means.assign(text="retrieval")])
    with pytest.raises(ValueError, match="curves must be of one text, got document, retrieval"):
        at_equal(both, "density", 0.5)


def test_each_curve_rises():
    """Sweeps keep more and more, so that a line between two configurations has a meaning."""
    rows = []
    for name, sweep in sweeps(["StreamingLLM", "XAttention", "AnchorAttention"], 128).items():
        rows += compare_layer(captured(), name, sweep, [0])
    for _, curve in mean_curves(pd.DataFrame(rows)).groupby("method"):
        points = list(zip(curve["density"], curve["recall_mean"], strict=True))
        assert all(a[0] <= b[0] and a[1] <= b[1] + 1e-6 for a, b in pairwise(points))


# -- what was committed


@pytest.fixture(scope="module")
def committed():
    return EXPERIMENT.read(FOLDER / "compare.csv.gz")


def test_the_committed_table_is_that_of_the_committed_numbers(committed):
    page = FOLDER / "compare.md"
    assert page.read_text() == EXPERIMENT.page(committed, page)


def test_the_committed_rows_are_whole_and_plausible(committed):
    frame = pd.DataFrame(committed["rows"])
    assert tuple(frame.columns) == tuple(name for name in COLUMNS if name not in BEYOND)
    assert set(frame["text"]) == set(committed["settings"])
    for text, part in frame.groupby("text"):
        measured = [name for name in METHODS if name in set(part["method"])]
        assert len(measured) == part["method"].nunique() == 20  # others came later
        chosen = {n: label_configurations(sweep) for n, sweep in sweeps(measured).items()}
        heads = 2 if text == "planted" else 64
        assert len(part) == heads * sum(map(len, chosen.values())), text
        assert {n: list(x.unique()) for n, x in part.groupby("method")["configuration"]} == chosen
        mean_curves(part)  # refuses other heads for some of them
    assert (frame["recall_min"] <= frame["recall_p10"]).all()
    assert frame["density"].between(0, 1).all()
    assert (frame["executed_density"] >= frame["density"] - 1e-6).all()
    total = frame["executed_density"] + frame["identification_cost"]
    one_pass = frame["method"] == "SkipSoftmax"  # goes on with scores it chose by
    assert (frame["total_cost"] - total)[~one_pass].abs().max() < 1e-5
    assert (frame["total_cost"] <= total + 1e-5).all()


def test_a_quick_run_writes_numbers_page_and_picture_and_is_not_run_again(tmp_path, monkeypatch):
    out = tmp_path / "compare.csv.gz"
    asked = ["--quick", "--device", "cpu", "--out", str(out)]
    assert EXPERIMENT.run(asked) == 0
    assert {x.name for x in tmp_path.iterdir()} == {
        *("compare.csv.gz", "compare.md", "compare.png", "settings.json")
    }
    frame = pd.DataFrame(EXPERIMENT.read(out)["rows"])
    assert frame.groupby("text")["method"].nunique().to_dict() == {
        name: len(METHODS) for name in ("document", "retrieval", "planted")
    }
    page = out.with_name("compare.md").read_text()
    assert "2 heads, groups of 128" in page
    assert "answers nothing" in page
    before = out.read_bytes()
    monkeypatch.setattr("anchor_lab.experiments.compare.runs.compare_layer", None)
    assert EXPERIMENT.run(asked) == 0
    assert out.read_bytes() == before


def test_one_tail_for_all_methods_is_a_setting_and_is_counted(tmp_path):
    source = planted(512, 0.05, 0, "cpu")
    chosen = sweeps(["StreamingLLM", "AnchorAttention"], 128)
    frames = {}
    for tail in (0, 200, 512):
        about = describe(source, 128, tail)
        table = open_table(tmp_path / f"{tail}.csv" / "compare.csv", about)
        frames[tail] = run_comparison(source, table, chosen, None, [0], tail=tail)
        assert about["tail"] == tail
    assert (frames[200]["density"] >= frames[0]["density"]).all()
    assert (frames[200]["density"] > frames[0]["density"]).any()
    assert (frames[512]["density"] == 1).all()
    assert (frames[512]["recall_min"] == 1).all()
    with pytest.raises(ValueError, match="results made with tail 200, this run has 0"):
        open_table(tmp_path / "200.csv" / "compare.csv", describe(source, 128))
