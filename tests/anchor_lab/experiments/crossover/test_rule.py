"""What notebook 12 shows of whole prefills: shares, the rule and what it tells."""

import pytest
import torch
from matplotlib import pyplot as plt

from anchor_lab.drawing import style
from anchor_lab.experiments.advice import facts
from anchor_lab.experiments.course import committed
from anchor_lab.experiments.crossover import rule as course
from anchor_lab.experiments.page import percent
from anchor_ref import AnchorConfig, StripePlan
from anchor_ref.measure import density
from anchor_ref.regions import groups
from tests.tree import RESULTS
from tools import three_answers

ROWS = committed("crossover")["rows"]


def call(way: str, n: int, ms: float, **fields) -> dict:
    made = {"part": "calls", "way": way, "q_heads": 9, "kv_heads": 3, "head_dim": 64}
    made |= {"queries": n, "keys": n, "kept": None, "tail": None, "ms": {"median": ms}}
    return made | fields


def prefill(way: str, n: int, ms: float, sparse: int) -> dict:
    made = {"part": "prefill", "model": "smollm2", "way": way, "queries": n, "keys": n}
    return made | {"ms": {"median": ms}, "sparse_layers": sparse}


@pytest.mark.parametrize("tail", [0, 512])
@pytest.mark.parametrize("stripes", [0.0, 1.0])
def test_the_share_kept_is_the_density_of_a_plan(stripes, tail):
    config, n = AnchorConfig(tail=tail), 5000
    layout = groups(config, n, n)
    kept = [torch.full((len(group.candidates),), stripes) for group in layout]
    plan = StripePlan.from_candidates(
        [x.bool()[None, None] for x in kept], [group.candidates for group in layout]
    )
    found = density(plan, config, n, n).item()
    assert course.share_kept(n, stripes, tail) == pytest.approx(found)


def test_a_rule_that_holds_exactly_is_found():
    wanted = course.Rule(1.5, 0.1, 0.25)
    rows = []
    for n, dense in ((4096, 0.5), (8192, 2.0), (16_384, 8.0), (12_288, 4.0)):
        rows.append(call("dense", n, dense))
        for kept in (0.1, 0.5):
            ms = dense * wanted(course.share_kept(n, kept, 512), dense)
            rows.append(call("anchor", n, ms, kept=kept, tail=512))
    rows.append(call("anchor", 4096, 9.0, kept=0.1, tail=0) | {"queries": 512})  # a chunk
    calls = course.data_ratios(rows)
    assert len(calls) == 8
    assert [x.n for x in calls if x.judges] == [12_288] * 2  # held out
    found = course.fit_rule(calls)
    assert (found.x, found.y, found.z) == pytest.approx((1.5, 0.1, 0.25))
    assert found(found.most_kept(2.0), 2.0) == pytest.approx(1)
    right = course.judged(found, calls)
    assert (right["calls"], right["wrong"], right["near"]) == (2, 0, 0.0)
    assert right["nine_of_ten"] < 1e-6
    bad = course.judged(course.Rule(0.0, 2.0, 0.0), calls)  # foretells a loss, twice a gain
    assert bad["wrong"] == 1  # the other is one
    assert 0 < bad["near"] < 1


def test_the_share_is_that_of_all_layers_and_decides_what_a_gain_is_worth():
    rows = [call("dense", 8192, 2.0), prefill("sdpa", 8192, 80.0, 0)]
    rows.append(prefill("always", 8192, 60.0, 10))
    (found,) = course.data_share(rows).values()
    assert found[8192]["share"] == pytest.approx(10 * 2.0 / 80)
    assert found[8192]["always"] == pytest.approx(0.75)
    assert course.of_prefill(0.25, 0.0) == 0.75  # even free attention
    assert course.of_prefill(0.25, 1.0) == 1.0
    # 8 ms a layer at 8192 tokens, 2 of them attention: 12 of the rest at twice the length
    assert course.longer(found, 16_384, 4.0) == pytest.approx(4 / 16)
    with pytest.raises(ValueError, match="16384, got 4096"):
        course.longer(found, 4096, 4.0)


def test_every_page_tells_the_same_share():
    """README, the advice and the page about crossover, beside this notebook."""
    results = committed("crossover")
    found = course.data_share(results["rows"])["SmolLM2-135M"]
    advised = facts.most_gain(results["rows"])
    readme = three_answers.pays(results, committed("lengths"))
    page = (RESULTS / "crossover" / "crossover.md").read_text("utf-8")
    for n in (8192, 65_536):
        assert advised[n][0] == found[n]["share"]
        assert f"| {100 * found[n]['share']:.0f} % |" in readme
        assert f"| {percent(found[n]['share'])} |" in page


def test_every_figure_draws_from_the_committed_results():
    style.use_style()
    data = course.data_share(ROWS)
    assert [len(found) for found in data.values()] == [9, 9]
    expected = course.data_expected(data, course.fit_rule(course.data_ratios(ROWS)))
    assert expected.keys() == data.keys()
    assert "0.555" in course.kept_table([4096], [0.05])
    course.show_share(data, "here")
    course.show_rule(data, expected, "here")
    assert not plt.get_fignums()


def test_workloads_are_told_by_the_rule_and_measured_where_they_were():
    data = course.data_share(ROWS)
    rule = course.fit_rule(course.data_ratios(ROWS))
    found = course.data_workloads(data, rule, 200.0)
    assert [x["n"] for x in found.values()] == [8192, 65_536, 131_072]
    chat, retrieval, summaries = found.values()
    assert chat["measured"] == data["SmolLM2-135M"][8192]["always"]
    assert summaries["measured"] is None
    assert retrieval["left"] == pytest.approx(1 - retrieval["a"] * (1 - retrieval["r"]))
    assert summaries["r"] == pytest.approx(rule(course.assumed_kept(131_072), 200.0))
    lines = course.workloads_table(found).splitlines()
    assert len(lines) == 4
    assert lines[-1].endswith("–")
