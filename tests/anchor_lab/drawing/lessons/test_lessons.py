"""What notebooks show: numbers against plain computations, and words that follow them."""

import math
import re
from dataclasses import replace

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.analysis import locate_maxima
from anchor_lab.drawing import style
from anchor_lab.drawing.lessons import (
    asked,
    dials,
    heads,
    merging,
    near,
    pictures,
    place,
    six,
    sparse,
    stripes,
)
from anchor_lab.methods.outliers import OutlierRows
from anchor_models import Captured, planted_stripes
from anchor_models.heads import BundledHeads
from anchor_models.six_tokens import six_tokens
from anchor_ref import AnchorConfig, anchor_attention, compute_anchor, identify_stripes
from anchor_ref.heads import causal_scores
from anchor_ref.measure import measure
from anchor_ref.regions import groups

N = 256
CONFIG = AnchorConfig(block_size=16, step=4, theta=6.0)


@pytest.fixture(scope="module")
def layer():
    """Two query heads of one key head, with heavy keys."""
    x = planted_stripes(N, q_heads=2, kv_heads=1, head_dim=16, density=0.05)
    return Captured(x.q, x.k, x.v, 0.25, layer=4, heads=(6, 7))


@pytest.fixture(scope="module")
def trace(layer):
    return anchor_attention(layer.q, layer.k, layer.v, CONFIG, layer.scaling, return_trace=True)[1]


@pytest.fixture
def said(monkeypatch):
    """Alternative texts of the figures shown; each is drawn."""
    found = []

    def show(figure, alt):
        figure.canvas.draw()
        plt.close(figure)
        found.append(alt)

    monkeypatch.setattr(style, "show", show)
    return found


def test_a_caption_names_model_layer_head_and_theta(layer):
    assert place.small_print(layer, 1) == "SmolLM2, layer 4, head 7, N = 256"
    told = place.small_print(layer, 1, AnchorConfig(theta=9.0, tail=5))
    assert told == "SmolLM2, layer 4, head 7, N = 256, θ = 9, tail 5"
    assert place.small_print(layer) == "SmolLM2, layer 4, heads 6, 7, N = 256"


def test_an_error_is_the_mass_lost_times_how_far_apart_the_means_are(layer):
    found = sparse.data_controls(layer, 1, CONFIG)
    weights = causal_scores(layer.q, layer.k, layer.scaling)[0, 1].softmax(-1).double()
    v = layer.v[0, 0].double()
    dense = (weights @ v)[CONFIG.group_size :]
    kept = torch.zeros(N, N, dtype=torch.bool)
    for group in groups(CONFIG, N, N):
        for row in group.rows:
            kept[row, [*group.init, *range(group.window_start, row + 1)]] = True
    inside = (weights * kept)[CONFIG.group_size :]
    outside = (weights * ~kept)[CONFIG.group_size :]
    lost = outside.sum(-1)
    means = inside @ v / inside.sum(-1, keepdim=True), outside @ v / lost[:, None]
    error = lost * (means[0] - means[1]).norm(dim=-1)
    unit = dense.norm(dim=-1).mean()
    none = found["no stripes"]
    assert none["lost"] == pytest.approx(float(lost.mean()), rel=1e-4)
    assert none["error"] == pytest.approx(float(error.mean() / unit), rel=1e-3)
    assert none["error"] == pytest.approx(none["lost"] * none["apart"])
    assert found["chosen"]["lost"] < min(found[name]["lost"] for name in sparse.CONTROLS[:3])


def test_controls_have_as_many_keys_and_only_candidates(layer, trace):
    made = sparse.with_others(trace.stripes, CONFIG, N, lambda n, count: torch.arange(count))
    assert torch.equal(made.counts, trace.stripes.counts)
    for g, group in enumerate(groups(CONFIG, N, N)):
        count = int(made.counts[0, 0, g])
        assert made.keys(0, 0, g).tolist() == list(group.candidates)[:count]
    yours = sparse.data_controls(layer, 0, CONFIG, yours=lambda n, count: torch.arange(count))
    assert list(yours) == [*sparse.CONTROLS, "yours"]
    assert sparse.controls_table(yours).count("\n") == len(yours)


def test_a_star_marks_the_heads_in_which_a_control_leaves_less():
    def errors(chosen):
        return dict(zip(sparse.CONTROLS, (0.5, 0.4, 0.3, chosen), strict=True))

    table = sparse.errors_table({(1, 2): errors(0.1), (3, 4): errors(0.35)}).splitlines()
    assert [line.endswith("*") for line in table] == [False, False, True]


def test_rows_of_the_tail_keep_everything_and_cost_pairs(layer):
    none = replace(CONFIG, theta=-math.inf)  # the planted keys would hold it all
    found = sparse.data_tails(layer, 0, [200, 255], none, (0, 8, 64))
    assert found[8]["recall"][1] == pytest.approx(1)
    assert found[8]["recall"][0] == found[0]["recall"][0] < 1
    assert found[64]["recall"][0] == pytest.approx(1)
    assert found[0]["density"] < found[8]["density"] < found[64]["density"]
    assert "row 255" in sparse.tails_table(found, [200, 255])


def test_mass_of_a_column_is_that_of_the_mean_row(layer):
    rows = torch.arange(200, N, 3)
    weights = causal_scores(layer.q, layer.k, layer.scaling)[0, 1].softmax(-1)
    expected = weights[rows].mean(0)
    expected[:128] = 0
    torch.testing.assert_close(pictures.column_mass(layer, 1, rows), expected)
    torch.testing.assert_close(pictures.weights_of(layer, 1), weights)


def test_heads_of_stripes_have_much_mass_far_away_on_few_keys():
    told = [(0.4, 0.95), (0.4, 0.5), (0.1, 0.95)]
    rows = tuple({"layer": 0, "head": i, "far": f, "top": t} for i, (f, t) in enumerate(told))
    bundled = BundledHeads({}, (), range(0), "", {}, rows)
    assert pictures.of_stripes(bundled) == [(0, 0)]


def test_theta_adds_keys_and_the_slider_redraws(layer, said):
    sparser, denser = dials.show_thetas(layer, 0, CONFIG, (2.0, 8.0))
    assert not (sparser.to_mask(N) & ~denser.to_mask(N)).any()
    slider, image = dials.slider(layer, 0, CONFIG).children
    before, slider.value = image.value, 2.0
    assert image.value != before
    assert "θ = 2: recall" in said[0]


def test_figures_of_heads_say_what_they_show(layer, trace, said):
    anchor = trace.row_anchor[0, 1]
    gap = heads.show_anchor_gap(layer, 1, anchor)["gap"]
    exact = (gap < 1e-4).double().mean()
    assert f"{exact:.0%} of the rows lie at 0" in said[-1]
    test = heads.show_difference(layer, 1, anchor, CONFIG)
    kept = int((test["difference"] <= CONFIG.theta).sum())
    assert f"{kept} of {len(test['key'])} dots" in said[-1]
    heads.show_kept(layer, 1, trace.stripes, CONFIG)
    assert ", ".join(map(str, trace.stripes.counts[0, 1].tolist())) in said[-1]
    data = heads.show_recall(layer, 1, torch.linspace(0.5, 1, N), CONFIG)
    assert f"lowest median is {float(data['median'].min()):.2f}" in said[-1]


def test_density_of_all_heads_is_counted_in_words(said):
    rows = tuple(
        {"layer": i // 3, "head": i % 3, "density 9": d}
        for i, d in enumerate((0.3, 0.32, 0.95, 0.35, 0.5, 0.89))
    )
    bundled = BundledHeads({}, ("a",) * 7, range(0), "", {}, rows)
    assert heads.show_all_heads(bundled, 9.0) == [[0.3, 0.32, 0.95], [0.35, 0.5, 0.89]]
    assert "under a third in 2 of 6 heads, over nine tenths in 1" in said[0]


def test_the_table_of_layers_counts_rows_beyond_the_first_group(layer, capsys, monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)  # as in plain Python
    few = replace(CONFIG, theta=-math.inf)
    found = measure(layer.q, layer.k, layer.v, few, layer.scaling)
    bundled = BundledHeads({4: layer}, ("a",) * N, range(0), "", {}, ())
    (row,) = heads.layers_table(bundled, {4: found}, few)
    kept = found.recall[0, :, few.group_size :]
    assert row["recall_mean"] == pytest.approx(float(kept.mean()))
    assert row["recall_min"] == pytest.approx(float(kept.amin(-1).mean()))
    names, numbers = capsys.readouterr().out.splitlines()
    assert names.split()[:2] == ["layer", "recall_mean"]
    assert numbers.split()[:2] == ["4", str(round(row["recall_mean"], 3))]


def test_maps_are_named_and_sized(said):
    x = planted_stripes(2304, q_heads=1, kv_heads=1, head_dim=16, density=0.02)
    long = Captured(x.q, x.k, x.v, 0.25, layer=1, heads=(2,))
    found = heads.show_maps([(long, 0)], kinds=["stripes"], columns=1)
    assert list(found) == ["layer 1, head 2"]
    data, rows = found["layer 1, head 2"], torch.arange(2048, 2304, 16)
    weights = causal_scores(x.q, x.k, 0.25)[0, 0, rows].softmax(-1)
    near = rows[:, None] - torch.arange(2304) < 128
    assert data["sink"] == pytest.approx(float(weights[:, 0].mean()))
    assert data["window"] == pytest.approx(float((weights * near).sum(1).mean()))
    assert (
        f"{data['sink']:.0%} of the mass lies on the first key, {data['window']:.0%} on the 128 "
        f"nearest, {data['stripes']:.0%} on the best 1 %"
    ) in said[0]


def test_figures_of_stage_2_say_what_they_show(layer, trace, said):
    anchor = trace.row_anchor[0, 1]
    data = stripes.show_row_test(layer, 1, N - 1, float(anchor[-1]), CONFIG)
    wanted = int((data["difference"] <= CONFIG.theta).sum())
    assert f"{wanted} of {len(data['key'])} lie above" in said[-1]
    last = groups(CONFIG, N, N)[-1]
    rows = slice(last.rows.start, last.rows.stop)
    keys = layer.k[0, 0, last.candidates.start : last.candidates.stop]
    difference = anchor[rows, None] - layer.scaling * layer.q[0, 1, rows] @ keys.T
    union = stripes.show_union(layer, 1, difference, 0.25, CONFIG)
    assert f"{float(union['one'].mean()):.1%} in the mean" in said[-1]
    (one, two) = stripes.show_blocks(layer, 1, {"a": (20, 12), "b": (21, 15)}, anchor, CONFIG)
    assert f"a: {one['share']:.0%} of the rows" in said[-1]
    assert two["share"] != one["share"] or two["mean"] != one["mean"]
    asked = stripes.show_asked(layer, 1, anchor, 20, "word", CONFIG)
    asks = int((asked["difference"] <= CONFIG.theta).sum())
    assert f"{asks} rows ask" in said[-1]


def test_figures_of_asked_rows_say_what_they_show(layer, trace, said):
    rows = {"evenly spaced": [210, 218, 5], "least like the mean": [208]}
    anchor = trace.row_anchor[0, 1]
    seen = asked.show_asked_rows(layer, 1, 20, range(208, 224), rows, anchor, CONFIG)
    scores = 0.25 * layer.q[0, 1, 208:224] @ layer.k[0, 0, 20]
    torch.testing.assert_close(seen["difference"], anchor[208:224] - scores)
    assert f"{seen['share']:.1%} of the rows" in said[-1]
    assert "evenly spaced 2, 10; least like the mean 0." in said[-1]

    other = Captured(layer.q.flip(2), layer.k, layer.v, 0.25, layer=5, heads=(0, 1))
    with_rows = replace(CONFIG, outliers=2, outlier_choice="even")
    data = asked.data_spent([layer, other], {"paper": CONFIG, "asked": with_rows})
    for of in data.values():
        assert all(values.shape == (4,) for values in of.values())
    assert (data["asked"]["density"] >= data["paper"]["density"]).all()
    asked.show_spent(data, [layer, other])
    assert f"paper {float(data['paper']['density'].mean()):.2f} and asked" in said[-1]
    assert asked.names([layer, other])[2] == "layer 5, head 0"

    alike = asked.data_likeness([layer, other], {"even": OutlierRows(with_rows, "even")})
    assert alike["even"]["nearest"].shape == (4,)

    curves = {"paper": [(0.6, 0.1), (0.3, 0.2)], "all rows": [(0.45, 0.0)]}
    asked.show_losses(curves, "Somewhere")
    assert "paper 0.200 with 30%; all rows 0.000 with 45%" in said[-1]


def test_a_token_is_told_in_its_neighbourhood():
    words = ("It", " is", "\n", "12", " now", ".")
    assert stripes.told(words, 3, before=2, after=1) == "… is⏎[12] now…"
    assert stripes.told(words, 0) == "…[It] is⏎12 now…"


def test_figures_of_stage_1_say_how_often_it_misses(layer, said):
    maxima = locate_maxima(layer.q, layer.k, CONFIG, layer.scaling)
    table = near.where_table({4: (layer, maxima)}).splitlines()
    assert len(table) == 3
    shares = [int(x) for x in re.findall(r"(\d+)%", table[1])]
    assert sum(shares) == pytest.approx(100, abs=2)
    found = near.show_gaps({"a": (layer, maxima, 0), "b": (layer, maxima, 1)})
    assert f"a: {found['a']['exact']:.0%} of the rows exact" in said[-1]
    gap = maxima.gap[0, 0, maxima.rows]
    assert f"miss by {float(gap[gap > 0].median()):.1f} in the median" in said[-1]
    lines = near.show_missed({"all layers": [maxima]}, CONFIG.group_size, N)
    assert f"{float(lines['all layers']['share'][0]):.0%} at the start" in said[-1]


def test_tables_of_six_tokens_are_told_by_their_boxes_or_largest(said):
    found = six_tokens()
    s = causal_scores(found.q, found.k, found.scale)[0, 0]
    boxed = torch.zeros(6, 6, dtype=torch.bool)
    boxed[4, 3] = True
    six.show_tables({"One?": s, "Two?": s}, found.words, "note", boxed=boxed)
    assert "One? The largest of each row: <s> for <s>, 4;" in said[-1]
    assert said[-1].endswith("Two? Boxed: code for and, 5.")
    six.show_row(s[5], found.words, "she")
    assert "Ada 3 and 0.234" in said[-1]
    plan = identify_stripes(
        found.q, found.k, compute_anchor(found.q, found.k, found.v, found.config).max, found.config
    )
    six.show_kinds(found.words, found.config, plan)
    assert "and: I S · S W" in said[-1]


def test_figures_of_merging_say_what_they_show(layer, said):
    found = six_tokens()
    scores = found.q[0, 0, 5] @ found.k[0, 0].T / 2
    merging.show_parts(scores, {"a": [0, 4, 5], "b": [1, 2, 3]}, found.words, "she")
    assert "Part b, m = 3: Ada 1.00 then 0.37" in said[-1]
    row = layer.scaling * layer.k[0, 0] @ layer.q[0, 0, -1]
    tiles = list(torch.arange(N).split(64))
    visit = merging.show_visit(row, {"on": tiles, "back": tiles[::-1]}, "note")
    assert math.isclose(float(visit["on"]["mass"][-1]), 1, rel_tol=1e-4)
    assert re.search(r"on: the maximum after \d, half of the sum after \d", said[-1])
    data = merging.show_tiles(row[None].double(), layer.v[0, 0].double(), (1, 64), "note")
    few = [tile for tile, error in zip(data["tile"], data["error"], strict=True) if error > 5e-7]
    assert f"below 5e-07 beyond {max(few, default=0)}" in said[-1]


def test_scattered_stripes_and_pictures_say_how_many(layer, trace, said):
    touched = sparse.show_touched([trace.stripes], CONFIG, N)
    assert f"{float(touched['keys'][0]):.0%} and {float(touched['blocks'][0]):.0%}" in said[-1]
    weights = pictures.weights_of(layer, 0)
    keys = torch.tensor([40, 90])
    seen = pictures.show_pictures(layer, 0, weights, keys)
    assert f"imshow {seen['imshow']}," in said[-1]
