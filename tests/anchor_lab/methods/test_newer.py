"""Skip-softmax, SALE and FlashPrefill V2 keep and count what their descriptions say, pair by pair.

The slow versions walk over rows, tiles and keys one at a time, in the order of the published
loops, and share nothing with what they judge.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchor_lab.experiments.compare.measure import compare_heads, compare_layer
from anchor_lab.methods import (
    METHODS,
    SALE,
    DifferenceOracle,
    FlashPrefillV2,
    SALEFloat,
    SkipSoftmax,
    evaluate,
)
from anchor_lab.methods.sale import four_bits
from anchor_models import Captured
from tests.anchor_lab.methods.test_published import heads_of, mask_of_blocks, prompt, prompts

NEWER = (SkipSoftmax, SALE, SALEFloat, FlashPrefillV2)
examples = settings(max_examples=25)
scales = st.sampled_from([None, 0.1, 1.0])


def scores_of(q, k, scale):
    return [[float(q_i @ k_j) * scale for k_j in k] for q_i in q]


def slow_skip_softmax(method, q, k, scale):
    """(kept tiles, pairs scored, those of them in kept tiles): online softmax, tile by tile."""
    n, b = len(q), method.block_size
    scores = scores_of(q, k, scale)
    kept, scored, goes_on = set(), 0, 0
    for top in range(0, n, b):
        rows = range(top, min(top + b, n))
        met = dict.fromkeys(rows, -math.inf)
        for left in range(0, rows.stop, b):
            wanted, pairs = False, 0
            for i in rows:
                row = [scores[i][j] for j in range(left, min(left + b, i + 1))]
                pairs += len(row)
                met[i] = max(met[i], *row)
                weight = math.exp(max(row) - met[i])  # of its largest, beside the largest so far
                wanted = wanted or weight > method.threshold
            scored += pairs
            if wanted:
                kept.add((top // b, left // b))
                goes_on += pairs
    return kept, scored, goes_on


def slow_four_bits(vector):
    unit = max(abs(x) for x in vector) / 7
    return [round(x / unit) * unit if unit else 0.0 for x in vector]


def slow_sale(method, q, k, scale):
    """(kept tiles, pairs estimated), with every sum of a row written out."""
    n, dim = k.shape
    q, k = q.tolist(), k.tolist()
    centre = [sum(x[d] for x in k) / n for d in range(dim)]
    k = [[x[d] - centre[d] for d in range(dim)] for x in k]
    middle = [sum(x[d] for x in q) / n for d in range(dim)]
    low_q = [slow_four_bits([x[d] - middle[d] for d in range(dim)]) for x in q]
    low_k = [slow_four_bits(x) for x in k]

    def dot(x, y):
        return scale * sum(a * b for a, b in zip(x, y, strict=True))

    kept, scored = set(), 0
    for t, top in enumerate(range(0, n, method.q_block)):
        rows = range(top, min(top + method.q_block, n))
        tiles = range((rows[-1] // method.k_block) + 1)
        known = {
            u for u in tiles if u < method.init_blocks or len(tiles) - u <= method.window_blocks
        }
        kept |= {(t, u) for u in (tiles if n <= method.dense_up_to else known)}
        if n <= method.dense_up_to:
            continue
        for i in rows:
            seen = [dot(q[i], k[j]) for j in range(i + 1) if j // method.k_block in known]
            largest = max(seen)
            total = sum(math.exp(s - largest) for s in seen)
            for j in range(i + 1):
                if j // method.k_block in known:
                    continue
                scored += 1
                guess = dot(q[i], k[j])
                if type(method) is SALE:
                    guess = dot(low_q[i], low_k[j]) + dot(middle, k[j])
                if math.exp(guess - largest) >= method.threshold * total:
                    kept.add((t, j // method.k_block))
    return kept, scored


def slow_flash_prefill_v2(method, q, k, scale):
    """Of the query heads of one key head (their masks, their executed pairs, pairs scored)."""
    (r, n, _), b, size = q.shape, method.block_size, method.tile_rows
    packed = [(i, h) for i in range(n) for h in range(r)]
    tiles = [packed[start : start + size] for start in range(0, len(packed), size)]
    masks = torch.zeros(r, n, n, dtype=torch.bool)
    executed, scored = [0] * r, 0
    for t, tile in enumerate(tiles):
        first, last = tile[0][0], tile[-1][0]
        blocks = range(last // b + 1)
        kept = {
            u for u in blocks if u < method.init_blocks or u > first // b - method.window_blocks
        }
        if n <= method.dense_up_to or t >= len(tiles) - method.dense_tiles:
            kept = set(blocks)
        else:
            found = {}
            for u in blocks:
                if (u + 1) * b > last + 1:
                    continue  # not whole before the tile ends
                mean = k[u * b : (u + 1) * b].mean(0)
                found[u] = [float(q[h, i] @ mean) * scale for i, h in tile if i >= u * b]
                scored += len(found[u])
            largest = max((e for row in found.values() for e in row), default=0.0)
            sums = {u: sum(math.exp(e - largest) for e in row) for u, row in found.items()}
            kept |= {u for u in sums if sums[u] >= method.alpha * max(sums.values())}
        for i, h in tile:
            for u in kept:
                masks[h, i, u * b : min((u + 1) * b, i + 1)] = True
        slots = range(t * size, (t + 1) * size)  # also those that the last tile does not fill
        for h in range(r):
            executed[h] += len(kept) * b * sum(slot % r == h for slot in slots)
    return masks, executed, scored


def check_tiles(slow, method, qk, scale, q_size, k_size, cost):
    q, k = qk
    selection = method.select(q, k, scale)
    mask, counts = selection.to_mask(), []
    for (b, h), one_q, one_k in heads_of(q, k):
        kept, *pairs = slow(method, one_q, one_k, scale or q.shape[-1] ** -0.5)
        truth, executed = mask_of_blocks(kept, q.shape[2], q_size, k_size)
        assert torch.equal(mask[b, h], truth), f"batch {b}, head {h}"
        assert selection.executed[b, h].item() == executed
        counts.append(pairs)
        if len(pairs) == 2:
            assert selection.reused[b, h].item() == pairs[1] / 2
    assert {pairs[0] for pairs in counts} == {counts[0][0]}
    assert selection.scored == pytest.approx(counts[0][0] * cost, rel=1e-12)


@examples
@given(
    prompts(),
    st.sampled_from([0.0, 0.001, 0.1, 0.5, 0.9]),
    st.sampled_from([1, 5, 16, 128]),
    scales,
)
def test_skip_softmax_skips_what_its_loop_skips(qk, threshold, b, scale):
    method = SkipSoftmax(threshold, b)
    check_tiles(slow_skip_softmax, method, qk, scale, b, b, 1 / 2)


@examples
@given(
    prompts(),
    st.sampled_from([SALE, SALEFloat]),
    st.sampled_from([0.0, 0.004, 0.05, 0.3, 1.0, 5.0, math.inf]),
    st.sampled_from([(1, 1), (1, 4), (2, 3)]),
    st.sampled_from([(16, 8), (8, 16), (5, 3), (64, 32)]),
    st.sampled_from([0, 40]),
    scales,
)
def test_sale_keeps_what_reaches_a_share_of_sink_and_window(
    qk, kind, tau, regions, sizes, dense, scale
):
    method = kind(tau, *regions, *sizes, dense)
    check_tiles(slow_sale, method, qk, scale, *sizes, 1 / 8 if kind is SALE else 1 / 2)


@pytest.mark.parametrize("kind", [SALE, SALEFloat])
@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_sale_at_thresholds_that_part_the_tiles(kind, strength):
    """Drawn prompts often keep all tiles or none; here each τ keeps some, and others."""
    q, k = prompt(90, (2, 1), dim=8, strength=strength, planted=True, seed=9)
    q[..., 4], k[..., 4] = 2.0, 3.0 + torch.arange(90.0) / 30  # what all queries, all keys share
    kept = []
    for tau in (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 4.0):
        method = kind(tau, 1, 2, 4, 2, 0)
        cost = 1 / 8 if kind is SALE else 1 / 2
        check_tiles(slow_sale, method, (q, k), None, 4, 2, cost)
        kept.append(method.select(q, k).to_mask().sum().item())
    assert len(set(kept)) == len(kept)


@examples
@given(
    prompts(),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([(0, 1, 0), (1, 2, 1), (2, 4, 2)]),
    st.sampled_from([(4, 4), (16, 16), (8, 5), (5, 8), (128, 128)]),
    st.sampled_from([0, 40]),
    scales,
)
def test_flash_prefill_v2_keeps_one_list_for_a_tile_of_all_heads(
    qk, alpha, regions, sizes, dense, scale
):
    (q, k), method = qk, FlashPrefillV2(alpha, *regions, *sizes, dense)
    selection, r = method.select(q, k, scale), q.shape[1] // k.shape[1]
    mask, counts = selection.to_mask(), set()
    for b in range(q.shape[0]):
        for kv in range(k.shape[1]):
            heads = slice(kv * r, (kv + 1) * r)
            one = q[b, heads], k[b, kv], scale or q.shape[-1] ** -0.5
            truth, executed, scored = slow_flash_prefill_v2(method, *one)
            assert torch.equal(mask[b, heads], truth), f"batch {b}, key head {kv}"
            assert selection.executed[b, heads].tolist() == executed
            counts.add(scored)
    (scored,) = counts
    assert selection.scored == pytest.approx(scored / r / 2, rel=1e-12)


@examples
@given(prompts(), st.sampled_from([0.3, 0.05, 0.001]), st.sampled_from([4, 16]))
def test_skip_softmax_drops_no_key_that_the_difference_test_of_its_threshold_keeps(qk, lam, b):
    """θ = −ln λ, each row by its own maximum: the running one is never larger."""
    exact = DifferenceOracle(-math.log(lam)).select(*qk).to_mask()
    assert not (exact & ~SkipSoftmax(lam, b).select(*qk).to_mask()).any()


def test_skip_softmax_is_sparse_where_the_first_keys_are_the_heaviest():
    """As in many heads; where single rows look elsewhere, each keeps tiles for 128."""
    q, k = (x.float() for x in prompt(2048, dim=16, strength=0.1))
    q[..., 0], k[..., 0] = 6.0, -torch.arange(2048.0) / 256
    kept = [
        method.select(q, k).to_mask().sum() / (2048 * 2049 / 2) for method in SkipSoftmax.sweep()
    ]
    assert kept[0] < 0.2
    assert kept[-1] > 0.5
    assert kept == sorted(kept)


def test_skip_softmax_goes_from_left_to_right():
    """Each tile is heavier than all before it: from the right only the last one would be kept."""
    q, k = torch.ones(1, 1, 64, 1), torch.arange(64.0).view(1, 1, 64, 1)
    rising, falling = (
        SkipSoftmax(0.01, 8).select(q, keys, 1.0).to_mask()[0, 0, -1] for keys in (k, -k)
    )
    assert rising.all()
    assert falling.nonzero().flatten().tolist() == list(range(8))


@pytest.mark.parametrize("tail", [0, 50])
def test_scores_that_attention_goes_on_with_are_paid_for_once(tail):
    """With λ = 0 skip-softmax is dense attention and costs as much; else half of what it skips."""
    q, k = (x.float() for x in prompt(130, (2, 1), planted=True, strength=2.0))
    methods = [SkipSoftmax(0.0, 16), SkipSoftmax(0.2, 16), SALEFloat(0.1, 1, 2, 16, 8)]
    for row in compare_heads(q, k, k, methods, tail=tail):
        dense, some, other = row
        assert dense["identification_cost"] == some["identification_cost"] == 0.5
        assert dense["total_cost"] == pytest.approx(dense["executed_density"])
        assert other["total_cost"] == other["executed_density"] + other["identification_cost"]
    for found in compare_heads(q, k, k, methods):
        skipped = 1 - found[1]["density"]
        assert found[1]["total_cost"] == pytest.approx(found[1]["executed_density"] + skipped / 2)
        assert skipped > 0.05


@examples
@given(prompts(), st.sampled_from([0.3, 0.05]))
def test_what_sale_drops_weighs_less_than_its_share(qk, tau):
    """With exact scores: of each row less than τ of its weight on sink and window."""
    q, k = qk
    method = SALEFloat(tau, 1, 2, 8, 4, 0)
    kept = method.select(q, k).to_mask()
    known = SALEFloat(1.0, 1, 2, 8, 4, 0)._between  # the tiles that are neither
    n, r = q.shape[2], q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(r, 1).mT * q.shape[-1] ** -0.5
    weights = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf).softmax(-1)
    for top in range(0, n, 8):
        rows = range(top, min(top + 8, n))
        between = known(rows)
        inside = slice(between.start * 4, between.stop * 4)
        part = weights[:, :, rows.start : rows.stop].clone()
        dropped = part * ~kept[:, :, rows.start : rows.stop]
        part[..., inside] = 0
        assert (dropped.amax(-1) < tau * part.sum(-1)).all()


@pytest.mark.parametrize("kind", [SALE, SALEFloat])
def test_sale_is_blind_to_what_all_keys_share(kind):
    """A large common vector would use up the four bits of every key."""
    q, k = prompt(200, (2, 1), planted=True)
    method = kind(0.5, 1, 2, 16, 8, 0)
    plain, moved = (method.select(q, keys).to_mask() for keys in (k, k + 8))
    assert torch.equal(plain, moved)
    assert 0.1 < plain.double().mean() < 0.42  # of all pairs, half of which are causal


def test_four_bits_are_fifteen_levels_of_each_token():
    x = prompt(50, dim=16)[0]
    x[..., 7, :] = 0
    low, unit = four_bits(x), x.abs().amax(-1, keepdim=True) / 7
    levels = (low / unit).nan_to_num()
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-12)
    assert levels.abs().max() == pytest.approx(7)
    assert ((low - x).abs() <= unit / 2 * (1 + 1e-12)).all()
    assert not low[..., 7, :].any()
    assert torch.equal(four_bits(-x), -low)


def test_four_bits_change_the_choice_and_not_by_much():
    q, k = prompt(400, (2, 1), dim=16, strength=2.0, planted=True)
    low, exact = (kind(0.05, 1, 2, 16, 8, 0).select(q, k).to_mask() for kind in (SALE, SALEFloat))
    differ = (low ^ exact).sum() / exact.sum()
    assert 0 < differ < 0.3


@pytest.mark.parametrize(
    ("kind", "most"), [(SALE, 1024), (SALEFloat, 1024), (FlashPrefillV2, 4096)]
)
def test_short_prompts_are_dense_as_published_and_cost_nothing_to_choose(kind, most):
    assert kind().dense_up_to == most
    q, k = (x.float() for x in prompt(most + 1, dim=2, strength=0.1))
    q[..., 0], k[..., :128, 0] = 5.0, 5.0  # nothing else is worth a look
    dense, sparse = kind().select(q[:, :, 1:], k[:, :, 1:]), kind().select(q, k)
    assert dense.scored == 0 < sparse.scored
    rows = range(most - 512, most - 384)
    assert dense.rows(rows)[..., -1, : rows[-1] + 1].all()
    assert not sparse.rows(rows)[..., -1, : rows[-1] + 1].all()


def test_query_heads_of_a_key_head_keep_the_same_and_those_of_another_do_not():
    q, k = prompt(256, (4, 2), strength=2.0, seed=4)
    mask = FlashPrefillV2(0.5, 1, 1, 0, 16, 8, 0).select(q, k).to_mask()
    assert torch.equal(mask[:, 0], mask[:, 1])
    assert torch.equal(mask[:, 2], mask[:, 3])
    assert not torch.equal(mask[:, 0], mask[:, 2])
    alone = FlashPrefillV2(0.5, 1, 1, 0, 16, 8, 0).select(q[:, :1], k[:, :1]).to_mask()
    assert not torch.equal(mask[:, 0], alone[:, 0])


def test_a_head_that_chooses_with_others_is_measured_with_them():
    q, k = (x.float() for x in prompt(256, (4, 2), strength=2.0, seed=4))
    x = Captured(q, k, k, 0.35, layer=3)
    sweep = [FlashPrefillV2(alpha, 1, 1, 0, 16, 8, 0) for alpha in (0.7, 0.3)]
    found = compare_layer(x, "FlashPrefillV2", sweep, [1, 2])
    whole = [evaluate(q, k, k, method.select(q, k, 0.35), 0.35) for method in sweep]
    expected = [one.density[0, head].item() for head in (1, 2) for one in whole]
    assert [row["density"] for row in found] == pytest.approx(expected)
    assert [row["head"] for row in found] == [1, 1, 2, 2]


def test_nan_keeps_from_where_it_stands():
    q, k = prompt(150, (2, 1), strength=0.1)
    q[..., 0], k[..., :16, 0] = 5.0, 5.0
    k[..., 40, 0] = torch.nan
    mask = SkipSoftmax(0.9, 16).select(q, k).to_mask()
    assert mask[..., -1, 32:].all()
    assert not mask[..., -1, 16:32].any()
    causal = torch.ones(150, 150).tril().bool()
    for method in (SALE(0.5, 1, 1, 16, 8, 0), SALEFloat(0.5, 1, 1, 16, 8, 0)):
        assert torch.equal(method.select(q, k).to_mask()[0, 0], causal)
    mask = FlashPrefillV2(0.9, 0, 1, 0, 16, 16, 0).select(q, k).to_mask()[0, 0]
    assert torch.equal(mask[40:], causal[40:])  # from the tile of 8 queries on that ends its block
    assert not mask[39, 16:32].any()


@pytest.mark.parametrize("kind", NEWER, ids=lambda kind: kind.__name__)
def test_a_claim_names_its_source(kind):
    assert METHODS[kind.__name__] is kind
    assert "arXiv 2" in kind.claim
    assert kind.claim.endswith(".")


@pytest.mark.parametrize(
    ("method", "knobs", "message"),
    [
        (SkipSoftmax, {"threshold": 1.0}, "threshold must be below 1, which keeps nothing, got 1"),
        (SkipSoftmax, {"threshold": -0.1}, r"threshold must be a number in \[0, 1\], got -0.1"),
        (SkipSoftmax, {"block_size": 0}, "block_size must be an integer of at least 1, got 0"),
        (SALE, {"threshold": math.nan}, r"threshold must be a number in \[0, inf\], got nan"),
        (SALE, {"init_blocks": 0}, "init_blocks must be an integer of at least 1, got 0"),
        (SALEFloat, {"window_blocks": 0}, "window_blocks must be an integer of at least 1"),
        (SALE, {"q_block": 1.5}, "q_block must be an integer"),
        (SALE, {"k_block": 0}, "k_block must be an integer"),
        (SALE, {"dense_up_to": -1}, "dense_up_to must be an integer of at least 0, got -1"),
        (FlashPrefillV2, {"alpha": 1.1}, r"alpha must be a number in \[0, 1\], got 1.1"),
        (FlashPrefillV2, {"init_blocks": -1}, "init_blocks must be an integer of at least 0"),
        (FlashPrefillV2, {"window_blocks": 0}, "window_blocks must be an integer of at least 1"),
        (FlashPrefillV2, {"dense_tiles": -1}, "dense_tiles must be an integer of at least 0"),
        (FlashPrefillV2, {"tile_rows": 0}, "tile_rows must be an integer of at least 1"),
        (FlashPrefillV2, {"block_size": True}, "block_size must be an integer"),
        (FlashPrefillV2, {"dense_up_to": None}, "dense_up_to must be an integer"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_wrong_knobs_are_refused_by_name(method, knobs, message):
    with pytest.raises(ValueError, match=message):
        method(**knobs)
