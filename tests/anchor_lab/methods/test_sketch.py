"""Each method can draw what it keeps of a few tokens, and says how it chooses."""

import pytest

from anchor_lab.methods import METHODS, StreamingLLM
from anchor_lab.methods.sketch import DROPPED, KEPT, heavy_keys, main, rule, sketch

# 30 columns and 100 diagonals are always kept of it, which is all of so few tokens.
DENSE = {"Dense", "VerticalSlash"}


@pytest.mark.parametrize("name", METHODS)
def test_a_sketch_is_the_mask_of_few_tokens(name):
    method = METHODS[name].small()
    lines = sketch(method, 20, head=1).split("\n")
    mask = method.select(*heavy_keys(20)).to_mask()[0, 1]
    assert [len(line) for line in lines] == list(range(1, 21))
    for line, row in zip(lines, mask, strict=True):
        assert [letter == KEPT for letter in line] == row[: len(line)].tolist()
        assert set(line) <= {KEPT, DROPPED}


@pytest.mark.parametrize("name", METHODS)
def test_of_few_tokens_a_small_configuration_drops_some(name):
    assert (DROPPED in sketch(METHODS[name].small())) == (name not in DENSE)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_in_one_sentence_how_it_chooses(name):
    said = rule(METHODS[name])
    assert said.endswith(".")
    assert 20 < len(said) < 120
    assert "\n" not in said


def test_the_command_prints_rule_claim_configuration_and_picture(capsys):
    assert main(["StreamingLLM", "FlashPrefillV2"]) == 0
    first, second = capsys.readouterr().out.strip().split("\n\n")
    lines = first.split("\n")
    assert lines[0] == "StreamingLLM: The first G and the last W keys of each row."
    assert lines[1] == repr(StreamingLLM.small())
    assert "\n".join(lines[2:]) == sketch(StreamingLLM.small())
    assert second.split("\n")[1].startswith("Claim: 27 times as fast as FlashAttention-2")
    assert main([]) == 0
    assert capsys.readouterr().out.count("\n\n") == len(METHODS)
    with pytest.raises(SystemExit):
        main(["Nothing"])
    assert "NAME must be of Dense, StreamingLLM" in capsys.readouterr().err
