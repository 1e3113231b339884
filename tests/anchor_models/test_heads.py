"""Heads that come with the package: a folder is read as it was written, or refused."""

import json

import pytest
import torch

from anchor_models import Captured, save_capture
from anchor_models.heads import ABOUT, CAPTURE, load_bundled_heads

TOLD = {
    "model": "tiny",
    "answer": "12345",
    "fact": [2, 4],
    "chosen": {"retrieval": [3, 1], "diffuse": [5, 0]},
    "words": ["It", " is", " 12", "345", "."],
    "heads": [{"layer": 3, "head": 2, "far": 0.5}],
}


@pytest.fixture
def folder(tmp_path):
    captured = {
        layer: Captured(
            torch.full((1, 2, 5, 4), float(layer)).bfloat16(),
            torch.ones(1, 1, 5, 4).bfloat16(),
            torch.zeros(1, 1, 5, 4).bfloat16(),
            0.5,
            layer=layer,
            heads=heads,
        )
        for layer, heads in ((3, (2, 3)), (5, (0, 1)))
    }
    save_capture(captured, tmp_path / CAPTURE)
    (tmp_path / ABOUT).write_text(json.dumps(TOLD), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("as_type", [str, lambda path: path])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_is_read_as_it_was_written(folder, as_type, dtype, unchecked_annotations):
    found = load_bundled_heads(as_type(folder), dtype)
    assert {layer: x.heads for layer, x in found.captured.items()} == {3: (2, 3), 5: (0, 1)}
    assert (found.captured[5].q == 5).all()
    kinds = {x.dtype for layer in found.captured.values() for x in (layer.q, layer.k, layer.v)}
    assert kinds == {dtype}
    assert found.words == ("It", " is", " 12", "345", ".")
    assert "".join(found.words[place] for place in found.fact).strip() == found.answer
    assert found.chosen == {"retrieval": (3, 1), "diffuse": (5, 0)}
    assert found.heads == ({"layer": 3, "head": 2, "far": 0.5},)


@pytest.mark.parametrize("missing", [ABOUT, CAPTURE])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        load_bundled_heads(folder)
