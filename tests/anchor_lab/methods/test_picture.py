"""Every method says how it chooses, draws its mask, and tells what its authors claim."""

import re

import pytest

from anchor_lab.methods import METHODS, Dense, StreamingLLM, TriangleMix
from anchor_lab.methods.__main__ import main
from anchor_lab.methods.corrections import CORRECTIONS
from anchor_lab.methods.picture import describe, picture, sentence

PUBLISHED = (
    *("StreamingLLM", "VerticalSlash", "FlexPrefill", "XAttention", "SpargeAttention"),
    *("FlashPrefill", "AnchorAttention"),
)
LATER = ("PBSAttention", "MoBA", "BFLA", "Triangle", "HeadAveragedTopK")


def test_a_picture_has_a_line_for_each_query_and_a_letter_for_each_key():
    assert picture(Dense(), 3) == "█  \n██ \n███"
    assert picture(StreamingLLM(1, 1, 1), 4) == "█   \n██  \n█·█ \n█··█"


@pytest.mark.parametrize("name", LATER)
def test_a_rival_leaves_something_out_of_its_picture_and_has_a_claim(name):
    lines = picture(METHODS[name].small()).split("\n")
    assert all(line[: i + 1].strip() and len(line) == 32 for i, line in enumerate(lines))
    assert any("·" in line for line in lines)
    assert METHODS[name].claim in describe(METHODS[name])


@pytest.mark.parametrize(
    "kind",
    [*(METHODS[name] for name in (*PUBLISHED, *LATER)), TriangleMix, *CORRECTIONS.values()],
)
def test_a_claim_has_a_source_and_a_word_on_the_hardware_and_a_number_or_says_there_is_none(kind):
    words = re.sub(r"arXiv [\d.]+", "", kind.claim)
    assert any(letter.isdigit() for letter in words) or "no number" in words
    assert "arXiv" in kind.claim
    assert any(word in kind.claim for word in ("GPU", "hardware", "H20"))


def test_all_methods_say_how_they_choose(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*METHODS, "TriangleMix"]
    for kind in METHODS.values():
        assert sentence(kind).endswith(".")
        assert "\n" not in sentence(kind)


def test_methods_are_shown_by_name(capsys):
    assert main(["MoBA", "Dense"]) == 0
    assert describe(METHODS["MoBA"]) in capsys.readouterr().out
    assert main(["moba", "BLASST", "TriangleMix"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("MoBA: ")
    assert describe(METHODS["SkipSoftmax"]) in said
    # Shallow layers are dense, the deep ones are drawn.
    assert picture(METHODS["Triangle"].small()) in said[said.index("TriangleMix: ") :]
    assert main(["MoBB"]) == 2
    assert "name must be one of Dense" in capsys.readouterr().err
