"""What a model loses with each method: tokens, costs, levels, the run, page and picture."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from anchor_lab.experiments.compare.measure import compare_heads
from anchor_lab.experiments.losses import figure, finished, measure, pieces
from anchor_lab.experiments.losses.page import EXPERIMENT, by_token, values
from anchor_lab.experiments.losses.spending import spending
from anchor_lab.experiments.losses.tokens import CLASSES, FAR, NEAR, NEW, classes_of
from anchor_lab.experiments.outliers.texts import tokens_of
from anchor_lab.experiments.rivals.page import kind_of
from anchor_lab.experiments.store import Store, read, write_json
from anchor_lab.methods import METHODS, Dense, Triangle, TriangleMix
from anchor_lab.methods.in_a_model import attend, method_attention
from anchor_models import capture_qkv, load_bundled
from anchor_models.models import load_pretrained
from tests.tree import ROOT

# -- which tokens


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 12))
def test_a_token_is_what_a_look_at_all_earlier_places_says(tokens, near):
    expected = []
    for place in range(1, len(tokens)):
        three = tokens[place - 2 : place + 1] if place > 1 else None
        back = [
            place - earlier
            for earlier in range(2, place)
            if three is not None and tokens[earlier - 2 : earlier + 1] == three
        ]
        expected.append(NEW if not back else NEAR if min(back) <= near else FAR)
    assert [CLASSES[at] for at in classes_of(tokens, near).tolist()] == expected


def test_no_distance_is_refused():
    with pytest.raises(ValueError, match="near must be at least 1, got 0"):
        classes_of([1, 2, 3], 0)


# -- what it costs


@pytest.fixture(scope="module")
def model():
    return load_bundled()


@pytest.fixture(scope="module")
def tokens(model):
    kinds = ("code", "chat")
    return torch.tensor([tokens_of(kind, model[1], 260, ROOT) for kind in kinds])


@pytest.mark.parametrize(
    "method",
    [
        METHODS["StreamingLLM"](8, 40, 16),
        METHODS["SkipSoftmax"](0.3, 32),
        METHODS["TokenTopK"](20),
        METHODS["XAttention"](0.7, 4, 32),
    ],
    ids=lambda one: type(one).__name__,
)
def test_costs_are_those_of_the_first_layer_measured_by_itself(model, tokens, method):
    """Layers after the first read what a method made of those before."""
    with spending(model[0], method) as spent, torch.no_grad():
        model[0](tokens)
    expected = dict.fromkeys(("density", "executed_density", "total_cost"), 0.0)
    for text in tokens:
        x = capture_qkv(model[0], text[None], [0])[0]
        for (head,) in compare_heads(x.q, x.k, x.v, [method], x.scaling):
            for name in expected:
                expected[name] += head[name] / (len(tokens) * x.q.shape[1])
    first = type(spent)(spent.density[:1], spent.tiles[:1], spent.scored[:1])
    assert first.means() == pytest.approx(expected, abs=1e-5)
    assert len(spent.density) == len(spent.tiles) == model[0].config.num_hidden_layers


def test_a_model_reads_the_same_whether_it_is_watched_or_not(model, tokens):
    for method in (METHODS["StreamingLLM"](8, 40, 16), TriangleMix(Dense(), Triangle(8, 16, 4))):
        with spending(model[0], method) as spent, torch.no_grad():
            watched = model[0](tokens).logits
        with method_attention(model[0], method) as densities, torch.no_grad():
            alone = model[0](tokens).logits
        assert torch.equal(watched, alone)
        assert spent.density == densities
    half = model[0].config.num_hidden_layers // 2
    assert spent.tiles[:half] == [None] * half  # dense attention has no tiles
    assert None not in spent.tiles[half:]
    assert spent.means()["executed_density"] == pytest.approx(
        (half + sum(spent.tiles[half:])) / (2 * half)
    )


# -- what is lost


def test_a_row_tells_what_the_logits_say(model, tokens):
    reader = measure.Reader(model[0], tokens, ("code", "chat"), 128)
    method = METHODS["StreamingLLM"](8, 40, 16)
    row = reader.row(method)
    dense, sparse = logit_losses(model[0], tokens), None
    with method_attention(model[0], method):
        sparse = logit_losses(model[0], tokens)
    lost = (sparse - dense)[:, 128:]
    for at, text in enumerate(("code", "chat")):
        parts = [part.mean().item() for part in lost[at].tensor_split(measure.RUNS)]
        assert row["runs"][text] == pytest.approx(parts, abs=1e-4)
        kinds = classes_of(tokens[at].tolist(), 128)[128:]
        sums = [lost[at][kinds == place].sum().item() for place in range(len(CLASSES))]
        assert row["classes"][text] == pytest.approx(sums, abs=5e-3)
        eighths = [lost[at][16 * part : 16 * part + 16].sum().item() for part in range(8)]
        eighths[0] += lost[at][128:].sum().item()  # the third group has three predictions
        assert row["eighths"][text] == pytest.approx(eighths, abs=5e-3)
        assert row["worst"][text] == pytest.approx(lost[at].max().item(), abs=2e-3)
    own = reader.row(None)
    assert own["density"] == own["total_cost"] == 1
    for at, text in enumerate(("code", "chat")):
        assert sum(own["counts"][text]) == tokens.shape[1] - 1 - 128
        whole = dense[at, 128:].sum().item()
        assert sum(own["classes"][text]) == pytest.approx(whole, rel=1e-4)


def logit_losses(model, tokens):
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1]
    return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").double()


def test_dense_attention_as_a_method_loses_nothing(model, tokens):
    reader = measure.Reader(model[0], tokens, ("code", "chat"), 128)
    row = reader.row(Dense())
    assert all(abs(x) < 1e-4 for runs in row["runs"].values() for x in runs)


# -- long prompts, in larger pieces


@pytest.mark.parametrize("name", [*METHODS])
def test_larger_pieces_keep_the_same_keys_and_give_the_same_output(name):
    """Pieces whose ends are no ends of a method's blocks, and a last one that is short."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 300, 16) for heads in (6, 2, 2))
    found = METHODS[name].small().select(q, k, 0.3)
    out, density = pieces.attend(q, k, v, found, 0.3, rows=90)
    expected, kept = attend(q, k, v, found, 0.3)
    assert density == pytest.approx(kept)
    assert torch.allclose(out, expected, atol=1e-5)


def test_all_keys_are_those_up_to_the_query_s_own_and_heads_share_them_in_order():
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, heads, 50, 16) for heads in (6, 2, 2))
    out = pieces.attend_densely(q, k, v, 0.3)
    assert torch.allclose(out, attend(q, k, v, Dense().select(q, k), 0.3)[0], atol=1e-5)


def test_a_model_read_in_larger_pieces_loses_and_spends_the_same(model, tokens):
    names = ("code", "chat")
    usual = measure.Reader(model[0], tokens, names, 128)
    pieced = measure.Reader(model[0], tokens, names, 128, rows=100)
    assert torch.allclose(usual.dense, pieced.dense, atol=1e-4)
    for method in (
        METHODS["SkipSoftmax"](0.3, 32),
        TriangleMix(Dense(), METHODS["StreamingLLM"](8, 40, 16)),
    ):
        one, other = usual.row(method), pieced.row(method)
        for name in ("density", "executed_density", "total_cost"):
            assert other[name] == pytest.approx(one[name], abs=2e-5)
        assert one["density"] < 1
        for text in names:
            assert other["runs"][text] == pytest.approx(one["runs"][text], abs=1e-4)
            assert other["eighths"][text] == pytest.approx(one["eighths"][text], abs=5e-3)


def asked_for(*words):
    return measure.sizes_of(EXPERIMENT.parser().parse_args(words))


def test_beyond_the_usual_length_published_methods_and_whole_blocks_are_read():
    assert asked_for() == measure.FULL
    long = asked_for("--length", "32768")
    assert (long.tokens, long.texts, long.thetas) == (32_768, measure.TEXTS, measure.THETAS)
    assert {kind_of(name) for name in long.methods} == {"published", "variant"}
    assert [name for name in long.methods if kind_of(name) == "variant"] == ["AnchorBlocks"]
    assert len(long.methods) == 1 + sum(
        kind_of(name) == "published" for name in measure.FULL.methods
    )
    assert asked_for("--length", "4096").methods == measure.FULL.methods
    assert "TokenTopK" in asked_for("--length", "32768", "--methods", "TokenTopK").methods


def test_of_ours_the_levels_alone_are_read_beside_methods_that_are_named():
    assert asked_for("--methods", "SALE").thetas == (9.0, 12.0)
    both = asked_for("--methods", "SALE", measure.OURS)
    assert (both.thetas, both.methods) == (measure.THETAS, ("SALE",))
    assert asked_for("--methods", measure.OURS).methods == ()


# -- levels


def test_a_level_is_bracketed_by_neighbours():
    for values_ in itertools.combinations_with_replacement((0.0, 1.0, 2.0, 3.0), 4):
        for level in (-0.5, 0.0, 1.5, 2.0, 4.0):
            asked = []
            low, high = measure.bracket(
                lambda at, v=values_, asked=asked: asked.append(at) or v[at], 4, level
            )
            assert high == low + 1
            assert low == -1 or values_[low] < level
            assert high == 4 or values_[high] >= level
            # Both were looked at, or the page could not read off between them.
            assert {low, high} - {-1, 4} <= set(asked)


def pretend(spent):
    """Reads by a table: of a method, its density and cost."""

    def read_one(method):
        density, cost = (1.0, 1.0) if method is None else spent[method]
        by_text = {"runs": {"t": [1 - density] * 4}, "classes": {"t": [0.0, 0.0, 1 - density]}}
        by_text["eighths"] = {"t": [0.0] * 8}
        return {"density": density, "total_cost": cost, "worst": {"t": 0.1}, **by_text}

    return read_one


def one(number):
    """A method that is told from others and never asked to choose."""
    return METHODS["TokenTopK"](number)


WANTED = {
    measure.DENSE: {"default": None},
    measure.OURS: {"theta=-inf": one(21), "theta=9": one(22), "theta=12": one(23)},
    "A": {f"a={at}": one(at + 1) for at in range(9)},
    "B": {"b=0": one(31)},
}
SPENT = {
    one(21): (0.1, 0.2),
    one(22): (0.3, 0.4),
    one(23): (0.6, 0.7),
    one(31): (0.8, 0.9),
    **{one(at + 1): (0.1 * at + 0.05, 0.1 * at + 0.35) for at in range(9)},
}


def test_of_other_methods_what_the_levels_need_is_read(tmp_path):
    store = Store(tmp_path / "a.json", measure.KEY, {})
    assert measure.fill(store, WANTED, pretend(SPENT), 1.0, lambda: 0.0)
    read_ = {name: [x["configuration"] for x in store.rows if x["method"] == name]
             for name in WANTED}  # fmt: skip
    assert read_[measure.OURS] == list(WANTED[measure.OURS])
    # .3 and .6 of the pairs lie between 2 and 3, 5 and 6; .4 and .7 of the work 0 and 1, 3 and 4.
    assert {f"a={at}" for at in (0, 1, 2, 3, 4, 5, 6)} <= set(read_["A"])
    assert "a=8" not in read_["A"]
    assert read_["B"] == ["b=0"]


def test_oracles_are_asked_for_pairs_alone(tmp_path):
    store = Store(tmp_path / "a.json", measure.KEY, {})
    wanted = {**WANTED, "TokenTopK": WANTED["A"]}
    del wanted["A"], wanted["B"]
    assert measure.fill(store, wanted, pretend(SPENT), 1.0, lambda: 0.0)
    found = {x["configuration"] for x in store.rows if x["method"] == "TokenTopK"}
    assert {"a=2", "a=3", "a=5", "a=6"} <= found
    assert "a=0" not in found  # of .4 of the work


def test_nothing_is_begun_when_the_time_is_over_and_nothing_read_twice(tmp_path):
    store, asked = Store(tmp_path / "a.json", measure.KEY, {}), []

    def counted(method):
        asked.append(method)
        return pretend(SPENT)(method)

    clock = iter(map(float, range(99)))
    assert not measure.fill(store, WANTED, counted, 2.0, lambda: next(clock))
    assert asked == [None, one(21), one(22)]
    assert measure.fill(store, WANTED, counted, 1.0, lambda: 0.0)
    assert len(asked) == len(set(asked)) == len(store.rows)


def test_ladders_hold_every_method_and_those_that_sort_come_last():
    ladders = measure.ladders(measure.THETAS, measure.FULL.methods)
    assert set(ladders) == {*METHODS, measure.MIX}
    assert list(ladders)[:2] == [measure.DENSE, measure.OURS]
    assert tuple(ladders)[-3:] == measure.SORTING
    for theta in measure.GOALS:
        assert measure.theta_label(theta) in ladders[measure.OURS]
    assert ladders[measure.MIX]["share=0.5"] == TriangleMix()
    assert len(ladders["XAttention"]) == len(METHODS["XAttention"].sweep())


# -- a run that was stopped


def test_a_method_is_compared_when_the_configurations_next_to_all_levels_are_read():
    ours = [row_with(measure.OURS, f"theta={theta}", x) for theta, x in ((9, 0.3), (12, 0.6))]
    labels = list(measure.ladders((), ["FlashPrefill"])["FlashPrefill"])
    costs = dict(zip(labels, (0.05, 0.1, 0.15, 0.2, 0.25, 0.4, 0.5, 0.7, 0.9), strict=True))
    read = [row_with("FlashPrefill", label, costs[label]) for label in labels]
    dense = row_with(measure.DENSE, "default", 1.0)
    # .3 lies between 4 and 5, .6 between 6 and 7; bisection looks at these and on its way.
    for left_out, is_finished in ((0, True), (8, True), (4, False), (5, False), (6, False)):
        some = [row for place, row in enumerate(read) if place != left_out]
        rows = [dense, *ours, *some]
        assert finished.unfinished(rows) == ([] if is_finished else ["FlashPrefill"])
        kept = [row for row in rows if is_finished or row not in some]
        assert finished.finished_rows(rows) == kept
        found = finished.comparable({"rows": rows, "settings": {}})
        assert found == ({"rows": rows, "settings": {}} if is_finished else None)
    other = row_with("FlashPrefill", "alpha of yesterday", 0.3)
    assert finished.unfinished([*ours, *read[:1], other]) == [], "of another sweep"


@pytest.mark.parametrize(("name", "is_finished"), [("FlashPrefill", False), ("TokenTopK", True)])
def test_levels_of_work_count_too_but_not_for_oracles(name, is_finished):
    ours = [row_with(measure.OURS, f"theta={theta}", 0.3) for theta in (9, 12)]
    labels, looked = list(measure.ladders((), [name])[name]), []

    def density(place):
        looked.append(place)
        return place / len(labels)

    measure.bracket(density, len(labels), 0.3)
    # Of no work: next to the level lies the last configuration, which is not read.
    rows = [row_with(name, labels[place], place / len(labels)) for place in looked]
    rows = [{**row, "total_cost": 0.0} for row in rows]
    assert finished.unfinished([*ours, *rows]) == ([] if is_finished else [name])


def test_a_method_that_is_only_begun_is_left_out_until_most_are():
    done = [row_with(measure.OURS, f"theta={theta}", 0.3) for theta in (9, 12)]
    done.append(row_with("FlashPrefill", "alpha of yesterday", 0.3))
    begun = [
        row_with(name, next(iter(measure.ladders((), [name])[name])), 0.1)
        for name in ("XAttention", "BFLA")
    ]
    found = finished.comparable({"rows": [*done, begun[0]], "settings": {}})
    assert found == {"rows": done, "settings": {}}
    assert finished.comparable({"rows": [*done, *begun], "settings": {}}) is None


def row_with(method, label, spent) -> dict:
    return {"method": method, "configuration": label, "density": spent, "total_cost": spent}


# -- page and picture


def made(name, label, density, cost, runs, classes, **more):
    return {
        "method": name, "configuration": label, "density": density, "total_cost": cost,
        "executed_density": cost, "runs": {"prose": runs, "chat": runs},
        "classes": {"prose": classes, "chat": classes},
        "eighths": {"prose": [sum(classes)] + [0.0] * 7, "chat": [0.0] * 8},
        "worst": {"prose": 1.0, "chat": 1.0},
        **more,
    }  # fmt: skip


@pytest.fixture
def results():
    counts = {"prose": [10, 20, 70], "chat": [30, 0, 70]}
    rows = [
        made("Dense", "default", 1.0, 1.0, [0.0] * 4, [20.0, 30.0, 250.0], counts=counts),
        made("AnchorAttention", "theta=9", 0.3, 0.4, [0.04, 0.06] * 2, [4.0, 1.0, 0.0]),
        made("AnchorAttention", "theta=12", 0.6, 0.7, [0.02] * 4, [2.0, 0.0, 0.0]),
        made("XAttention", "threshold=1", 0.5, 0.8, [0.3] * 4, [30.0, 0.0, 0.0]),
        made("XAttention", "threshold=2", 0.7, 0.9, [0.1] * 4, [10.0, 0.0, 0.0]),
        made("StreamingLLM", "window=1", 0.2, 0.2, [0.01] * 4, [0.0, 1.0, 0.0]),
        made("TokenTopK", "k=1", 0.1, 1.5, [-0.01, 0.01] * 2, [0.0, 0.0, 0.0]),
    ]
    names = ("model", "weights", "device", "torch", "transformers", "dtype", "runs")
    about = dict.fromkeys(names, "x") | {"tokens": 8192, "texts": {"prose": "a", "chat": "b"}}
    return {"settings": about, "runs": [{"date": "2026-01-01"}], "rows": rows}


def test_losses_are_read_off_where_as_much_is_spent(results):
    rows = results["rows"]
    assert figure.data_level(rows, "density", 12.0) == 0.6
    assert figure.data_level(rows, "density", 7.0) is None
    found = figure.data_at(rows, "density", 0.6)
    assert list(found) == ["TokenTopK", "StreamingLLM", "AnchorAttention", "XAttention"]
    x = found["XAttention"]
    assert x.mean == pytest.approx(0.2)
    assert (x.density, x.total_cost) == pytest.approx((0.6, 0.85))
    assert x.classes["prose"] == pytest.approx([20, 0, 0])
    assert found["StreamingLLM"].density == 0.2  # its densest
    assert found["AnchorAttention"].interval == pytest.approx((0.02, 0.02))
    assert figure.data_at(rows, "density", 0.3)["XAttention"] is None
    assert list(figure.data_at(rows, "density", 0.3))[-1] == "XAttention"
    assert figure.data_at(rows, "total_cost", 0.4)["AnchorAttention"].mean == pytest.approx(0.05)


def test_tokens_of_a_kind_lose_by_the_token_and_by_their_share(results):
    rows = results["rows"]
    ours = figure.data_lost(rows[1])
    found = figure.data_classes(rows, ours)
    # 4 nats in each text, of 10 and 30 tokens; 1 of 20 and none.
    assert found[FAR] == pytest.approx((8 / 40, 0.8))
    assert found[NEAR] == pytest.approx((2 / 20, 0.2))
    assert found[NEW] == (0, 0)
    line = {one[0]: one for one in by_token(rows, 9.0)}
    assert line["AnchorAttention"][1:] == [
        "0.2000", "0.1000", "0.0000", "80 %", "20 %", "0 %", "0.20",
    ]  # fmt: skip
    assert line["TokenTopK"][4:] == ["–"] * 4  # it may lose nothing
    assert "XAttention" not in line


def test_rows_lose_by_their_place_in_the_group(results):
    ours = figure.data_lost(results["rows"][1])
    # 5 nats in one of two texts; of 8192 tokens three groups count, without the last row.
    found = figure.data_eighths(ours, 8192)
    assert found == pytest.approx([5 / (2 * 3 * 256)] + [0.0] * 7)
    few = figure.data_eighths(ours, 2304)
    assert few[0] == pytest.approx(5 / (2 * 255))
    assert few[1] != few[1]  # no row lies there
    (lines, *_) = (one["eighths"] for one in values(results)["tokens_lost"])
    assert [line[0] for line in lines][:2] == ["TokenTopK", "StreamingLLM"]


def test_the_page_counts_as_less_what_lies_below_both_intervals(results):
    found = values(results)
    assert found["dense"][0] == ["prose", "3.000", "10 %", "20 %", "70 %"]
    twelve = found["levels"][0]
    assert (twelve["theta"], twelve["budget"], twelve["level"]) == ("12", "pairs kept", "60 %")
    assert (twelve["less"], twelve["more"]) == (["StreamingLLM"], ["XAttention"])
    assert (twelve["place"], twelve["of"]) == (2, 3)
    work = found["levels"][1]
    assert work["out"] == ["XAttention"]
    assert "TokenTopK" not in [line[0] for line in work["lines"]]  # an oracle saves no work
    text = EXPERIMENT.page(results, ROOT / "losses.md")
    assert text.splitlines()[0].endswith("with each method: prose, chat, 8\u202f192 tokens")
    assert "YaRN" not in text
    assert "Less is lost, beyond both intervals, by StreamingLLM; more by XAttention." in text


def test_the_page_says_where_the_model_gains_nothing_from_far_tokens(results, tmp_path):
    """By what lies beside it: texts of this length and kind that are read better in pieces."""
    page = tmp_path / "losses" / "losses.md"
    assert "worse at once" not in EXPERIMENT.page(results, page)
    rows = [
        {"part": "reads", "length": n, "text": text, "whole": [whole], "pieces": [2.0]}
        for n, text, whole in (
            *((8192, "prose", 2.1), (8192, "chat", 1.9)),
            *((8192, "a novel", 2.1), (16_384, "chat", 2.1)),
        )
    ]
    (tmp_path / "lengths").mkdir()
    write_json(tmp_path / "lengths" / "lengths.json", {}, rows)
    text = EXPERIMENT.page(results, page)
    said = "Texts of this length and these kinds (prose) the model reads worse at once"
    assert f"*from far*.\n\n{said}" in text
    assert "such as StreamingLLM.\n\n| text | dense loss" in text
    label = next(iter(measure.ladders((), ["BFLA"])["BFLA"]))
    begun = {**results, "rows": [*results["rows"], row_with("BFLA", label, 0.1)]}
    said = "such as StreamingLLM.\n\nBegun, and not compared"
    assert f"{said} before the configurations next to each level are read: BFLA.\n\n| text |" in (
        EXPERIMENT.page(begun, page)
    )
    assert "([lengths](../lengths/lengths.md))" in text
    write_json(tmp_path / "lengths" / "lengths.json", {}, rows[1:2])
    assert "worse at once" not in EXPERIMENT.page(results, page)


# -- the run


def test_a_quick_run_writes_rows_page_and_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    sizes = measure.Sizes(2110, ("code",), (9.0, 12.0), ("StreamingLLM", measure.MIX))
    monkeypatch.setattr(measure, "QUICK", sizes)
    monkeypatch.setattr(measure, "SHARES", (0.0, 0.5))
    out = tmp_path / "a.json"
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(out)]
    assert EXPERIMENT.run([*fixed, "--time-s", "0"]) == 1
    assert not out.exists()
    assert EXPERIMENT.run([*fixed, "--parts", "sorting"]) == 0  # none of the quick ones sorts
    assert len(read(out)["rows"]) == 3
    assert EXPERIMENT.run(fixed) == 0
    rows = read(out)["rows"]
    assert [row["method"] for row in rows[:3]] == ["Dense", "AnchorAttention", "AnchorAttention"]
    assert {row["method"] for row in rows[3:]} == {"StreamingLLM", "TriangleMix"}
    assert rows[1]["density"] < rows[2]["density"] < 1
    assert rows[1]["total_cost"] > rows[1]["executed_density"]
    assert out.with_suffix(".png").exists()
    assert read(out)["settings"]["tokens"] == 2110
    assert "## Total cost as AnchorAttention at θ = 9" in out.with_suffix(".md").read_text("utf-8")


def test_a_length_beyond_the_usual_is_read_in_pieces_and_stretched(tmp_path, monkeypatch):
    """The bundled model stands for one whose positions end at 2048."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(measure, "FULL", replace(measure.FULL, tokens=2048))
    monkeypatch.setattr(measure, "QUICK", replace(measure.QUICK, texts=("code",)))
    seen, stretched = [], []

    def loaded(*given):
        model, tokenizer = load_pretrained(*given)
        model.config.max_position_embeddings = 2048
        return model, tokenizer

    def watched(original, found):
        def call(*given, **named):
            found.append(given[1])
            return original(*given, **named)

        return call

    monkeypatch.setattr(measure, "load_pretrained", loaded)
    monkeypatch.setattr(measure, "stretch", watched(measure.stretch, stretched))
    monkeypatch.setattr(pieces, "attend_densely", watched(pieces.attend_densely, seen))
    out = tmp_path / "long.json"
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(out)]
    assert EXPERIMENT.run([*fixed, "--length", "2100", "--methods", "StreamingLLM"]) == 0
    found = read(out)
    assert (found["settings"]["tokens"], found["settings"]["positions"]) == (2100, 2048)
    assert [row["configuration"] for row in found["rows"][:3]] == [
        *("default", "theta=9", "theta=12"),
    ]
    assert seen  # dense attention, too
    assert set(stretched) == {2100}
    page = out.with_suffix(".md").read_text("utf-8")
    assert page.startswith(
        "# What a whole model loses with each method: code, 2\u202f100 tokens\n"
    )
    assert "read by YaRN" in page


def test_a_length_without_a_prediction_for_each_run_is_refused(tmp_path, capsys):
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(tmp_path / "a.json")]
    assert EXPERIMENT.run([*fixed, "--length", "2080"]) == 2
    assert "--length must be at least 2081, got 2080" in capsys.readouterr().err


def test_a_length_that_no_text_has_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    fixed = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(tmp_path / "a.json")]
    assert EXPERIMENT.run([*fixed, "--length", "10000000"]) == 2
    assert "for code, got 10000000" in capsys.readouterr().err
