"""Two ranks, each with half of the tokens, compute what one process computes."""

from itertools import permutations

import pytest
import torch

from anchor_models.parallel import shard_rows
from anchor_models.parallel.cost import ModelShape, bytes_sent
from anchor_models.parallel.ulysses import regular, split_heads
from tests.anchor_models.parallel.worker import HEADS, PROMPT, TAILS

# float64 but for the norms, which transformers computes in float32: one of its roundings may turn.
BOUND = 1e-5


@pytest.fixture
def ranks(found_by_ranks):
    return [rank["sequence"] for rank in found_by_ranks]


@pytest.fixture(params=(2, 3))
def exchanges(request):
    """Of two and of three ranks: what they found out about attention alone."""
    found = request.getfixturevalue("found_by_ranks" if request.param == 2 else "found_by_three")
    assert len(found) == request.param
    return [rank["exchange"] for rank in found]


def test_attention_is_that_of_one_process(exchanges):
    for rank in exchanges:
        assert len(rank["attention"]) == len(HEADS) * len(TAILS)
        assert max(rank["attention"]) < 1e-12


def test_ranks_of_a_group_share_a_prompt_without_the_others(exchanges, ranks):
    for rank in exchanges:
        assert rank["group"] < 1e-12
    assert [rank["rows by itself"] for rank in ranks] == [[0, PROMPT], [0, PROMPT]]


@pytest.mark.parametrize(
    "case",
    [
        "dense",
        "anchor",
        "anchor, θ by layer",
        "batch",
        "one kv head",
        "one kv head, anchor",
        "one kv head, repeated",
        "9 / 3 heads",
        "9 / 3 heads, anchor",
    ],
)
def test_logits_are_those_of_one_process(ranks, case):
    assert max(rank["logits"][case] for rank in ranks) < BOUND


def test_logits_of_anchor_and_dense_attention_differ_far_more(ranks):
    assert ranks[0]["logits"]["anchor to dense"] > 1000 * BOUND


def test_the_example_says_how_far_it_is_from_one_process(ranks):
    for rank in ranks:
        first, *_, last = rank["example"].splitlines()
        assert first == "2 ranks, sequence parallel, 301 tokens"
        assert float(last.removeprefix("largest difference of a logit to one process ")) < 1e-3


def test_ranks_ask_each_other_once_a_prompt_not_in_every_layer(ranks):
    assert [rank["logits"]["agreements"] for rank in ranks] == [1, 1]


def test_what_attention_sends_is_what_the_formula_says(exchanges):
    # Batch 2, float64; of a kv head that is shared each rank gets a copy. Where neither tokens
    # nor heads divide, what lies right already is no round share of either: counted here.
    many = len(exchanges)
    for case, (q_heads, kv_heads, n) in enumerate(HEADS):
        queries, keys = split_heads(q_heads, kv_heads, many)
        sent = sum(
            len(shard_rows(n, rank, many)) * (len(queries[to]) + 2 * len(keys[to]))
            + len(queries[rank]) * len(shard_rows(n, to, many))
            for rank, to in permutations(range(many), 2)
        )
        assert sum(rank["bytes"][case] for rank in exchanges) == 2 * 8 * 16 * sent
        if n % many == 0 or q_heads % many == 0 == max(kv_heads, many) % min(kv_heads, many):
            shape = ModelShape(1, 0, 0, q_heads, kv_heads, 16, 0)
            assert 16 * 16 * sent == 2 * n * bytes_sent(shape, "sequence", many, element=8)


def test_what_a_model_sends_is_what_the_formula_says(ranks):
    bundled = ModelShape(8, 256, 704, 8, 2, 64, 4096, tied=True)
    expected = 300 * bundled.layers * bytes_sent(bundled, "sequence", 2, element=8)
    assert sum(rank["model bytes"] for rank in ranks) == expected


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("dtype", "one dtype on all ranks, got [torch.float32, torch.float64]"),
        ("heads", "one number of kv heads on all ranks, got [1, 2]"),
        ("batch", "one batch size on all ranks, got [1, 2]"),
        ("head size", "one head size on all ranks, got [8, 9]"),
        ("lengths", "one prompt length on all ranks, got [40, 41]"),
        ("θ by head", "got 8; where ranks share the heads of a layer, its heads must have equal"),
        ("odd heads", "query heads must be at least one for each of the 2 ranks, got 1"),
        ("chunk", "k must have as many tokens as q on every rank"),
        ("window", "plain causal attention, got a sliding window of 200 tokens in layer 0"),
        ("window, not tried", "plain causal attention, got a sliding window of 200 tokens"),
        ("recurrent", "model must mix tokens by attention alone, got layers.0.mamba, a JambaM"),
        ("chunks", "plain causal attention, got a window or chunks of 151 tokens in layer 0"),
        ("mask", "attention_mask must be None in layer 0: load the model with"),
        ("cache", "use_cache must be False"),
        ("padding", "inputs must not describe tokens, which are split here, got attention_mask"),
        ("short", "n must be at least one token for each of 2 ranks, got 1"),
    ],
)
def test_every_rank_refuses_what_cannot_be_right(ranks, case, message):
    for rank in ranks:
        assert rank["refusals"][case].startswith("ValueError")
        assert message in rank["refusals"][case]


def test_shares_of_the_tokens_follow_each_other_and_differ_by_one_at_most():
    for ranks in range(1, 9):
        for n in range(ranks, 40):
            shares = [shard_rows(n, rank, ranks) for rank in range(ranks)]
            assert [token for share in shares for token in share] == list(range(n))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("n", "rank", "ranks"), [(8, 2, 2), (8, -1, 2), (8, 0, 0), (1, 0, 2)])
def test_shares_that_do_not_exist_are_refused(n, rank, ranks):
    with pytest.raises(ValueError, match=r"rank must be in|n must be at least"):
        shard_rows(n, rank, ranks)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize(
    ("q_heads", "kv_heads"), [(8, 2), (32, 8), (24, 6), (12, 12), (24, 1), (9, 3), (14, 2)]
)
def test_a_rank_holds_exactly_the_kv_heads_that_its_query_heads_read(q_heads, kv_heads, ranks):
    if q_heads < ranks:
        with pytest.raises(ValueError, match=r"query heads must be at least one for each of the"):
            split_heads(q_heads, kv_heads, ranks)
        return
    shared_by = q_heads // kv_heads
    queries, keys = split_heads(q_heads, kv_heads, ranks)
    assert [head for share in queries for head in share] == list(range(q_heads))
    assert max(map(len, queries)) - min(map(len, queries)) <= 1
    for mine, shared in zip(queries, keys, strict=True):
        read = [head // shared_by for head in mine]
        assert sorted(set(read)) == list(shared)
        # As attention on the rank reads them: head h its kv head h // r, counted from 0.
        given = [shared[place] for place in regular(mine, shared_by)]
        assert len(mine) % len(given) == 0
        repeated = torch.tensor(given).repeat_interleave(len(mine) // len(given))
        assert repeated.tolist() == read
        # No more than needed: even shares repeat nothing.
        if len(set(map(read.count, shared))) == 1:
            assert given == list(shared)
