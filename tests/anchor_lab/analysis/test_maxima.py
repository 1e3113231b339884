"""Where maxima lie, against all pairs at once."""

import torch
from hypothesis import given, settings

from anchor_lab.analysis import REGIONS, locate_maxima
from anchor_ref import AnchorConfig, compute_anchor
from anchor_ref.regions import groups
from tests.brute_force import cases


@settings(max_examples=60)
@given(case=cases(dtypes=(torch.float64,)))
def test_region_and_gap_are_those_of_all_pairs(case):
    q, k, v, config, scale = case
    found = locate_maxima(q, k, config, scale)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = factor * (q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT)
    open_rows = []
    for group in groups(config, q.shape[2], k.shape[2]):
        for row in group.rows:
            own = row + group.shift
            spans = (group.init, range(group.window_start, own + 1), group.candidates)
            largest = [scores[:, :, row, span.start : span.stop] for span in spans]
            largest = torch.stack(
                [x.amax(-1) if x.numel() else x.new_full(x.shape[:2], -torch.inf) for x in largest]
            )
            torch.testing.assert_close(
                found.gap[:, :, row], largest.amax(0) - largest[:2].amax(0), rtol=0, atol=1e-9
            )
            torch.testing.assert_close(
                found.largest[:, :, row], largest.amax(0), rtol=0, atol=1e-9
            )
            chosen = largest.gather(0, found.region[None, :, :, row])[0]
            torch.testing.assert_close(chosen, largest.amax(0), rtol=0, atol=1e-9)
            open_rows += [row] if group.candidates else []
    assert found.rows.tolist() == open_rows
    anchor = compute_anchor(q, k, v, config, scale).max
    missed = found.region == REGIONS.index("candidates")
    assert ((found.gap > 0) == missed).all()
    assert (found.gap[~missed] == 0).all()
    assert anchor.shape == found.gap.shape


def test_equal_scores_count_for_the_first_region_and_shares_add_up():
    q = torch.zeros(1, 1, 12, 4)
    found = locate_maxima(q, q, AnchorConfig(2, 2, init_blocks=1))
    assert (found.region[..., 4:] == 0).all()  # the first group has a window alone
    assert found.rows.tolist() == list(range(4, 12))
    assert found.shares.tolist() == [[[1.0, 0.0, 0.0]]]


def test_a_key_in_the_middle_is_found_there():
    q, k = torch.ones(1, 2, 12, 4), torch.zeros(1, 1, 12, 4)
    k[:, :, 3] = 1.0  # a candidate from row 4 on: groups of 4, an initial region of 2
    found = locate_maxima(q, k, AnchorConfig(2, 2, init_blocks=1), scale=0.5)
    assert (found.region[..., 4:] == REGIONS.index("candidates")).all()
    assert (found.gap[..., 4:] == 2.0).all()
    assert found.shares[0, 0].tolist() == [0.0, 0.0, 1.0]
