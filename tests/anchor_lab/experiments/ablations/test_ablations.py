"""The paper's ablations: each replaces one choice, and what must follow from that does."""

from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
import torch

from anchor_lab.experiments.ablations import measure as ablations
from anchor_lab.experiments.ablations.measure import QUESTIONS, STEPS, ablate_layer, variants
from anchor_lab.experiments.ablations.page import EXPERIMENT
from anchor_lab.experiments.compare.equal import mean_curves
from anchor_lab.experiments.store import read, write_json
from anchor_lab.methods import AnchorAttention, AnchorBlocks, evaluate
from anchor_models import Captured
from anchor_ref import AnchorConfig
from anchor_ref.regions import groups
from tests.tree import RESULTS

CONFIG = AnchorConfig(block_size=8, step=4, init_blocks=1)
FOLDER = RESULTS / "ablations"
N = 240  # seven groups and a half; step 32 has but one


def test_half_blocks_leave_groups_and_regions_as_they_are():
    config = AnchorConfig(16, 4, init_blocks=2, window_blocks=3)
    for method in variants(config)["block"]["block 8"]:
        halves = groups(method.config, 500, 500)
        for whole, half in zip(groups(config, 500, 500), halves, strict=True):
            assert (half.rows, half.init) == (whole.rows, whole.init)
            assert half.candidates == whole.candidates


@pytest.fixture(scope="module")
def qk():
    random = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, h, N, 16, generator=random, dtype=torch.float64) for h in (2, 1))
    k[:, :, ::37] *= 2  # a few keys with larger scores than the others
    return 2 * q, k


def masks(sweep, qk):
    return [method.select(*qk).to_mask() for method in sweep]


def contains(large, small):
    return not bool((small & ~large).any())


@pytest.fixture(scope="module")
def rows(qk):
    q, k = qk
    x = Captured(q.float(), k.float(), k.float(), 0.25, layer=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablations, "ABLATED_THETAS", (1.0, 6.0))
        return pd.DataFrame(ablate_layer(x, CONFIG))


@pytest.mark.parametrize("ablation", QUESTIONS)
def test_kept_sets_grow_along_every_sweep(ablation, qk):
    for name, sweep in variants(CONFIG)[ablation].items():
        found = masks([sweep[0], sweep[4], sweep[-1]], qk)
        assert all(contains(b, a) for a, b in pairwise(found)), name
        assert found[-1].sum() > found[0].sum() or name.startswith("step 32"), name


def test_a_block_plan_covers_the_stripe_plan_of_the_same_theta(qk):
    v = qk[1]
    finer = 0
    for stripes in variants(CONFIG)["granularity"]["stripes"][:6:3]:
        blocks = AnchorBlocks(stripes.config)
        (fine,), (coarse,) = masks([stripes], qk), masks([blocks], qk)
        assert contains(coarse, fine)
        found = [evaluate(*qk, v, method.select(*qk)) for method in (stripes, blocks)]
        assert (found[0].density <= found[1].density).all()
        assert (found[0].recall <= found[1].recall + 1e-12).all()
        finer += int((found[0].density < found[1].density).sum())
    assert finer > 0


def test_an_anchor_from_fewer_keys_keeps_more(qk):
    sweeps = variants(CONFIG)["anchor"]
    more = 0
    for name in ("initial region", "window"):
        for place in (1, 4):
            whole, part = sweeps["both regions"][place], sweeps[name][place]
            (full,), (partial,) = masks([whole], qk), masks([part], qk)
            assert contains(partial, full), name
            more += int((partial & ~full).sum())
    assert more > 0


def test_a_score_that_all_keys_share_moves_the_constant_and_not_the_anchor(qk):
    """Softmax cannot see it: this is what the anchor is for."""
    q, k = qk
    ones = torch.full((1, 1, N, 1), 2.0, dtype=q.dtype)
    up = (torch.cat([q, ones.expand(1, 2, -1, -1)], -1), torch.cat([k, ones * 2], -1))
    sweeps = variants(CONFIG)["anchor"]
    for name, moved in (
        ("both regions", False),
        ("initial region", False),
        ("window", False),
        ("largest pooled score", False),
        ("none: a constant", True),
    ):
        # The scale of the one dimension less: the others' scores stay as they were.
        before = [method.select(q, k, 0.25).to_mask() for method in sweeps[name][2:5]]
        after = [method.select(*up, 0.25).to_mask() for method in sweeps[name][2:5]]
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert same != moved, name


def test_smaller_blocks_in_the_same_groups_cost_in_proportion(qk):
    whole, half = variants(CONFIG)["block"].values()
    for a, b in [(whole[0], half[0]), (whole[-1], half[-1])]:
        assert a.config.group_size == b.config.group_size
        assert a.config.init_blocks * 8 == b.config.init_blocks * 4
        cost = [method.select(*qk).scored for method in (a, b)]
        assert cost[1] == pytest.approx(2 * cost[0])


def test_smaller_groups_have_more_to_choose_from_and_pay_for_it(qk):
    sweeps = variants(CONFIG)["step"]
    assert list(sweeps) == [f"step {step}" for step in STEPS]
    nothing = [AnchorAttention(replace(s[0].config, theta=-torch.inf)) for s in sweeps.values()]
    kept = [int(mask.sum()) for mask in masks(nothing, qk)]
    assert kept == sorted(set(kept))  # windows alone
    paid = [sweep[0].select(*qk).scored for sweep in sweeps.values()]
    assert paid == sorted(set(paid), reverse=True)
    assert paid[-1] == 0  # one group: all is window


def test_the_method_itself_is_the_same_in_every_ablation(rows):
    shared = {
        "granularity": "stripes",
        "test": "difference",
        "anchor": "both regions",
        "theta": "AnchorAttention",
        "step": "step 4",
        "block": "block 8",
    }
    tables = []
    for ablation, name in shared.items():
        part = rows[(rows["ablation"] == ablation) & (rows["method"] == name)]
        tables.append(part.drop(columns=["ablation", "method"]).reset_index(drop=True))
    assert all(table.equals(tables[0]) for table in tables[1:])


def test_every_ablation_has_its_variants_on_the_same_heads(rows):
    assert list(rows["ablation"].unique()) == list(QUESTIONS)
    for ablation, sweeps in variants(CONFIG).items():
        means = mean_curves(rows[rows["ablation"] == ablation])
        assert set(means["method"]) == set(sweeps)
        assert (means["heads"] == 2).all()
        for _, curve in means.groupby("method"):
            assert curve["recall_mean"].is_monotonic_increasing


def test_an_odd_block_cannot_be_halved():
    with pytest.raises(ValueError, match="block_size must be even, to be halved, got 15"):
        variants(AnchorConfig(15))


def test_the_committed_table_is_that_of_the_committed_numbers():
    results, page = read(FOLDER / "ablations.json"), FOLDER / "ablations.md"
    assert page.read_text() == EXPERIMENT.page(results, page)
    found = {(row["ablation"], row["method"]) for row in results["rows"]}
    assert found == {(a, v) for a, sweeps in variants(AnchorConfig()).items() for v in sweeps}
    assert AnchorConfig(**results["settings"]["config"]) == AnchorConfig()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("quick") / "ablations.json"
    assert EXPERIMENT.run(["--quick", "--device", "cpu", "--out", str(out)]) == 0
    return out


def test_a_quick_run_writes_numbers_page_and_picture(quick):
    assert {x.name for x in quick.parent.iterdir()} == {
        *("ablations.json", "ablations.md", "ablations.png")
    }
    rows = read(quick)["rows"]
    sweeps = variants(AnchorConfig(32, 4))
    assert len(rows) == sum(len(x) for named in sweeps.values() for x in named.values())
    assert {row["heads"] for row in rows} == {2}
    page = quick.with_suffix(".md").read_text()
    assert "made-up prose of 1024 tokens, layers 1, heads 0 and 4" in page
    assert "answers nothing" in page
    assert "What stands out" not in page


def test_an_interrupted_run_goes_on_with_the_ablation_it_lacks(quick, tmp_path, monkeypatch):
    found = read(quick)
    out = tmp_path / "ablations.json"
    rows = [row for row in found["rows"] if row["ablation"] != "block"]
    write_json(out, found["settings"], rows, found["runs"])
    measured = []

    def look(captured, *given, ablations, **more):
        measured.append((captured.layer, ablations))
        return ablate_layer(captured, *given, ablations=ablations, **more)

    monkeypatch.setattr(ablations, "ablate_layer", look)
    for _ in range(2):
        assert EXPERIMENT.run(["--quick", "--device", "cpu", "--out", str(out)]) == 0
    assert measured == [(1, ["block"])]
    again = read(out)
    assert [row | {"run": 0} for row in again["rows"]] == found["rows"]
    assert {row["run"] for row in again["rows"] if row["ablation"] == "block"} == {1}
