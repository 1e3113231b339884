"""Two ranks, each with half of the heads and weights, compute what one process computes."""

import sys

import pytest
import transformers.distributed

from anchor_models import load_bundled
from anchor_models.parallel import load_tensor_parallel
from anchor_models.parallel.cost import ModelShape
from anchor_models.parallel.prefill import _auto_plan
from tests.anchor_models.parallel.test_sequence import BOUND


@pytest.fixture
def ranks(found_by_ranks):
    return [rank["tensor"] for rank in found_by_ranks]


@pytest.mark.parametrize("case", ["sdpa", "anchor_attention", "qwen3"])
def test_logits_are_those_of_one_process(ranks, case):
    assert max(rank["logits"][case] for rank in ranks) < BOUND


def test_generated_tokens_are_those_of_one_process(ranks):
    for rank in ranks:
        split, whole = rank["written"]
        assert split == whole
        assert len(split) == 6


def test_a_layer_sends_two_all_reduces_and_nothing_else(ranks):
    # Beside the layers: one sum of embeddings, and the logits that are put together.
    for rank in ranks:
        for counts in rank["collectives"].values():
            assert counts == {"reduce": 2 * 8 + 1, "gather": 1}


def test_each_rank_holds_its_share_of_the_matrices_and_the_norms_whole(ranks):
    shape = ModelShape.of(load_bundled()[0].config)
    for rank in ranks:
        assert rank["weights"] == (shape.matrices + shape.embeddings) // 2 + shape.norms


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("one kv head", "kv heads must be a multiple of the 2 ranks"),
        ("odd heads", "query heads must be a multiple of the 2 ranks that share them, got 3"),
        ("no plan", "model must have a tensor parallel plan, got 'gpt2'"),
    ],
)
def test_every_rank_refuses_what_cannot_be_right(ranks, case, message):
    for rank in ranks:
        assert rank["refusals"][case].startswith("ValueError")
        assert message in rank["refusals"][case]


def test_without_accelerate_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"transformers and accelerate: pip install"):
        load_tensor_parallel("bundled")


def test_the_plan_is_asked_for_as_the_installed_transformers_wants_it(monkeypatch):
    config = _auto_plan()["distributed_config"]  # no warning: warnings are errors here
    assert config.tp_plan == "auto"
    monkeypatch.setattr(transformers.distributed, "DistributedConfig", lambda: None)  # of 4.57
    assert _auto_plan() == {"tp_plan": "auto"}
