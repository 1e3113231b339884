"""What README shows can be pasted and runs."""

import re

import pytest
import torch

from anchor_models import Captured
from tests.tree import ROOT

README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_python_block_runs_as_it_stands(number):
    with torch.no_grad():
        exec(compile(BLOCKS[number], f"README block {number}", "exec"), {})


def test_there_are_blocks_to_run():
    assert len(BLOCKS) >= 2


def test_its_links_lead_somewhere():
    found = re.findall(r"\]\(([^)#\s]+)", README.read_text())
    assert len(found) > 20
    assert [x for x in found if "://" not in x and not (ROOT / x).exists()] == []


def test_a_layer_with_a_window_or_capped_scores_is_refused_as_causal():
    x = torch.zeros(1, 1, 8, 4)
    assert Captured(x, x, x, 0.5).causal().k is x
    assert Captured(x, x, x, 0.5, sliding_window=8).causal().k is x
    with pytest.raises(ValueError, match="layer 3 sees a window of 7 keys, not all 8"):
        Captured(x, x, x, 0.5, sliding_window=7, layer=3).causal()
    with pytest.raises(ValueError, match=r"layer 3 caps its scores at 30\.0"):
        Captured(x, x, x, 0.5, softcap=30.0, layer=3).causal()
