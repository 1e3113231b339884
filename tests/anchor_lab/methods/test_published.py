"""Published methods keep and count what their definitions say, read over all N x N scores."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from anchor_lab.methods.bfla import BFLA
from anchor_lab.methods.flash_prefill import FlashPrefill
from anchor_lab.methods.flash_prefill_v2 import FlashPrefillV2
from anchor_lab.methods.flex_prefill import FlexPrefill
from anchor_lab.methods.moba import MoBA
from anchor_lab.methods.pbs import PBSAttention
from anchor_lab.methods.sale import SALE, SALEFloat
from anchor_lab.methods.skip_softmax import SkipSoftmax
from anchor_lab.methods.sparge import SpargeAttention
from anchor_lab.methods.vertical_slash import VerticalSlash
from anchor_lab.methods.xattention import XAttention

METHODS = (VerticalSlash, FlexPrefill, XAttention, SpargeAttention, FlashPrefill)
METHODS = (*METHODS, PBSAttention, MoBA, BFLA, FlashPrefillV2, SkipSoftmax, SALE, SALEFloat)
SMALL = {
    VerticalSlash: VerticalSlash(40, 120),
    FlexPrefill: FlexPrefill(0.8, 0.3, min_budget=16, block_size=16),
    XAttention: XAttention(0.8, 4, 16),
    SpargeAttention: SpargeAttention(0.8, None, 0.3, 16, 8),
    FlashPrefill: FlashPrefill(0.5, 1, 2, 1, 16),
    PBSAttention: PBSAttention(0.6, 32, 16, 16),
    MoBA: MoBA(3, 16),
    BFLA: BFLA(0.9, 1, 16, 4),
    FlashPrefillV2: FlashPrefillV2(0.5, 1, 2, 1, 16, 16, 0),
    SkipSoftmax: SkipSoftmax(0.1, 16),
    SALE: SALE(0.05, 1, 2, 16, 8, 0),
    SALEFloat: SALEFloat(0.05, 1, 2, 16, 8, 0),
}
in_each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)


def prompt(n, heads=(1, 1), batch=1, dim=8, strength=1.0, planted=False, seed=0):
    """Noise in float64; planted: some columns, diagonals and blocks above it."""
    random = torch.Generator().manual_seed(seed)
    q, k = (
        strength * torch.randn(batch, h, n, dim, generator=random, dtype=torch.float64)
        for h in heads
    )
    if planted:
        q[..., 0] += 4
        k[..., torch.randint(n, (3,), generator=random), 0] += 4  # columns
        turn = torch.arange(n, dtype=torch.float64) * 2 * math.pi / 37
        wave = torch.stack([turn.cos(), turn.sin()], -1)
        q[..., 1:3] += 3 * wave  # diagonals, every 37th
        k[..., 1:3] += 3 * wave
        start = n // 3
        q[..., 2 * start :, 3] += 4  # late queries, early keys
        k[..., start // 2 : start, 3] += 4
    return q, k


@st.composite
def prompts(draw):
    return prompt(
        draw(st.one_of(st.integers(1, 40), st.integers(41, 230))),
        draw(st.sampled_from([(1, 1), (2, 1), (4, 1), (4, 2), (6, 3)])),
        draw(st.integers(1, 2)),
        draw(st.sampled_from([4, 8])),
        draw(st.sampled_from([0.3, 1.0, 3.0])),
        draw(st.booleans()),
        draw(st.integers(0, 10**6)),
    )


def heads_of(q, k):
    """Each query head with the key head it shares."""
    repeat = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            yield (b, h), q[b, h], k[b, h // repeat]


def causal_softmax(scores):
    keys = torch.arange(scores.shape[1])
    return scores.masked_fill(keys > torch.arange(scores.shape[0])[:, None], -math.inf).softmax(-1)


def blocks_of(n, size):
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def ranked(values):
    """Indices by falling value; of equals the first."""
    return sorted(range(len(values)), key=lambda i: (-float(values[i]), i))


def mask_of_blocks(kept, n, q_size, k_size):
    """Causal pairs in kept blocks, and the pairs of whole blocks that hold one."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    executed = 0
    for t, rows in enumerate(blocks_of(n, q_size)):
        for u, keys in enumerate(blocks_of(n, k_size)):
            if (t, u) in kept and keys.start <= rows[-1]:
                mask[rows.start : rows.stop, keys.start : keys.stop] = True
                executed += q_size * k_size
    return mask.tril(), executed


def slow_vertical_slash(method, q, k, scale):
    n = len(q)
    weights = causal_softmax(q @ k.T * scale)
    column, diagonal, scored = [0.0] * n, [0.0] * n, 0
    for i in range(max(n - 64, 0), n):
        for j in range(i + 1):
            column[j] += weights[i, j].item()
            diagonal[i - j] += weights[i, j].item()
            scored += 1
    columns = set(ranked([math.inf] * min(30, n) + column[30:])[: method.vertical])
    diagonals = set(ranked([math.inf] * min(100, n) + diagonal[100:])[: method.slash])
    mask = torch.tensor(
        [[j <= i and (j in columns or i - j in diagonals) for j in range(n)] for i in range(n)]
    )
    tiles = 0
    for start in range(0, n, 64):
        last = start + 63
        needed = {i - o for i in range(start, last + 1) for o in diagonals if o <= i}
        key = last
        while key >= 0:
            if key in needed:  # one tile of a run, from its near end
                tiles += 1
                length = next(d for d in range(65) if d == 64 or key - d not in needed)
                key -= length
            else:
                key -= 1
        alone = [j for j in columns if j <= last and j not in needed]
        tiles += math.ceil(len(alone) / 64)
    return mask, tiles * 64 * 64, scored / 2


def slow_flex_prefill(method, q, k, scale):
    n, b = len(q), method.block_size
    blocks = blocks_of(n, b)
    size = len(blocks)
    weights = causal_softmax(q @ k.T * scale)
    rows = range(max(n - b, 0), n)
    column, by_key = torch.zeros(n).double(), torch.zeros(n).double()
    scored = 0
    for i in rows:
        for j in range(i + 1):
            column[j] += weights[i, j] / len(rows)
            by_key[n - 1 - (i - j)] += weights[i, j] / len(rows)  # farthest diagonal first
            scored += 1
    k_means = torch.stack([k[x.start : x.stop].mean(0) for x in blocks])
    q_means = torch.stack([q[x.start : x.stop].mean(0) for x in blocks])
    p = torch.stack([column[x.start : x.stop].sum() for x in blocks])
    guess = (q[rows.start :].mean(0) @ k_means.T * scale).softmax(-1)
    scored += size
    divergence = 0.0
    for x, y in zip(p.tolist(), guess.tolist(), strict=True):
        middle = (x + y) / 2
        divergence += x * math.log(x / middle) / 2 if x else 0
        divergence += y * math.log(y / middle) / 2 if y else 0
    block_head = math.sqrt(max(divergence, 0)) < method.tau
    least = math.ceil(method.min_budget / b)
    most = size if method.max_budget is None else math.ceil(method.max_budget / b)

    def budget(mass):
        if block_head:
            return least
        held, count = 0.0, 0
        for value in sorted(mass.tolist(), reverse=True):
            held += value
            count += held <= method.gamma
        return max(least, min(most, (count + 1) // b + 1))

    p[0] = math.inf
    columns = set(ranked(p)[: budget(column)])
    slash = [by_key[x.start : x.stop].sum() for x in blocks][::-1]
    slash[0] = math.inf
    diagonals = set(ranked(slash)[: budget(by_key)])
    kept = {
        (t, u) for t in range(size) for u in range(t + 1) if u in columns or t - u in diagonals
    }
    if block_head:
        chart = causal_softmax(q_means @ k_means.T * scale)
        scored += size * (size + 1) // 2
        held = 0.0
        for at in ranked(chart.flatten()):
            held += chart.flatten()[at].item()
            if held > method.gamma * size:
                break
            kept.add(divmod(at, size))
    return *mask_of_blocks(kept, n, b, b), scored / 2


def slow_xattention(method, q, k, scale):
    n, s, b = len(q), method.stride, method.block_size
    tiles = math.ceil(n / s)
    all_scores = torch.zeros(tiles * s, tiles * s).double()
    all_scores[:n, :n] = q @ k.T * scale
    sums = torch.zeros(tiles, tiles).double()
    scored = 0
    for u in range(tiles):
        for w in range(u + 1):
            for x in range(s):
                sums[u, w] += all_scores[u * s + s - 1 - x, w * s + x]
                scored += 1
    weights = causal_softmax(sums / s)
    kept = set()
    for t in range(math.ceil(n / b)):
        row = weights[t * b // s : (t + 1) * b // s]
        mass = [row[:, x * b // s : (x + 1) * b // s].sum().item() for x in range(t + 1)]
        chosen = {0, t}
        held = sum(mass[x] for x in chosen)
        for x in ranked(mass):
            if x in chosen:
                continue
            if held >= method.threshold * sum(mass):
                break
            chosen.add(x)
            held += mass[x]
        kept |= {(t, x) for x in chosen}
    return *mask_of_blocks(kept, n, b, b), scored / 2


def slow_sparge(method, q, k, scale):
    n = len(q)
    k = k - k.mean(0)

    def pooled(x, size):
        parts = [x[r.start : r.stop] for r in blocks_of(n, size)]
        alike = []
        for part in parts:
            cosines = torch.nn.functional.cosine_similarity(part[:, None], part[None], dim=-1)
            alike.append(bool(cosines.mean() > method.similarity))
        return [part.mean(0) for part in parts], alike

    queries, alike_q = pooled(q, method.q_block)
    keys, alike_k = pooled(k, method.k_block)
    kept, scored = set(), 0
    for t, mean in enumerate(queries):
        end = (t + 1) * method.q_block
        causal = [u for u in range(len(keys)) if u * method.k_block < end]
        scored += len(causal)
        sums = [
            (mean @ keys[u]).item() * scale if u in causal and alike_k[u] else -math.inf
            for u in range(len(keys))
        ]
        weights = torch.tensor(sums).double().softmax(-1) if max(sums) > -math.inf else sums
        if method.fraction is None:
            order = ranked(weights)
            sums = [sum(float(weights[u]) for u in order[: c + 1]) for c in range(len(order))]
            count = sum(held <= method.mass for held in sums)
        else:
            count = int(method.fraction * len(keys))
        picked = ranked(weights)[: max(count, 1)]
        for u in causal:
            own = (u + 1) * method.k_block > t * method.q_block
            if u in picked or own or not alike_k[u] or not alike_q[t]:
                kept.add((t, u))
    return *mask_of_blocks(kept, n, method.q_block, method.k_block), scored / 2


def slow_flash_prefill(method, q, k, scale):
    n, b = len(q), method.block_size
    blocks = blocks_of(n, b)
    kept, scored = set(), 0
    for t, rows in enumerate(blocks):
        sums = {}
        for u in range(t + 1):
            mean = k[blocks[u].start : blocks[u].stop].mean(0)
            seeing = [i for i in rows if i >= u * b + b - 1]
            scored += len(seeing)
            sums[u] = sum(math.exp(q[i] @ mean * scale) for i in seeing)
        for u in range(t + 1):
            near = t - u < method.window_blocks
            dense = t >= len(blocks) - method.dense_blocks
            above = sums[u] >= method.alpha * max(sums.values())
            if above or near or dense or u < method.init_blocks:
                kept.add((t, u))
    return *mask_of_blocks(kept, n, b, b), scored / 2


def check_against(slow, method, q, k, scale=None):
    selection = method.select(q, k, scale)
    mask = selection.to_mask()
    assert not mask.triu(1).any()
    assert mask.any(-1).all()
    scored = []
    for (b, h), one_q, one_k in heads_of(q, k):
        truth, executed, count = slow(method, one_q, one_k, scale or q.shape[-1] ** -0.5)
        assert torch.equal(mask[b, h], truth), f"batch {b}, head {h}"
        assert selection.executed[b, h].item() == executed
        assert executed >= truth.sum()
        scored.append(count)
    assert selection.scored == pytest.approx(sum(scored) / len(scored), rel=1e-12)


scales = st.sampled_from([None, 0.1, 1.0])
examples = settings(max_examples=25)


@examples
@given(prompts(), st.sampled_from([30, 35, 60, 1000]), st.sampled_from([100, 103, 140, 6096]))
def test_vertical_slash(qk, vertical, slash):
    check_against(slow_vertical_slash, VerticalSlash(vertical, slash), *qk)


def test_vertical_slash_between_few_diagonals():
    """Long enough for runs of several tiles, gaps between them, and columns beside them."""
    q, k = prompt(700, (2, 1), planted=True, seed=3)
    check_against(slow_vertical_slash, VerticalSlash(110, 109), q, k)


@examples
@given(
    prompts(),
    st.sampled_from([0.0, 0.4, 0.8, 0.95]),
    st.sampled_from([0.0, 0.1, 0.25, 1.0]),
    st.sampled_from([(1, None), (9, 40), (33, None), (1000, 1000)]),
    st.sampled_from([1, 5, 16, 128]),
    scales,
)
def test_flex_prefill(qk, gamma, tau, budgets, block, scale):
    check_against(slow_flex_prefill, FlexPrefill(gamma, tau, *budgets, block), *qk, scale)


def test_flex_prefill_has_heads_of_both_kinds():
    """Else the comparison would leave one branch of a mixed batch untried."""
    q, k = prompt(200, (4, 2), 2, strength=0.3, seed=1)
    q[:, ::2], k[:, :, 77] = 4 * q[:, ::2], 9.0
    method = FlexPrefill(0.6, 0.2, 16, block_size=16)
    lines, blocks = (FlexPrefill(0.6, tau, 16, block_size=16) for tau in (0.0, 1.0))
    mixed, lines, blocks = (m.select(q, k).to_mask() for m in (method, lines, blocks))
    as_lines = (mixed == lines).all(-1).all(-1)
    as_blocks = (mixed == blocks).all(-1).all(-1)
    assert (as_lines ^ as_blocks).all()
    assert as_lines.any()
    assert as_blocks.any()
    check_against(slow_flex_prefill, method, q, k)


@examples
@given(
    prompts(),
    st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.97]),
    st.sampled_from([(1, 8), (4, 16), (3, 9), (16, 16), (16, 128)]),
    scales,
)
def test_xattention(qk, threshold, sizes, scale):
    check_against(slow_xattention, XAttention(threshold, *sizes), *qk, scale)


@examples
@given(
    prompts(),
    st.sampled_from(
        [(0.0, None), (0.5, None), (0.9, None), (0.98, None), (None, 0.0), (None, 0.4)]
    ),
    st.sampled_from([-0.1, 0.1, 0.2, 0.6]),
    st.sampled_from([(16, 8), (8, 16), (5, 5), (7, 3), (128, 64)]),
    scales,
)
def test_sparge_attention(qk, budget, similarity, sizes, scale):
    check_against(slow_sparge, SpargeAttention(*budget, similarity, *sizes), *qk, scale)


@examples
@given(
    prompts(),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([(0, 1, 0), (1, 2, 1), (2, 4, 2)]),
    st.sampled_from([1, 5, 16, 128]),
    scales,
)
def test_flash_prefill(qk, alpha, regions, block, scale):
    check_against(slow_flash_prefill, FlashPrefill(alpha, *regions, block), *qk, scale)


def regions_of(mask, n, block):
    """Block map: 1 where all causal pairs of a block are kept."""
    parts = blocks_of(n, block)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    rows = [[slice(r.start, r.stop), slice(c.start, c.stop)] for r in parts for c in parts]
    whole = [bool(mask[r, c].eq(causal[r, c]).all()) for r, c in rows]
    return torch.tensor(whole).view(len(parts), len(parts))


def test_defaults_keep_their_regions_where_the_scores_point_elsewhere():
    """All scores point to keys 300 to 310, away from every region."""
    n = 1500
    q, k = prompt(n, strength=0.01)
    q[..., 0], k[..., 300:310, 0] = 30.0, 30.0
    i, j = torch.arange(n)[:, None], torch.arange(n)
    mask = VerticalSlash(30, 100).select(q, k).to_mask()[0, 0]
    assert torch.equal(mask, ((j < 30) | (i - j < 100)) & (j <= i))
    block = torch.arange(12)
    near = block[:, None] - block
    heads = {
        FlexPrefill(0.1, 0.0, 1): (block == 0) | (near == 0),
        XAttention(0.1): (block == 0) | (near == 0) | (block == 2),
        FlashPrefill(1.0): (block < 2) | (near < 4) | (block[:, None] >= 10) | (block == 2),
    }
    for method, truth in heads.items():
        found = regions_of(method.select(q, k).to_mask()[0, 0], n, 128)
        if isinstance(method, FlexPrefill):  # pointed to within the budget or not: forced first
            assert found[truth & (near >= 0)].all()
        else:
            assert torch.equal(found.tril(), truth & (near >= 0)), method
    own = SpargeAttention(0.0, similarity=-0.1).select(q, k).to_mask()[0, 0]
    assert regions_of(own, n, 128).diagonal().all()


def test_blocks_that_are_not_alike_are_kept():
    q, k = prompt(128, strength=0.1, seed=5)
    q[..., :, 0] += 2
    k[..., :64, 1] += 2  # removing the mean key leaves two alike halves
    method = SpargeAttention(0.0, similarity=0.5, q_block=16, k_block=8)
    alike = method.select(q, k).to_mask()[0, 0]
    noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double()
    k[0, 0, 24:32] = noise - noise.mean(0) + k.mean(2)[0, 0]
    mixed_keys = method.select(q, k).to_mask()[0, 0]
    assert mixed_keys[32:, 24:32].all()
    assert not alike[32:, 24:32].any()
    q[0, 0, 96:112] = torch.cat([noise, -noise])
    mixed_queries = method.select(q, k).to_mask()[0, 0]
    assert torch.equal(
        mixed_queries[96:112], torch.ones(128, 128, dtype=torch.bool).tril()[96:112]
    )


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # Weights are 1/N in column after column, so masses are equal but for later keys.
        (VerticalSlash(45, 120), lambda i, j: (j < 45) | (i - j < 120)),
        (XAttention(0.5, 4, 16), None),
        (SpargeAttention(None, 0.25, -0.1, 16, 16), lambda i, j: (j < 48) | (i // 16 == j // 16)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_of_equals_the_earlier_is_kept(method, expected):
    n = 200
    k = prompt(n, seed=2)[1]
    k[..., -1] = 0
    q = torch.zeros_like(k)
    q[..., -1] = 1  # every score is 0, and every query is like the others
    mask = method.select(q, k).to_mask()[0, 0]
    if expected is None:  # the blocks before a query block's own are a run from the first one
        kept = regions_of(mask, n, 16).tril(-1).int()
        assert (kept.diff(dim=-1).tril(-2) <= 0).all()
        assert kept[-1].sum() == 6  # and half of 12.5 blocks, its own half one included
        return
    i, j = torch.arange(n)[:, None], torch.arange(n)
    assert torch.equal(mask, expected(i, j) & (j <= i))


@in_each
def test_each_configuration_keeps_what_the_one_before_keeps(method):
    q, k = (x.float() for x in prompt(1700, (2, 1), dim=16, strength=2.0, planted=True, seed=7))
    masks = [config.select(q, k).to_mask() for config in method.sweep()]
    assert 6 <= len(masks) <= 10
    for sparser, denser in pairwise(masks):
        assert not (sparser & ~denser).any()
    # Of skip-softmax a tile is kept for any of 128 rows, whatever λ: see test_newer.py.
    assert masks[0].sum() < (1.0 if method is SkipSoftmax else 0.9) * masks[-1].sum()


@in_each
def test_sweep_holds_small_and_large_budgets_at_the_shortest_prompt(method):
    q, k = (x.float() for x in prompt(4096, dim=8, strength=2.0, planted=True, seed=8))
    first, last = (
        sum(int(mask.sum()) for _, mask in config.select(q, k)) / (4096 * 4097 / 2)
        for config in (method.sweep()[0], method.sweep()[-1])
    )
    assert (first < 0.25) == (method is not SkipSoftmax)
    assert last > 0.5


@in_each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_chosen_from_in_float32(method, dtype):
    q, k = (x.to(dtype) for x in prompt(300, (2, 1), planted=True))
    low, wide = (SMALL[method].select(*x).to_mask() for x in ((q, k), (q.float(), k.float())))
    assert torch.equal(low, wide)


@in_each
def test_rows_do_not_depend_on_how_many_are_asked_for(method):
    q, k = prompt(300, (2, 1), planted=True)
    selection = SMALL[method].select(q, k)
    mask = selection.to_mask()
    for rows in (range(1), range(60, 70), range(130, 300)):
        assert torch.equal(selection.rows(rows), mask[:, :, rows.start : rows.stop, : rows.stop])


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.untyped_storage().nbytes() // out.element_size())
        return out


@in_each
def test_nothing_as_large_as_all_pairs_is_stored(method):
    q, k = (x.float() for x in prompt(8192, dim=8))
    with LargestTensor() as largest:
        selection = method().select(q, k)
        selection.rows(range(8064, 8192))
    assert largest.numel <= 1.1 * 128 * 8192  # a block of rows, with what pads it


@in_each
def test_nan_leaves_a_key_to_every_row(method):
    q, k = prompt(150, (2, 1))
    k[..., 40, 0] = torch.nan
    mask = SMALL[method].select(q, k).to_mask()
    assert mask.diagonal(dim1=-2, dim2=-1).all()
    assert not mask.triu(1).any()
    if method in (XAttention, SpargeAttention, FlashPrefill, PBSAttention, BFLA):
        assert mask[..., -1, :].all()  # as said in their docstrings


@pytest.mark.parametrize(
    ("method", "knobs", "message"),
    [
        (VerticalSlash, {"vertical": 29}, "vertical must be an integer of at least 30, got 29"),
        (VerticalSlash, {"slash": 99}, "slash must be an integer of at least 100, got 99"),
        (VerticalSlash, {"slash": 200.0}, "slash must be an integer"),
        (FlexPrefill, {"gamma": 1.1}, "gamma must be a number in"),
        (FlexPrefill, {"tau": -0.1}, "tau must be a number in"),
        (FlexPrefill, {"min_budget": 0}, "min_budget must be an integer of at least 1, got 0"),
        (FlexPrefill, {"max_budget": 1000}, "max_budget must be an integer of at least 1024"),
        (FlexPrefill, {"block_size": True}, "block_size must be an integer"),
        (XAttention, {"threshold": math.nan}, "threshold must be a number in"),
        (XAttention, {"stride": 0}, "stride must be an integer of at least 1, got 0"),
        (XAttention, {"block_size": 0}, "block_size must be an integer of at least 1"),
        (XAttention, {"block_size": 120}, r"block_size must be a multiple of stride \(16\)"),
        (SpargeAttention, {"mass": 1.5}, "mass must be a number in"),
        (SpargeAttention, {"mass": None, "fraction": -1}, "fraction must be a number in"),
        (SpargeAttention, {"mass": None}, "exactly one of mass and fraction"),
        (SpargeAttention, {"fraction": 0.5}, "exactly one of mass and fraction"),
        (SpargeAttention, {"similarity": 2}, "similarity must be a number in"),
        (SpargeAttention, {"q_block": 0}, "q_block must be an integer"),
        (SpargeAttention, {"k_block": 0}, "k_block must be an integer"),
        (FlashPrefill, {"alpha": "0.7"}, "alpha must be a number in"),
        (FlashPrefill, {"init_blocks": -1}, "init_blocks must be an integer of at least 0"),
        (FlashPrefill, {"window_blocks": 0}, "window_blocks must be an integer of at least 1"),
        (FlashPrefill, {"dense_blocks": -1}, "dense_blocks must be an integer of at least 0"),
        (FlashPrefill, {"block_size": 0}, "block_size must be an integer"),
    ],
)
def test_wrong_knobs_are_refused_by_name(method, knobs, message, unchecked_annotations):
    with pytest.raises(ValueError, match=message):
        method(**knobs)
