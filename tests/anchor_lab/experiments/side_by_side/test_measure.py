"""The whole experiment on the CPU at tiny sizes: what is run, kept, and found at equal terms."""

from dataclasses import replace

import pytest
import torch

from anchor_lab.experiments.side_by_side import (
    blocks,
    executors,
    losses,
    made_for,
    measure,
    sources,
)
from anchor_lab.experiments.side_by_side.ladders import KNOBS, OURS, knob_of, ladders
from anchor_lab.experiments.side_by_side.page import EXPERIMENT
from anchor_lab.experiments.store import Store, read
from anchor_lab.methods import METHODS, evaluate
from anchor_models import load_bundled
from anchor_models.smollm2 import NAME
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.measure import density
from tests.tree import ROOT

SETTINGS = {"device": "a device", "torch": "2", "kernels": "k", "model": "bundled"}
RUN = {"date": "today", "command": "c", "packages": executors.versions()}
SIZES = replace(
    measure.QUICK,
    planted=(384,),
    bundled=512,
    stretched=(256, (0,)),
    read=(256, (3,)),
)
WAYS = ("SDPA", "cuDNN", "FlexAttention")
SHORT = ("FlexPrefill", "BlockTopCdf", OURS)


class Clock:
    """Every call is longer than the one before it."""

    def __init__(self):
        self.ran = self.settled = 0

    def times(self, run):
        run()
        self.ran += 1
        return [float(self.ran)]

    def settle(self):
        self.settled += 1


def collect(path, parts=measure.PARTS, model="bundled", **more) -> Clock:
    clock = Clock()
    store = Store(path, measure.KEY, SETTINGS, RUN)
    bench = measure.Bench(store, SIZES, clock, "cpu", WAYS, **more)
    bench.collect(sources.Reader(model, "cpu"), parts)
    return clock


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What a run of all parts writes, with fewer methods, and the maps that were executed."""
    path, seen = tmp_path_factory.mktemp("side") / "side.json", []
    loaded, flex = load_bundled(), executors.BLOCKS["FlexAttention"]

    def watched(case, given):
        seen.append((case, given))
        return flex(case, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sources, "repository_text", lambda root: "A tale of keys. " * 400)
        patch.setattr(sources, "load_pretrained", lambda *_: loaded)
        patch.setitem(executors.BLOCKS, "FlexAttention", watched)
        few = {name: ladders(SIZES.config)[name] for name in SHORT}
        patch.setattr(measure, "ladders", lambda config: few)
        patch.setattr(losses, "ladders", lambda config: few)
        patch.setattr(measure, "PUBLISHED", ("FlexPrefill",))
        ran = collect(path).ran
        rows = read(path)["rows"]
        assert ran == sum("ms" in row for row in rows)
        assert collect(path).ran == 0, "nothing is measured twice"
        assert read(path)["rows"] == rows
    return path, rows, seen


def of(rows, **fields):
    return [row for row in rows if all(row.get(x) == value for x, value in fields.items())]


def test_every_part_has_its_rows(out):
    _, rows, _ = out
    assert [row["way"] for row in of(rows, part="planted")] == [
        "tail 0", "tail 64", "SDPA", "cuDNN", "FlexAttention", "FlexAttention"
    ]  # fmt: skip
    for source in (sources.BUNDLED, "layer 0"):
        own = [row for row in of(rows, part="recall", source=source) if row["method"] in METHODS]
        assert [(row["method"], row["way"]) for row in own] == [
            ("FlexPrefill", "FlexAttention"), ("BlockTopCdf", "FlexAttention"),
            (OURS, "tail 0"), (OURS, "tail 64"),
        ]  # fmt: skip
    assert {row["goal"] for row in of(rows, part="equal_loss", method=OURS)} == {
        "loss at θ = 12", "loss at θ = 9"
    }  # fmt: skip
    shape = of(rows, part="recall", source=sources.BUNDLED)[0]
    assert (shape["q_heads"], shape["kv_heads"], shape["head_dim"], shape["n"]) == (9, 3, 64, 512)


def test_what_cannot_run_is_a_row_in_its_own_words(out):
    _, rows, _ = out
    failed = [row for row in rows if row["status"] == "error"]
    assert {row["way"] for row in failed} == {"cuDNN"}
    assert all(row["message"].startswith("RuntimeError: No viable backend") for row in failed)


def test_ours_and_dense_agree_with_the_truth_where_everything_heavy_is_kept(out):
    _, rows, _ = out
    for row in of(rows, part="planted", status="ok"):
        assert row["error"] < 1e-4, row["way"]
    (same,) = of(rows, method=measure.SAME_BLOCKS)
    alone, tail = of(rows, part="planted", method=OURS)
    assert alone["density"] < tail["density"] <= 1
    assert alone["density"] <= same["density"] <= 1


def test_as_many_keys_are_heavy_alone_and_in_whole_blocks_and_both_are_run(out):
    _, rows, seen = out
    here = [(case, given) for case, given in seen if case.n == 2048]
    both = len(here) // 2
    for source, maps in zip(made_for.TOGETHER, (here[:both], here[both:]), strict=True):
        own = of(rows, part="made_for", source=source)
        assert [(row["method"], row["way"], row.get("setting")) for row in own] == [
            (OURS, "tail 0", None), ("dense", "cuDNN", None),
            *(("FlashPrefillV2", "FlexAttention", alpha) for alpha in made_for.ALPHAS),
        ]  # fmt: skip
        assert own[0]["error"] < 1e-4, "all that is heavy is kept"
        case = maps[0][0]
        ours = anchor_attention(
            case.q, case.k, case.v, SIZES.config, case.scale, return_trace=True
        )
        kept = density(ours[1].stripes, SIZES.config, case.n, case.n).mean().item()
        assert own[0]["density"] == pytest.approx(kept)
        for row, (case, given) in zip(own[2:], maps, strict=True):
            heavy = case.k[0, 0, 1:, 0].nonzero().flatten() + 1  # behind the sink
            in_runs = bool((heavy.view(-1, 2).diff() == 1).all()) and len(heavy) == 128
            assert in_runs == (source == "whole blocks")
            assert abs(len(heavy) - sources.KEPT * case.n) < 64, "as many in both"
            method = METHODS["FlashPrefillV2"](row["setting"], dense_up_to=0)
            selection = method.select(case.q, case.k, case.scale)
            assert torch.equal(given.before, blocks.of_selection(selection).before)
            assert row["density"] == pytest.approx(given.density)
            pairs = case.n * (case.n + 1) / 2
            assert row["scored"] == pytest.approx(selection.scored / pairs)


def method_of(row):
    ladder = ladders(SIZES.config)[row["method"]]
    return next(m for m in ladder if knob_of(row["method"], m) == row["knob"])


def test_the_blocks_that_are_executed_are_those_of_the_method_at_the_knob_of_the_row(out):
    _, rows, seen = out
    real = [row for row in rows if "knob" in row and row["method"] != OURS]
    maps = [(case, given) for case, given in seen if case.q.shape[3] == 64]
    assert len(maps) == len(real) > 3
    for row, (case, given) in zip(real, maps, strict=True):
        selection = method_of(row).select(case.q, case.k, case.scale)
        assert torch.equal(given.before, blocks.of_selection(selection).before)
        assert row["density"] == pytest.approx(given.density, rel=1e-3)
        assert row["n"] == case.n


def test_the_sparsest_rung_that_reaches_the_recall_is_taken_beyond_the_first_group(out):
    _, rows, _ = out
    x = sources.nine_heads(512, torch.float32, "cpu")
    for name in SHORT:
        row = of(rows, part="recall", source=sources.BUNDLED, method=name)[0]
        ladder = ladders(SIZES.config)[name]
        place = ladder.index(method_of(row))

        def recall(method, name=name):
            selection = method.select(x.q, x.k, x.scale)
            if name == OURS:
                found = evaluate(x.q, x.k, x.v, selection, x.scale).recall
            else:
                found = blocks.of_selection(selection).recall(x.mass)
            return found[..., 128:].double().mean().item()

        assert row["recall"] == pytest.approx(recall(ladder[place]), abs=1e-4)
        assert row["recall"] >= 0.95 - 1e-4
        assert place > 0
        assert recall(ladder[place - 1]) < 0.95


def test_losses_are_above_dense_attentions_and_the_equal_one_is_the_sparsest_measured(out):
    _, rows, _ = out
    found = losses.losses_of(rows)
    dense = found[losses.DENSE, None]
    assert dense["loss"] == 0
    assert dense["kept"] == 1
    for row in found.values():
        assert row["loss"] == pytest.approx(row["nats"] - dense["nats"])
    for theta in losses.GOALS:
        row = of(rows, part="equal_loss", method="FlexPrefill", goal=f"loss at θ = {theta:g}")[0]
        good = [x for (m, _), x in found.items() if m == "FlexPrefill"]
        good = [x["setting"] for x in good if x["loss"] <= found[OURS, theta]["loss"]]
        assert row["status"] == ("ok" if good else "out of reach")
        if good:
            assert row["knob"] == min(good)


def test_the_loss_is_that_of_the_rows_from_the_first_on():
    model, _ = load_bundled()
    tokens = torch.randint(3, 1000, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens).logits[0].log_softmax(-1)
    wanted = [-logits[i, tokens[0, i + 1]].item() for i in range(150, 199)]
    nats, kept = losses.loss(model, tokens, None, 150)
    assert (nats, kept) == (pytest.approx(sum(wanted) / 49, rel=1e-4), 1.0)
    same, kept = losses.loss(model, tokens, METHODS["Dense"](), 150)
    assert (same, kept) == (pytest.approx(nats, rel=1e-4), 1.0)
    other, kept = losses.loss(model, tokens, METHODS["StreamingLLM"](init=1, window=4), 150)
    assert abs(other - nats) > 1e-3
    assert kept < 0.06


def test_failed_rows_are_tried_again_when_that_is_asked_for(out, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ladders", lambda config: {})
    path = tmp_path / "side.json"
    collect(path, ["planted"])
    assert collect(path, ["planted"]).settled == 0
    assert collect(path, ["planted"], retry=True).settled == 1
    assert len(of(read(path)["rows"], way="cuDNN")) == 1
    monkeypatch.setitem(executors.DENSE, "cuDNN", executors.sdpa_default)
    assert collect(path, ["planted"], retry=True).ran == 1
    assert of(read(path)["rows"], way="cuDNN")[0]["status"] == "ok"


def test_a_failure_that_took_long_is_not_waited_for_again(tmp_path, monkeypatch):
    tried = []

    def compiles(case):
        tried.append(case.n)
        raise RuntimeError("nvcc says no")

    monkeypatch.setitem(executors.DENSE, "SDPA", compiles)
    monkeypatch.setattr(measure, "ladders", lambda config: {})
    monkeypatch.setitem(globals(), "SIZES", replace(SIZES, planted=(256, 384)))
    for path, long_s, times in (("a.json", 5.0, 2), ("b.json", 0.0, 1)):
        tried.clear()
        collect(tmp_path / path, ["planted"], long_s=long_s)
        assert len(tried) == times
        rows = of(read(tmp_path / path)["rows"], way="SDPA")
        assert [row["message"] for row in rows] == ["RuntimeError: nvcc says no"] * 2


def test_without_the_model_its_parts_say_so_and_the_others_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANCHOR_CACHE", str(tmp_path))
    monkeypatch.setattr(measure, "ladders", lambda config: {})
    path = tmp_path / "side.json"
    parts = [part for part in measure.PARTS if part != "made_for"]
    # Of planted 5, of the heads that come along 2.
    assert collect(path, parts, model=NAME).ran == 7
    missing = of(read(path)["rows"], source="model")
    assert [row["part"] for row in missing] == ["recall", "loss", "equal_loss"]
    assert all("FileNotFoundError: no folder smollm2 here" in row["message"] for row in missing)
    EXPERIMENT.write_page(path)
    assert "no folder smollm2 here" in path.with_suffix(".md").read_text("utf-8")


def test_ladders_rise_and_name_their_knobs():
    config = AnchorConfig(step=1)
    x = sources.nine_heads(1300, torch.float32, "cpu")
    for name, ladder in ladders(config).items():
        assert all(type(method).__name__ == name for method in ladder)
        knobs = [knob_of(name, method) for method in ladder]
        assert len(set(knobs)) == len(ladder), name
        assert knobs in (sorted(knobs), sorted(knobs, reverse=True))
        kept = [
            m.select(x.q, x.k, x.scale).to_mask().sum().item() for m in (ladder[0], ladder[-1])
        ]
        assert kept[0] < kept[1]
    assert KNOBS.keys() == ladders(config).keys()
    assert {12.0, 9.0} <= {method.config.theta for method in ladders(config)[OURS]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "equal_loss"], "the part loss must come before equal_loss"),
        (["--parts", "planted", "--model", "other"], "results made with model 'bundled'"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    out = tmp_path / "side.json"
    monkeypatch.setattr(measure, "environment", lambda device: {"date": "d", "device": "x"})
    command = ["--quick", "--device", "cpu", "--out", str(out)]
    if "--model" in arguments:
        found = {"model": "bundled", "kernels": measure.kernels_version(), "device": "x"}
        Store(out, measure.KEY, found, RUN).add([{"part": "loss", "status": "ok"}])
    assert EXPERIMENT.run([*command, *arguments]) == 2
    assert message in capsys.readouterr().err
