"""Two ranks, each with half of the heads and weights, compute what one process computes."""

import pytest

from anchor_ref.activations import load_bundled
from anchor_ref.parallel.cost import ModelShape
from tests.parallel.test_sequence import BOUND


@pytest.fixture
def ranks(found_by_ranks):
    return found_by_ranks("tensor")


@pytest.mark.parametrize("case", ["sdpa", "anchor_attention", "qwen3"])
def test_logits_are_those_of_one_process(ranks, case):
    assert max(rank["logits"][case] for rank in ranks) < BOUND


def test_generated_tokens_are_those_of_one_process(ranks):
    for rank in ranks:
        split, whole = rank["written"]
        assert split == whole
        assert len(split) == 6


def test_a_layer_sends_two_all_reduces_and_nothing_else(ranks):
    for rank in ranks:
        for counts in rank["collectives"].values():
            assert counts == {"c10d_functional.all_reduce": 2 * 8}


def test_each_rank_holds_its_share_of_the_matrices_and_the_rest_whole(ranks):
    shape = ModelShape.of(load_bundled()[0].config)
    for rank in ranks:
        assert rank["weights"] == shape.matrices // 2 + shape.other_weights


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("one kv head", "kv heads must be a multiple of the 2 ranks"),
        ("style", "must be made of colwise, rowwise, got colwise_gather_output"),
        ("no plan", "model must have a tensor parallel plan, got LlamaForCausalLM"),
    ],
)
def test_every_rank_refuses_what_cannot_be_right(ranks, case, message):
    for rank in ranks:
        assert rank["refusals"][case].startswith("ValueError")
        assert message in rank["refusals"][case]
