"""Likeness of the rows that are asked, against pairs counted one by one."""

from dataclasses import replace

import pytest
import torch

from anchor_lab.analysis.asked import likeness, spent
from anchor_lab.methods.outliers import OutlierRows
from anchor_ref import AnchorConfig, compute_anchor, identify_stripes
from anchor_ref.measure import density, recall
from anchor_ref.regions import even_rows

CONFIG = AnchorConfig(block_size=8, step=2, theta=2.0, outliers=3)
N = 45  # the last block has five rows


@pytest.fixture(scope="module")
def layer():
    random = torch.Generator().manual_seed(3)
    q = torch.randn(1, 4, N, 6, generator=random, dtype=torch.float64)
    return q, torch.randn(1, 2, N, 6, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("by", ["even", "cosine"])
def test_likeness_is_the_mean_over_pairs_of_rows(layer, by):
    q, k = layer
    found = likeness(q, k, OutlierRows(CONFIG, by), 0.4)
    for head in range(4):
        among, nearest = [], []
        for start in range(16, N, 8):  # the blocks beyond the first group
            block = range(start, min(start + 8, N))
            mean = q[0, head, block.start : block.stop].mean(0)
            cosine = [float(torch.cosine_similarity(q[0, head, i], mean, dim=0)) for i in block]
            strange = sorted(block, key=lambda i: cosine[i - block.start])[:3]
            asked = strange if by == "cosine" else even_rows(block, 3)

            def alike(i, j, head=head):
                return float(torch.cosine_similarity(q[0, head, i], q[0, head, j], dim=0))

            pairs = [alike(i, j) for i in asked for j in asked if i != j]
            best = [max(alike(i, j) for j in asked) for i in block if i not in asked]
            among.append(sum(pairs) / len(pairs))
            nearest.append(sum(best) / len(best))
        assert float(found.among[0, head]) == pytest.approx(sum(among) / len(among))
        assert float(found.nearest[0, head]) == pytest.approx(sum(nearest) / len(nearest))


def test_one_row_has_none_to_be_like_and_all_rows_leave_none(layer):
    alone = likeness(*layer, OutlierRows(replace(CONFIG, outliers=1), "even"), 0.4)
    assert alone.among.isnan().all()
    assert alone.nearest.isfinite().all()
    every = likeness(*layer, OutlierRows(replace(CONFIG, outliers=8), "even"), 0.4)
    assert every.among.isfinite().all()
    assert every.nearest.isnan().all()


def test_a_text_of_one_group_is_refused(layer):
    q, k = (x[:, :, :16] for x in layer)
    with pytest.raises(ValueError, match=r"q must have more than 16 rows, .* got 16"):
        likeness(q, k, OutlierRows(CONFIG, "even"), 0.4)


def test_what_is_spent_is_what_the_reference_keeps(layer):
    q, k = layer
    for config in (replace(CONFIG, outliers=0), CONFIG, replace(CONFIG, outlier_choice="even")):
        anchor = compute_anchor(q, k, k, config, 0.4).max
        plan = identify_stripes(q, k, anchor, config, 0.4)
        kept, beyond = spent(q, k, config, 0.4)
        torch.testing.assert_close(kept, density(plan, config, N, N))
        torch.testing.assert_close(beyond, recall(q, k, plan, config, 0.4)[..., 16:].mean(-1))
    more, better = spent(q, k, CONFIG, 0.4)
    paper, before = spent(q, k, replace(CONFIG, outliers=0), 0.4)
    assert (more >= paper).all()
    assert (better >= before).all()
    assert (more > paper).any()
