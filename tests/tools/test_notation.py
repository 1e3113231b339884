"""The page of notation is that of the code, and the code has a word for each of its letters."""

import pytest

from tools import notation


def test_the_committed_page_is_the_one_made_from_the_code():
    assert notation.PAGE.read_text() == notation.page(), "run `python -m tools.notation`"


def test_every_letter_of_a_shape_is_explained_and_none_in_vain():
    assert notation.letters() == set(notation.DIMENSIONS)


@pytest.mark.parametrize(
    ("place", "shape", "meaning"),
    [
        ("config.AnchorConfig.step", "`int`", "s, query blocks per group, at least 1"),
        ("config.AnchorConfig.group_size", "–", "S = block_size · step, queries per group"),
        ("anchor.compute_anchor.v", "`[B, Hkv, Nk, D]`", "values, k's shape"),
        ("sparse.attend_stripes.return", "`[B, Hq, Nq, D]`", "Attention output in q's dtype,"),
        ("heads.scaled_scores.return", "`[...batch, N, M]`", "s_ij = scale · <q_i, k_j>"),
        ("stripes.identify_stripes.ā_t", "–", "ā_t and q̄_t the means of a_i and q_i"),
        ("plan.StripePlan.counts", "`[B, Hq, G]`", "number of stripes"),
    ],
)
def test_shape_and_meaning_are_those_of_annotation_and_docstring(place, shape, meaning):
    found = notation.look_up(place)
    assert found[0] == shape
    assert found[1].startswith(meaning)


@pytest.mark.parametrize("place", ["config.AnchorConfig.blocks", "anchor.compute_anchor.dtype"])
def test_what_the_code_does_not_have_is_no_entry(place):
    with pytest.raises((ValueError, KeyError)):
        notation.look_up(place)
