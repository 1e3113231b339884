"""Dense, streaming, oracles and the variants of AnchorAttention against their definitions.

The slow versions build all pairs in float64, a head and a row at a time, and share no code with
what they judge but the regions.
"""

from itertools import pairwise

import pytest
import torch

from anchor_lab.methods import (
    METHODS,
    AnchorAttention,
    AnchorBlocks,
    BlockTopCdf,
    BlockTopK,
    ConstantThreshold,
    Dense,
    DifferenceOracle,
    PartialAnchor,
    PooledMaximum,
    PooledTopCdf,
    PooledTopK,
    Selection,
    StreamingLLM,
    StripeOracle,
    TokenTopCdf,
    TokenTopK,
    evaluate,
    evaluate_all,
    select,
)
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.measure import measure
from anchor_ref.regions import groups

CONFIG = AnchorConfig(8, 3, theta=1.0)
SMALL = (
    Dense(),
    StreamingLLM(5, 7, 4),
    StreamingLLM(0, 1, 4),
    StreamingLLM(9, 40, 16),
    TokenTopK(4),
    TokenTopCdf(0.7),
    TokenTopCdf(0.0),
    DifferenceOracle(1.0),
    DifferenceOracle(0.0),
    BlockTopK(2, 8),
    BlockTopCdf(0.6, 8),
    BlockTopCdf(0.0, 5),
    StripeOracle(0.6, CONFIG),
    StripeOracle(0.0, CONFIG),
    AnchorAttention(CONFIG),
    AnchorAttention(AnchorConfig(8, 2, 0.5, init_blocks=0, window_blocks=1)),
    AnchorBlocks(AnchorConfig(8, 3, theta=-0.5)),
    PartialAnchor("init", CONFIG),
    PartialAnchor("window", CONFIG),
    ConstantThreshold(0.3, CONFIG),
    PooledMaximum(AnchorConfig(8, 3, theta=0.4)),
    PooledTopK(3, CONFIG),
    PooledTopCdf(0.5, CONFIG),
)
LENGTHS = (1, 7, 100, 130, 261)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("method", SMALL, ids=lambda method: repr(method)[:60])
def test_one_tail_for_every_method_adds_the_last_rows_and_nothing_else(method, n):
    q, k, _ = inputs(n, batch=1)
    causal = torch.ones(n, n).tril().bool()
    own = method.select(q, k)
    mask = own.to_mask()
    for tail in (0, 1, 30, 129, 500):
        found = method.select(q, k, tail=tail)
        last = torch.arange(n)[:, None] >= n - tail
        assert torch.equal(found.to_mask(), mask | (causal & last)), tail
        assert found.scored == own.scored
        if own.executed is None:
            assert found.executed is None
        else:
            more = torch.full_like(own.executed, (causal & last).sum())
            torch.testing.assert_close(found.executed - own.executed, more)


@pytest.mark.parametrize("tail", [1, 40, 1000])
def test_the_tail_of_anchor_attention_is_that_of_its_configuration(tail):
    q, k, v = inputs(100)
    config = AnchorConfig(8, 3, theta=0.5, tail=tail)
    found = evaluate(q, k, v, AnchorAttention(config).select(q, k))
    expected = measure(q, k, v, config)
    for name in ("recall", "density", "executed_density", "identification_cost", "output_error"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_a_tail_that_is_no_count_is_refused():
    q, k, _ = inputs(7)
    with pytest.raises(ValueError, match="tail must be an integer of at least 0, got -1"):
        Dense().select(q, k, tail=-1)


def inputs(n, seed=0, batch=2, q_heads=4, kv_heads=2, dim=16, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    shapes = ((q_heads, n), (kv_heads, n), (kv_heads, n))
    return tuple(torch.randn(batch, h, m, dim, generator=random, dtype=dtype) for h, m in shapes)


def slow(method, q, k):
    """All pairs that a method keeps, `[B, Hq, N, N]`, from its definition."""
    batch, heads, n, dim = q.shape
    kept = torch.zeros(batch, heads, n, n, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            q_head, k_head = q[b, h], k[b, h // (heads // k.shape[1])]
            scores = (q_head @ k_head.T) / dim**0.5
            scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
            kept[b, h] = slow_head(method, q_head, k_head, scores).tril()
    return kept


def slow_head(method, q, k, scores):
    n = len(scores)
    i, j = torch.arange(n)[:, None], torch.arange(n)
    if isinstance(method, Dense):
        return torch.ones(n, n, dtype=torch.bool)
    if isinstance(method, StreamingLLM):
        return (j < method.init) | (i - j < method.window)
    if isinstance(method, TokenTopK | TokenTopCdf | DifferenceOracle):
        return torch.stack([slow_row(method, scores[row, : row + 1], n) for row in range(n)])
    if isinstance(method, BlockTopK | BlockTopCdf):
        return slow_blocks(method, scores.softmax(-1))
    return slow_stripes(method, q, k, scores)


def slow_row(method, row, n):
    ranked = sorted(range(len(row)), key=lambda key: (-row[key].item(), key))
    if isinstance(method, TokenTopK):
        ranked = ranked[: method.k]
    elif isinstance(method, TokenTopCdf):
        ranked = until(ranked, row.softmax(0), method.mass, least=1)
    else:
        ranked = [key for key in ranked if row.max() - row[key] <= method.theta]
    mask = torch.zeros(n, dtype=torch.bool)
    mask[ranked] = True
    return mask


def until(ranked, weights, share, least):
    """The first of a ranking whose sum reaches a share of the whole."""
    total, found, taken = sum(weights.tolist()), 0.0, []
    for item in ranked:
        if found >= share * total and len(taken) >= least:
            break
        taken.append(item)
        found += weights[item].item()
    return taken


def slow_blocks(method, weights):
    n, size = len(weights), method.block_size
    kept = torch.zeros(n, n, dtype=torch.bool)
    for first in range(0, n, size):
        rows = slice(first, min(first + size, n))
        starts = range(0, rows.stop, size)
        mass = torch.stack([weights[rows, at : at + size].sum() for at in starts])
        ranked = sorted(range(len(starts)), key=lambda block: (-mass[block].item(), block))
        if isinstance(method, BlockTopK):
            ranked = ranked[: method.blocks]
        else:
            ranked = until(ranked, mass, method.mass, least=1)
        for block in ranked:
            kept[rows, block * size : (block + 1) * size] = True
    return kept


def slow_stripes(method, q, k, scores):
    n, config = len(scores), method.config
    kept = torch.ones(n, n, dtype=torch.bool)
    for group in groups(config, n, n):
        rows = slice(group.rows.start, group.rows.stop)
        candidates = list(group.candidates)
        if not candidates:
            continue
        kept[rows, candidates] = False
        if isinstance(method, StripeOracle):
            mass = scores[rows].softmax(-1).sum(0)[candidates]
            order = sorted(range(len(candidates)), key=lambda c: (-mass[c].item(), c))
            chosen = until(order, mass, method.gamma, least=0)
        else:
            chosen = set()
            for block in group.blocks:
                chosen |= slow_choice(method, q, k, scores, group, list(block), candidates)
        for c in chosen:
            kept[rows, candidates[c]] = True
        if isinstance(method, AnchorBlocks):
            for c in list(chosen):
                start = candidates[c] // config.block_size * config.block_size
                kept[rows, start : start + config.block_size] = True
    return kept


def slow_choice(method, q, k, scores, group, block, candidates):
    """The candidates that one query block picks, by their place among them."""
    pooled = (q[block].mean(0) @ k[candidates].T) / q.shape[-1] ** 0.5
    ranked = sorted(range(len(candidates)), key=lambda c: (-pooled[c].item(), c))
    if isinstance(method, PooledTopK):
        return set(ranked[: method.k])
    if isinstance(method, PooledTopCdf):
        return set(until(ranked, pooled.softmax(0), method.mass, least=0))
    if isinstance(method, ConstantThreshold):
        return {c for c in ranked if pooled[c] >= method.threshold}
    if isinstance(method, PooledMaximum):
        return {c for c in ranked if pooled.max() - pooled[c] <= method.config.theta}
    initial = list(group.init)
    window = list(range(group.window_start, len(scores)))
    seen = initial + window
    if isinstance(method, PartialAnchor):
        seen = initial if method.region == "init" else window
    anchor = scores[block][:, seen].amax(-1).mean()
    return {c for c in ranked if anchor - pooled[c] <= method.config.theta}


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("method", SMALL, ids=lambda method: repr(method)[:60])
def test_a_method_keeps_what_its_definition_says(method, n):
    # The loops of a long prompt take seconds; entries of a batch are told apart in the others.
    q, k, _ = inputs(n, seed=n, batch=2 if n < 200 else 1)
    assert torch.equal(method.select(q, k).to_mask(), slow(method, q, k))


@pytest.mark.parametrize("repeat", [1, 7])
@pytest.mark.parametrize("method", SMALL, ids=lambda method: repr(method)[:60])
def test_query_heads_read_the_keys_of_their_own_head(method, repeat):
    q, k, _ = inputs(50, seed=3, batch=1, q_heads=2 * repeat, kv_heads=2)
    assert torch.equal(method.select(q, k).to_mask(), slow(method, q, k))


def test_of_equal_keys_the_earlier_one_is_kept():
    q, k = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 64, 8)
    assert TokenTopK(3).select(q, k).to_mask()[0, 0, 60].nonzero().flatten().tolist() == [0, 1, 2]
    blocks = BlockTopK(2, 8).select(q, k).to_mask()[0, 0, 60]
    assert blocks.nonzero().flatten().tolist() == list(range(16))
    config = AnchorConfig(8, 2)
    stripes = PooledTopK(2, config).select(q, k).to_mask()[0, 0, 60, 8:48]
    assert stripes.nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("name", METHODS)
def test_any_range_of_rows_is_that_part_of_the_whole(name):
    q, k, _ = inputs(300, batch=1)
    selection = METHODS[name]().select(q, k)
    whole = selection.to_mask()
    for rows in (range(1), range(5, 140), range(127, 129), range(256, 300)):
        part = selection.rows(rows)
        assert part.shape[-2:] == (len(rows), rows.stop)
        assert torch.equal(part, whole[:, :, rows.start : rows.stop, : rows.stop])


@pytest.mark.parametrize("name", METHODS)
def test_no_row_keeps_a_later_key_and_each_keeps_one(name):
    for n in (1, 129, 700):
        q, k, _ = inputs(n, batch=1, dtype=torch.float32)
        for method in METHODS[name].sweep()[:2]:
            for rows, mask in method.select(q, k):
                own = torch.arange(rows.start, rows.stop)[:, None]
                assert not (mask & (torch.arange(rows.stop) > own)).any()
                assert mask.any(-1).all()


@pytest.mark.parametrize(
    "name", sorted({type(method).__name__ for method in SMALL} - {"Dense"}), ids=str
)
def test_each_configuration_of_a_sweep_keeps_what_the_one_before_keeps(name):
    random = torch.Generator().manual_seed(1)
    q, k = (2 * torch.randn(1, heads, 2500, 16, generator=random) for heads in (2, 1))
    selections = [method.select(q, k) for method in METHODS[name].sweep()]
    kept = [0] * len(selections)
    for start in (0, 1900, 2048, 2372):
        rows = range(start, start + 128)
        masks = [selection.rows(rows) for selection in selections]
        for number, (fewer, more) in enumerate(pairwise(masks)):
            assert not (fewer & ~more).any(), f"{number} and {number + 1}"
        kept = [count + mask.sum().item() for count, mask in zip(kept, masks, strict=True)]
    assert kept[-1] > kept[0]


@pytest.mark.parametrize("method", SMALL, ids=lambda method: repr(method)[:60])
def test_an_evaluation_is_the_metric_contract_over_all_pairs(method):
    q, k, v = inputs(140, seed=9)
    selection = method.select(q, k)
    found = evaluate(q, k, v, selection)
    kept = slow(method, q, k)
    repeat = q.shape[1] // k.shape[1]
    scores = (q @ k.repeat_interleave(repeat, 1).mT) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(140, 140).triu(1).bool(), -torch.inf)
    weights, values = scores.softmax(-1), v.repeat_interleave(repeat, 1)
    wanted = (weights * kept).sum(-1)
    torch.testing.assert_close(found.recall, wanted, rtol=0, atol=1e-12)
    density = kept.sum((-2, -1)).double() / (140 * 141 / 2)
    torch.testing.assert_close(found.density, density, rtol=0, atol=1e-12)
    executed = density if selection.executed is None else selection.executed / (140 * 141 / 2)
    torch.testing.assert_close(found.executed_density, executed, rtol=0, atol=1e-12)
    cost = torch.full_like(density, selection.scored / (140 * 141 / 2))
    torch.testing.assert_close(found.identification_cost, cost, rtol=0, atol=1e-12)
    dense = weights @ values
    out = scores.masked_fill(~kept, -torch.inf).softmax(-1) @ values
    error = (out - dense).norm(dim=(-2, -1)) / dense.norm(dim=(-2, -1))
    torch.testing.assert_close(found.output_error, error, rtol=0, atol=1e-12)
    summary = found.recall_summary()
    torch.testing.assert_close(summary["mean"], wanted.mean(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(summary["min"], wanted.amin(-1), rtol=0, atol=1e-12)
    tenth = wanted.quantile(0.1, dim=-1)
    torch.testing.assert_close(summary["p10"], tenth, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "tile"),
    [
        (StreamingLLM(5, 7, 4), 4),
        (StreamingLLM(9, 40, 16), 16),
        (BlockTopK(2, 8), 8),
        (BlockTopCdf(0.6, 8), 8),
    ],
    ids=repr,
)
@pytest.mark.parametrize("n", [3, 64, 101])
def test_executed_pairs_are_those_of_all_tiles_that_hold_a_kept_one(method, tile, n):
    q, k, _ = inputs(n)
    size = -(-n // tile) * tile
    padded = torch.nn.functional.pad(slow(method, q, k), (0, size - n, 0, size - n))
    tiles = padded.unflatten(-1, (-1, tile)).unflatten(-3, (-1, tile)).any(-1).any(-2)
    wanted = tiles.sum((-2, -1)).double() * tile * tile
    assert torch.equal(method.select(q, k).executed, wanted)


@pytest.mark.parametrize("n", [100, 261])
@pytest.mark.parametrize(("kind", "gather"), [(AnchorAttention, 64), (AnchorBlocks, 8)])
def test_stripes_are_executed_in_whole_tiles_and_blocks_in_their_own(kind, gather, n):
    """Tiles of block_size rows: of the regions' blocks, and of as many keys as are gathered."""
    q, k, _ = inputs(n)
    selection = kind(CONFIG).select(q, k)
    mask, wanted, ragged = selection.to_mask(), torch.zeros(2, 4, dtype=torch.float64), 0
    for group in groups(CONFIG, n, n):
        chosen = mask[:, :, group.rows.start, list(group.candidates)].sum(-1)
        ragged += (chosen % 64 > 0).sum()
        for rows in group.blocks:
            window = -(-(rows.stop - group.window_start) // 8) * 8
            wanted += 8 * (len(group.init) + window + -(-chosen // gather) * gather)
    assert ragged, "no list that a tile of 64 does not hold to the last"
    torch.testing.assert_close(selection.executed, wanted, rtol=1e-12, atol=0)


def test_the_method_keeps_and_gives_what_anchor_attention_does():
    q, k, v = inputs(100)
    found = evaluate(q, k, v, AnchorAttention(CONFIG).select(q, k))
    out = anchor_attention(q, k, v, CONFIG)
    dense = anchor_attention(q, k, v, AnchorConfig(8, 3, theta=torch.inf))
    error = (out - dense).norm(dim=(-2, -1)) / dense.norm(dim=(-2, -1))
    torch.testing.assert_close(found.output_error, error, rtol=0, atol=1e-12)


def test_costs_of_choosing_are_counted_in_pairs_of_which_half_is_computed():
    q, k, _ = inputs(100, batch=1)
    pairs = sum(len(g.blocks) * len(g.candidates) for g in groups(CONFIG, 100, 100))
    assert AnchorAttention(CONFIG).select(q, k).scored == pytest.approx(pairs / 2)
    assert PooledMaximum(CONFIG).select(q, k).scored == pytest.approx(pairs)
    assert TokenTopK(3).select(q, k).scored == pytest.approx(100 * 101 / 4)
    assert StreamingLLM().select(q, k).scored == Dense().select(q, k).scored == 0


def test_several_selections_at_once_are_judged_as_one_by_one():
    q, k, v = inputs(200)
    selections = [method.select(q, k) for method in SMALL[:6]]
    for alone, together in zip(
        (evaluate(q, k, v, selection) for selection in selections),
        evaluate_all(q, k, v, selections),
        strict=True,
    ):
        for name in ("recall", "density", "executed_density", "output_error"):
            assert torch.equal(getattr(alone, name), getattr(together, name))


def test_half_precision_is_judged_in_float32_and_its_rounding_counts():
    q, k, v = (x.bfloat16() for x in inputs(100))
    found = evaluate(q, k, v, Dense().select(q, k))
    assert found.recall.dtype == torch.float32
    assert found.recall.min() == 1
    assert (found.output_error > 1e-4).all()
    assert (found.output_error < 2**-8).all()


def test_bad_selections_are_refused():
    q, k, v = inputs(20)
    one = Selection(
        (2, 4, 20), lambda rows: torch.ones(2, 4, len(rows), rows.stop).bool(), None, 0.0
    )
    with pytest.raises(ValueError, match="no later key"):
        evaluate(q, k, v, one)
    none = Selection(
        (2, 4, 20), lambda rows: torch.zeros(2, 4, len(rows), rows.stop).bool(), None, 0.0
    )
    with pytest.raises(ValueError, match="a key of every row"):
        evaluate(q, k, v, none)
    with pytest.raises(ValueError, match="must be of"):
        evaluate(q, k, v, Dense().select(*inputs(19)[:2]))


def test_a_mask_of_all_pairs_of_a_long_prompt_is_refused():
    q, k, _ = inputs(4097, batch=1, q_heads=1, kv_heads=1, dim=4)
    with pytest.raises(ValueError, match="at most 4096 tokens, got 4097"):
        Dense().select(q, k).to_mask()


@pytest.mark.usefixtures("unchecked_annotations")
def test_bad_calls_are_refused():
    q, k, v = inputs(20)
    with pytest.raises(TypeError, match="config must be one of the methods Dense, StreamingLLM"):
        select(q, k, AnchorConfig())
    with pytest.raises(TypeError, match="selection"):
        evaluate(q, k, v, slow(Dense(), q, k))
    with pytest.raises(ValueError, match=r"q must have as many tokens as k \(20\)"):
        select(q[:, :, 1:], k, Dense())
    assert torch.equal(select(q, k, TokenTopK(2)).to_mask(), TokenTopK(2).select(q, k).to_mask())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StreamingLLM(init=-1), "init must be an integer of at least 0, got -1"),
        (lambda: StreamingLLM(window=0), "window must be an integer of at least 1"),
        (lambda: StreamingLLM(block_size=True), "block_size must be an integer"),
        (lambda: TokenTopK(0), "k must be an integer of at least 1"),
        (lambda: TokenTopCdf(1.1), r"mass must be a number in \[0, 1\], got 1.1"),
        (lambda: DifferenceOracle(float("nan")), "theta must be a number"),
        (lambda: BlockTopK(2.5), "blocks must be an integer"),
        (lambda: BlockTopCdf(-0.1), "mass must be a number"),
        (lambda: StripeOracle("all"), "gamma must be a number"),
        (lambda: PartialAnchor("last"), "region must be 'init' or 'window', got 'last'"),
        (lambda: PartialAnchor("init", AnchorConfig(init_blocks=0)), "region must be 'window'"),
        (lambda: ConstantThreshold(None), "threshold must be a number"),
        (lambda: PooledTopK(0), "k must be an integer"),
        (lambda: PooledTopCdf(2), "mass must be a number"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_bad_knobs_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("method", [AnchorAttention, AnchorBlocks, PooledMaximum, StripeOracle])
def test_a_config_of_another_type_is_refused(method):
    with pytest.raises(TypeError, match="config"):
        method(config={"theta": 3})
