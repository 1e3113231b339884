"""The kernels against float64 and the reference: on a GPU, or without one in the interpreter.

Buffers that nobody wrote hold NaN, or the largest integer: PyTorch fills them so when it is asked
to be deterministic.
"""

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anchor_kernels
import anchor_ref
from anchor_kernels import anchor, calls, sparse, tail
from anchor_kernels.calls import Call
from anchor_kernels.launch import AttentionLaunch, SelectLaunch
from anchor_kernels.tables import make_chunks, tables_of
from anchor_kernels.tail import merge, share_keys, shares_of
from anchor_models.memory import choice_bytes
from anchor_ref import AnchorConfig, StripePlan
from anchor_ref.regions import groups
from tests.brute_force import brute_force, brute_masks, kept_pairs, own_differences

pytestmark = pytest.mark.filterwarnings(
    # Tiles whose weights outgrow their dtype are done again; rows beyond the end are not stored.
    "ignore:(overflow|invalid value|divide by zero|All-NaN slice):RuntimeWarning"
)
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if ON_GPU else [])


@pytest.fixture(autouse=True)
def _poisoned_buffers():
    torch.use_deterministic_algorithms(True, warn_only=ON_GPU)
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True, eq=False)
class Case:
    """Inputs of one call."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    config: AnchorConfig
    scale: float | None

    def __repr__(self) -> str:
        return (
            f"Case(q {tuple(self.q.shape)} {self.q.dtype}, k {tuple(self.k.shape)}, "
            f"{self.config}, scale {self.scale})"
        )

    @property
    def factor(self) -> float:
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale

    @property
    def largest_score(self) -> float:
        """No score, and no part sum on the way to one, is larger (Cauchy-Schwarz)."""
        q, k = self.q.double().norm(dim=-1).max(), self.k.double().norm(dim=-1).max()
        return abs(self.factor) * (q * k).item()


def random_case(
    n_q, n_k, heads, dim, config, *, dtype=torch.float32, scale=None, strength=1.0, seed=0
) -> Case:
    batch, repeat, kv_heads = heads
    random = torch.Generator().manual_seed(seed)

    def values(count, n, size=1.0):
        x = size * torch.randn(batch, count, n, dim, generator=random)
        return x.to(DEVICE, dtype)

    q, k = values(repeat * kv_heads, n_q, strength), values(kv_heads, n_k, strength)
    return Case(q, k, values(kv_heads, n_k), config, scale)


# Rows asked by themselves, an extension: few that stay in shared memory on Hopper GPUs, and more.
EXTENDED = [
    {"outliers": count, "outlier_choice": "even", "outlier_theta": theta}
    for count in (1, 3, 4, 5, 40)
    for theta in (None, -1.0, 1.0, math.inf)
]


@st.composite
def cases(draw):
    """Ragged N, chunks, r = 1, 2, 4, 7, odd head sizes, all thetas, small and huge scores."""
    block, step = draw(st.sampled_from([(4, 3), (8, 2), (16, 2), (16, 5), (5, 3), (32, 1)]))
    n_k = draw(st.integers(1, 150))
    return random_case(
        n_q=draw(st.one_of(st.just(n_k), st.integers(1, n_k))),
        n_k=n_k,
        heads=draw(st.sampled_from([(1, 1, 1), (2, 2, 1), (1, 2, 2), (1, 4, 1), (1, 7, 1)])),
        dim=draw(st.sampled_from([8, 16, 40, 64])),
        config=AnchorConfig(
            block_size=block,
            step=step,
            theta=draw(st.sampled_from([math.inf, -math.inf, -1.0, 0.5, 2.0, 12.0])),
            init_blocks=draw(st.integers(0, 2)),
            window_blocks=draw(st.integers(0, 2)),
            tail=draw(st.sampled_from([0, 0, 1, 7, 40, 200])),
            **draw(st.sampled_from([{}, {}, *EXTENDED])),
        ),
        dtype=draw(st.sampled_from(DTYPES)),
        scale=draw(st.sampled_from([None, 0.25, -0.5, 0.0])),
        strength=draw(st.sampled_from([0.3, 1.0, 4.0])),
        seed=draw(st.integers(0, 2**31)),
    )


def selection_bound(case: Case) -> float:
    """How far, in score units, a computed difference may lie from the float64 one.

    Four sums of D products meet (a score and an anchor, each of a mean): each rounds by at most
    D · 2^-24 of its largest. A mean query kept in two parts of p bits loses 2^-2p of itself.
    """
    bits = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[case.q.dtype]
    split = 0.0 if bits == 24 else 2.0 ** (-2 * bits) + 2.0**-24
    return case.largest_score * (4 * case.q.shape[-1] * 2.0**-24 + split)


def eager(case: Case, kept: torch.Tensor) -> torch.Tensor:
    """Attention over the kept pairs in plain PyTorch at the precision of the kernels.

    Scores and softmax in float32, weights rounded to the inputs' dtype before they meet v.
    """
    repeat = case.q.shape[1] // case.k.shape[1]
    k, v = (x.repeat_interleave(repeat, 1) for x in (case.k, case.v))
    scores = case.factor * (case.q.float() @ k.float().mT)
    weights = scores.masked_fill(~kept, -torch.inf).softmax(-1)
    return (weights.to(case.v.dtype).float() @ v.float()).to(case.q.dtype)


def error_ratio(case: Case, out: torch.Tensor, kept: torch.Tensor) -> float:
    """Kernel error over what is allowed: that of eager, plus rounding.

    The rounding: one unit of the output's dtype, since stage 1 stores its part in it; and a score
    of size s is a float32, so its exponential is good to s · 2^-24, four times on the way.
    """
    repeat = case.q.shape[1] // case.k.shape[1]
    k, v = (x.double().repeat_interleave(repeat, 1) for x in (case.k, case.v))
    scores = (case.factor * (case.q.double() @ k.mT)).masked_fill(~kept, -torch.inf)
    exact = scores.softmax(-1) @ v
    size = v.abs().max()
    found = ((out.double() - exact).abs().max() / size).item()
    plain = ((eager(case, kept).double() - exact).abs().max() / size).item()
    rounding = torch.finfo(case.q.dtype).eps + 4 * 2.0**-24 * case.largest_score
    return found / (plain + rounding)


def run(case: Case, **changes):
    at = replace(case, **changes)
    return anchor_kernels.anchor_attention(
        at.q, at.k, at.v, at.config, at.scale, return_trace=True
    )


def check_selection_and_output(case: Case) -> float:
    """Against float64; returns the error over what is allowed."""
    out, trace = run(case)
    cpu = replace(case, q=case.q.cpu(), k=case.k.cpu(), v=case.v.cpu())
    n_q, n_k = case.q.shape[2], case.k.shape[2]
    plan = StripePlan(*(x.cpu() for x in vars(trace.stripes).values()))
    kept = kept_pairs(plan, case.config, n_q, n_k)
    _, expected, _ = brute_force(cpu.q, cpu.k, cpu.v, case.config, case.factor)
    scores, _, always, _, difference = brute_masks(cpu.q, cpu.k, case.config, case.factor)
    # A decision may differ only where some block of the group, or a row that it asks, is closer to
    # its threshold than rounding.
    close = (difference - case.config.theta).abs() <= selection_bound(case)
    own = own_differences(scores, always, case.config)
    close |= (own - case.config.row_theta).abs() <= selection_bound(case)
    wrong = kept != expected
    for rows in range(n_q):
        group = (torch.arange(n_q) + n_k - n_q) // case.config.group_size
        same_group = group == group[rows]
        excused = close[:, :, same_group].any(2)
        assert not (wrong[:, :, rows] & ~excused).any(), case
    anchor = scores.masked_fill(~always, -torch.inf).amax(-1)
    off = (trace.row_anchor.cpu().double() - anchor).abs().max().item()
    assert off <= selection_bound(case), (case, off)
    ratio = error_ratio(cpu, out.cpu(), kept)
    assert ratio <= 1, (case, ratio)
    return ratio


def test_selection_and_output_agree_with_float64(record_property):
    ratios = []

    @given(cases())
    @settings(max_examples=60 if ON_GPU else 40)  # the interpreter is slow
    def check(case):
        ratios.append(check_selection_and_output(case))

    check()
    print(f"error over what is allowed, at most: {max(ratios):.3f}")
    record_property("error_ratio", f"{max(ratios):.3f}")


def integer_case(dtype, seed, step=4, block=8, **extended):
    """Small integers and a power of two: every sum is exact, ties are real ties."""
    random = torch.Generator().manual_seed(seed)

    def values(heads, n):
        return torch.randint(-2, 3, (1, heads, n, 16), generator=random).to(DEVICE, dtype)

    config = AnchorConfig(block, step, theta=2.0, **extended)
    return Case(values(4, 104), values(2, 104), values(2, 104), config, 0.25)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("extended", [{}, EXTENDED[6], EXTENDED[18]], ids=["", "3 rows", "all"])
def test_ties_are_decided_as_the_reference_decides_them(dtype, seed, extended):
    case = integer_case(dtype, seed, **extended)
    _, trace = run(case)
    _, expected = anchor_ref.anchor_attention(
        case.q, case.k, case.v, case.config, case.scale, return_trace=True
    )
    assert torch.equal(trace.row_anchor, expected.row_anchor)
    for name, value in vars(expected.stripes).items():
        found = getattr(trace.stripes, name)
        assert torch.equal(found, value), name
        assert found.dtype == value.dtype, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_stage_takes_what_the_references_stage_leaves(dtype):
    config = AnchorConfig(16, 2, theta=3.0, tail=20)
    case = random_case(100, 130, (2, 2, 2), 32, config, dtype=dtype)
    q, k, v = case.q, case.k, case.v
    state = anchor_kernels.compute_anchor(q, k, v, config)
    expected = anchor_ref.compute_anchor(q, k, v, config)
    unit = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(state.max, expected.max, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(state.sum, expected.sum, atol=0, rtol=1e-5)
    size = expected.acc.abs().max().item()
    torch.testing.assert_close(state.acc, expected.acc, atol=unit * size, rtol=0)
    stripes = anchor_kernels.identify_stripes(q, k, expected.max, config)
    wanted = anchor_ref.identify_stripes(q, k, expected.max, config)
    assert torch.equal(stripes.to_mask(130), wanted.to_mask(130))
    before = [x.clone() for x in (state.max, state.lse, state.out)]
    out = anchor_kernels.attend_stripes(q, k, v, state, wanted, config)
    for x, y in zip(before, (state.max, state.lse, state.out), strict=True):
        assert torch.equal(x, y)  # read, not changed
    reference = anchor_ref.attend_stripes(q, k, v, expected, wanted, config)
    torch.testing.assert_close(out.float(), reference.float(), atol=unit, rtol=unit)
    tail = anchor_kernels.attend_tail(q, k, v, state, out, config)
    dense = anchor_ref.attend_tail(q, k, v, expected, reference, config)
    torch.testing.assert_close(tail.float(), dense.float(), atol=unit, rtol=unit)
    assert torch.equal(tail[:, :, :-20], out[:, :, :-20])
    assert not torch.allclose(tail[:, :, -20:].float(), out[:, :, -20:].float(), atol=1e-3)


@pytest.mark.parametrize(
    ("n_q", "pooled"), [(700, True), (572, True), (512, True), (400, False), (130, False)]
)
def test_blocks_that_are_tiles_of_stage_1_are_pooled_there_and_others_are_not(n_q, pooled):
    """Chunks of 700 tokens: where one begins within a group's first block, tiles are no blocks."""
    case = random_case(n_q, 700, (1, 2, 1), 16, AnchorConfig(128, 2), dtype=torch.float16)
    case.q.add_(1)  # mean queries of some size
    call = Call(case.q, case.k, case.v, case.config, 0.25, None)
    assert call.pools_in_stage_1 == pooled
    for scale in (0.25, -0.3):
        # Around the anchors' mean about half of the candidates are kept: means decide which.
        anchors = anchor_ref.compute_anchor(case.q, case.k, case.v, case.config, scale).max
        config = replace(case.config, theta=anchors.mean().item())
        check_selection_and_output(replace(case, scale=scale, config=config))


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 60), st.data())
def test_a_common_tile_cuts_every_group_into_its_blocks(block, step, n_k, data):
    config = AnchorConfig(block, step)
    n_q = data.draw(st.integers(1, n_k))
    found = groups(config, n_q, n_k)
    if n_q == n_k and data.draw(st.booleans()):
        found = groups(config, n_k, n_k, torch.tensor([0, data.draw(st.integers(0, n_k)), n_k]))

    def cuts(tile: int) -> bool:
        return all(
            group.blocks
            == tuple(range(at, min(at + tile, stop)) for at in range(start, stop, tile))
            for group in found
            for start, stop in [(group.rows.start, group.rows.stop)]
        )

    tile = tables_of(found, torch.device("cpu")).tile
    assert cuts(tile) if tile else not any(map(cuts, range(1, block + 1)))


@pytest.mark.parametrize("together", [1, 2, 8])
@pytest.mark.parametrize("chunk", [1, 8, 32])
def test_slots_hold_each_candidate_once_and_the_longest_lists_are_visited_first(chunk, together):
    found = groups(AnchorConfig(4, 2, init_blocks=1), 130, 130, torch.tensor([0, 37, 130]))
    tables = tables_of(found, torch.device("cpu"))
    lengths = [len(found[g].candidates) for g in tables.by_work.tolist()]
    assert lengths == sorted((len(group.candidates) for group in found), reverse=True)
    assert sorted(tables.by_work.tolist()) == list(range(len(found)))
    chunks = make_chunks(tables, together, chunk, chunk, wanted=1)
    for g, group in enumerate(found):
        own = [slot[1:] for slot in chunks.slots.tolist() if slot[0] == g]
        assert [key for a, b, _, _ in own for key in range(a, b)] == list(group.candidates)
        assert [before for _, _, before, _ in own] == list(range(len(own)))
        assert [last for *_, last in own] == [0] * (len(own) - 1) + [1]
        assert len(own) <= chunks.most
    visits = [[slot for slot in visit if slot >= 0] for visit in chunks.order.tolist()]
    assert chunks.order.shape == (len(visits), together)
    assert sorted(slot for visit in visits for slot in visit) == list(range(chunks.n_slots))
    first_keys = [{chunks.slots[slot, 1].item() for slot in visit} for visit in visits]
    assert all(len(keys) == 1 for keys in first_keys)  # what is taken together shares keys
    assert first_keys == sorted(first_keys, key=min)  # those of the same keys follow each other
    for visit, keys, next_keys in zip(visits, first_keys, first_keys[1:], strict=False):
        assert len(visit) == together or keys != next_keys  # no place is given away


def test_short_prompts_are_cut_until_there_are_enough_chunks():
    def cut(n: int, wanted: int):
        found = groups(AnchorConfig(4, 2, init_blocks=1), n, n, None)
        return make_chunks(tables_of(found, torch.device("cpu")), 1, 64, 16, wanted)

    assert cut(130, 1).length == 64
    assert cut(130, 40).length == 32
    assert len(cut(130, 40).order) >= 40
    assert cut(130, 10_000).length == 16  # no shorter, however few they are


@pytest.mark.parametrize("launch", [(16, 16, 4, 1), (64, 32, 4, 2), (32, 128, 4, 2)])
def test_tile_sizes_change_no_decision_and_no_more_than_rounding(launch):
    config = AnchorConfig(16, 3, theta=2.0, init_blocks=1, window_blocks=1)
    case = random_case(170, 170, (1, 3, 1), 16, config)
    q, k, v = case.q, case.k, case.v
    out, trace = run(case)
    state = anchor_kernels.compute_anchor(q, k, v, config, launch=AttentionLaunch(*launch))
    torch.testing.assert_close(state.max, trace.row_anchor, atol=1e-5, rtol=1e-6)
    select = SelectLaunch(rows=16, block_n=32, chunk=64, num_warps=4, num_stages=1)
    stripes = anchor_kernels.identify_stripes(q, k, trace.row_anchor, config, launch=select)
    assert torch.equal(stripes.indices, trace.stripes.indices)
    assert torch.equal(stripes.offsets, trace.stripes.offsets)
    again = anchor_kernels.attend_stripes(
        q, k, v, state, stripes, config, launch=AttentionLaunch(*launch)
    )
    torch.testing.assert_close(again, out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_whose_stripes_exceed_the_anchor_by_far_are_done_again(dtype):
    """Weights measured from the log-sum-exp of stage 1 would overflow here."""
    config = AnchorConfig(16, 2, theta=math.inf, init_blocks=0)
    case = random_case(96, 96, (1, 2, 1), 16, config, dtype=dtype)
    case.k[:, :, 5] = 0
    case.k[:, :, 5, 0] = 40
    case.q[:, :, 40:, 0] = 40  # scores of 400 at key 5, a candidate of later groups
    out, trace = run(case)
    cpu = replace(case, q=case.q.cpu(), k=case.k.cpu(), v=case.v.cpu())
    kept = torch.ones(96, 96, dtype=torch.bool).tril().expand(1, 2, 96, 96)
    assert torch.isfinite(out).all()
    assert trace.stripes.counts[0, 0].tolist() == [0, 32, 64]
    assert error_ratio(cpu, out.cpu(), kept) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_whose_window_exceeds_diagonal_and_sink_by_far_are_done_again(dtype):
    config = AnchorConfig(64, 8)  # one group: everything is window
    case = random_case(400, 400, (1, 1, 1), 16, config, dtype=dtype)
    case.k[:, :, 140] = 0
    case.k[:, :, 140, 0] = 40
    case.q[:, :, 300:, 0] = 40
    out, trace = run(case)
    cpu = replace(case, q=case.q.cpu(), k=case.k.cpu(), v=case.v.cpu())
    kept = torch.ones(400, 400, dtype=torch.bool).tril().expand(1, 1, 400, 400)
    assert error_ratio(cpu, out.cpu(), kept) <= 1
    assert trace.row_anchor[0, 0, 399].item() == pytest.approx(400, rel=1e-3)


@pytest.mark.parametrize("programs", [1, 3])
def test_few_programs_that_look_for_flags_leave_none_out(monkeypatch, programs):
    """Hopper's own kernels have it so; each stage has flagged tiles between others."""
    config = AnchorConfig(16, 2, theta=math.inf)
    case = random_case(160, 160, (1, 3, 1), 16, config)
    case.k[:, :, 21, 0], case.q[:, 1, 120:122, 0] = 40, 40  # a stripe, for rows of one tile
    case.k[:, :, 70, 0], case.q[:, 2, 90, 0] = 40, 40  # in the window of another
    expected, _ = run(case)
    for module in (anchor, sparse):
        monkeypatch.setattr(module, "again_programs", lambda q, tiles, hopper: programs)
    calls._calls.clear()
    out, _ = run(case)
    calls._calls.clear()  # not for other tests
    assert torch.equal(out, expected)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("n", [200, 700])
@pytest.mark.parametrize("init_blocks", [0, 1])
def test_a_heavy_first_key_alone_makes_no_tile_be_done_again(n, init_blocks):
    """The first group has no initial region before its window, and a sink in many heads."""
    config = AnchorConfig(128, 2, init_blocks=init_blocks)
    case = random_case(n, n, (1, 2, 1), 64, config, dtype=torch.float16)
    q, k, v = case.q, case.k, case.v
    q[..., 0], k[..., 0] = 20, 0
    k[:, :, :: config.group_size, 0] = 20  # scores of 50, in half precision 2^72 times those of 0
    tables = tables_of(groups(config, n, n, None), q.device)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], device=q.device)
    runs = anchor.prepare_anchor(q, k, v, out, tables, 64**-0.5)
    redo = torch.ones(runs.programs, dtype=torch.int8, device=q.device)
    only_first = replace(runs, again=lambda *tensors, stream: None)
    only_first((q, k, v), q, k, v, out, lse.clone(), lse, redo, lse, lse, tables.groups)
    assert not redo.any()


def test_strides_of_any_kind_give_the_same_bits():
    config = AnchorConfig(16, 2, theta=2.0)
    case = random_case(40, 40, (2, 2, 2), 24, config)
    out, _ = run(case)

    def heads_inside(x):  # as a model's projections leave them
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def columns_apart(x):
        return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]

    for view in (heads_inside, columns_apart):
        for names in ("q", "k", "v", "qkv"):  # one alone shows whose strides are taken for it
            seen, _ = run(case, **{name: view(getattr(case, name)) for name in names})
            assert torch.equal(seen, out), f"{names} with {view.__name__}"


@pytest.mark.parametrize("dim", [16, 64] if ON_GPU else [16])  # 64: Hopper's own kernel too
def test_offsets_beyond_31_bits_are_reached(dim):
    """Rows 2^30 elements apart: the third one starts where 32 bits with a sign end."""
    far = 2**30
    torch.use_deterministic_algorithms(False)  # filling it would take the memory it does not need
    # The third row is a candidate of the fourth: stage 2 and the gather reach it too.
    storage = torch.empty(3 * far + dim, dtype=torch.float16, device=DEVICE)
    x = storage.as_strided((1, 1, 4, dim), (dim, dim, far, 1))
    x.copy_(torch.randn(1, 1, 4, dim))
    near = x.contiguous()
    config = AnchorConfig(1, 1, theta=math.inf, init_blocks=0)
    for q, k in ((near, x), (x, near)):
        out = anchor_kernels.anchor_attention(q, k, k, config)
        expected = anchor_kernels.anchor_attention(near, near, near, config)
        assert torch.equal(out.contiguous(), expected)


@given(cases(), st.sampled_from([1, 5, 16, 33, 150]))
@settings(max_examples=30 if ON_GPU else 20)
def test_a_tail_changes_no_row_before_it_and_nothing_that_was_selected(case, tail):
    out, trace = run(case, config=replace(case.config, tail=tail))
    without, other = run(case, config=replace(case.config, tail=0))
    first = max(case.q.shape[2] - tail, 0)
    assert torch.equal(out[:, :, :first], without[:, :, :first])
    assert torch.equal(trace.row_anchor.nan_to_num(), other.row_anchor.nan_to_num())
    assert torch.equal(trace.stripes.indices, other.stripes.indices)


@pytest.mark.parametrize("tail", [1, 11, 12, 30, 200])
def test_no_key_counts_twice_where_a_tile_holds_the_tail_and_rows_before_it(tail):
    """All candidates are stripes, so that every row is dense, in the tail and before it."""
    case = random_case(60, 60, (1, 2, 1), 16, AnchorConfig(8, 2, theta=math.inf, tail=tail))
    out, _ = run(case)
    cpu = replace(case, q=case.q.cpu(), k=case.k.cpu(), v=case.v.cpu())
    kept = torch.ones(60, 60, dtype=torch.bool).tril().expand(1, 2, 60, 60)
    assert error_ratio(cpu, out.cpu(), kept) <= 1


@pytest.mark.parametrize("tail", [1, 9, 30, 200])
def test_packed_sequences_have_a_tail_each(tail):
    config = AnchorConfig(8, 2, theta=-math.inf, tail=tail)
    case = random_case(90, 90, (1, 2, 1), 16, config)
    bounds = [0, 40, 40, 45, 90]
    inputs = case.q, case.k, case.v, config, None
    packed = anchor_kernels.anchor_attention(*inputs, torch.tensor(bounds, device=DEVICE))
    for start, end in pairwise(bounds):
        if start < end:
            one = [x[:, :, start:end] for x in inputs[:3]]
            alone = anchor_kernels.anchor_attention(*one, config)
            torch.testing.assert_close(packed[:, :, start:end], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "sets"), [(24, 1), (64, 1), (24, 3), (64, 4)])
def test_attention_over_sets_of_keys_merges_into_that_over_all(dtype, dim, sets):
    a, *b = (
        random_case(70, 70, (2, 3, 1), dim, AnchorConfig(), seed=i, dtype=dtype).q
        for i in range(sets + 1)
    )
    random = torch.Generator().manual_seed(0)
    a_lse, *b_lse = (
        5 * torch.randn(2, 3, 70, generator=random).to(DEVICE) for _ in range(sets + 1)
    )
    a_lse[:, :, 3] = -torch.inf  # a row that saw nothing in one set
    b_lse[0][:, :, 5] = -torch.inf
    out = torch.full_like(a, torch.nan)
    merge(a, a_lse, torch.stack(b), torch.stack(b_lse).unsqueeze(-1), out)

    def blend(kind: torch.dtype) -> torch.Tensor:
        shares = torch.stack([a_lse, *b_lse]).to(kind).softmax(0).unsqueeze(-1)
        return (shares * torch.stack([a, *b]).to(kind)).sum(0)

    exact, eager = blend(torch.float64), blend(torch.float32).to(dtype)
    rounding = torch.finfo(dtype).eps / 2 * exact.abs()  # of each number by itself
    allowed = (eager.double() - exact).abs().max() + rounding
    assert ((out.double() - exact).abs() <= allowed).all()


def test_shares_of_keys_are_neighbours_in_order_and_no_copies():
    x = torch.arange(2 * 3 * 12 * 5).view(2, 12, 3, 5).transpose(1, 2)[:1]
    shares = share_keys(x, 4)
    assert shares.shape == (4, 3, 3, 5)
    for s, share in enumerate(shares):
        assert torch.equal(share, x[0, :, 3 * s : 3 * s + 3])
    assert shares.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("batch", "heads", "tail", "candidates", "shares"),
    [
        (1, 9, 512, range(128, 30_720), 4),  # 36 tiles for 132 multiprocessors
        (1, 9, 512, range(128, 6_272), 2),  # no share below 2048
        (1, 9, 512, range(127, 30_720), 1),  # and none longer than another
        (1, 32, 512, range(128, 30_720), 2),
        (1, 128, 512, range(128, 30_720), 1),
        (2, 9, 512, range(128, 30_720), 1),  # shares stand in the batch's place
        (1, 1, 40, range(128, 126_976), 32),
    ],
)
def test_keys_of_a_tail_are_split_until_a_gpu_is_full(batch, heads, tail, candidates, shares):
    q = torch.empty(batch, heads, 1, 64, device="meta")
    (group,) = groups(AnchorConfig(), 2048, 2048, None)
    group = replace(group, candidates=candidates, tail=range(2048 - tail, 2048))
    assert shares_of(q, group, multiprocessors=132) == shares


@pytest.mark.parametrize(("heads", "shares"), [((1, 4, 2), 1), ((1, 4, 2), 4), ((2, 2, 1), 1)])
def test_rectangles_of_a_tail_that_are_merged_are_what_the_kernel_computes(
    monkeypatch, heads, shares
):
    """By eager maths in cuDNN's place, which the tests on a GPU look at."""

    def eager(q, k, v, scale):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = q @ k.transpose(2, 3) * scale
        return scores.softmax(-1) @ v, scores.logsumexp(-1, keepdim=True)

    monkeypatch.setattr(tail, "rectangle", eager)
    config = AnchorConfig(8, 2, theta=2.0, tail=21)  # rows of two groups
    case = random_case(88, 88, heads, 16, config)
    q, k, v = case.q, case.k, case.v
    state = anchor_kernels.compute_anchor(q, k, v, config)
    parts = [group for group in groups(config, 88, 88, None) if group.tail]
    assert len(parts) == 2
    found = torch.zeros_like(q)
    tail.ByCudnn(parts, 0.25, [shares] * 2)(q, k, v, state.out, state.lse, found)
    expected = anchor_kernels.attend_tail(q, k, v, state, torch.zeros_like(q), config)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found[:, :, -21:].abs().amin((0, 1, 3)).all()


def test_two_runs_give_identical_bits():
    case = random_case(90, 90, (1, 2, 1), 32, AnchorConfig(16, 2, theta=2.0))
    (out, trace), (again, trace_again) = run(case), run(case)
    assert torch.equal(out, again)
    assert torch.equal(trace.stripes.indices, trace_again.stripes.indices)


@pytest.mark.parametrize("theta", [-math.inf, 2.0, math.inf])
def test_without_a_trace_the_output_has_the_same_bits(theta):
    """Then the list has places for all candidates, and what nobody fills means nothing."""
    case = random_case(90, 90, (1, 2, 1), 32, AnchorConfig(16, 2, theta=theta))
    out, _ = run(case)
    alone = anchor_kernels.anchor_attention(case.q, case.k, case.v, case.config)
    assert torch.equal(alone, out)


def test_packed_sequences_equal_one_by_one():
    config = AnchorConfig(8, 2, theta=1.0)
    bounds = [0, 40, 40, 41, 57, 120]
    case = random_case(120, 120, (1, 2, 2), 16, config)
    packed = anchor_kernels.anchor_attention(
        case.q, case.k, case.v, config, None, torch.tensor(bounds, dtype=torch.int32)
    )
    for start, end in pairwise(bounds):
        if start < end:
            rows = slice(start, end)
            alone, _ = run(case, q=case.q[:, :, rows], k=case.k[:, :, rows], v=case.v[:, :, rows])
            torch.testing.assert_close(packed[:, :, rows], alone, atol=1e-6, rtol=1e-5)


def test_chunks_on_group_boundaries_equal_one_shot():
    case = random_case(100, 100, (1, 2, 1), 16, AnchorConfig(8, 2, theta=1.0))
    whole, _ = run(case)
    for start, end in ((0, 32), (32, 64), (64, 100)):
        part, _ = run(
            case,
            q=case.q[:, :, start:end],
            k=case.k[:, :, :end],
            v=case.v[:, :, :end],
        )
        torch.testing.assert_close(whole[:, :, start:end], part, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_what_is_not_a_number_acts_as_in_the_reference(where, bad):
    config = AnchorConfig(8, 2, theta=1.0)
    case = random_case(64, 64, (1, 2, 1), 16, config)
    getattr(case, where)[0, 0, 35, 3] = bad  # in the third group
    out, trace = run(case)
    expected, wanted = anchor_ref.anchor_attention(
        case.q, case.k, case.v, config, return_trace=True
    )
    assert torch.equal(trace.stripes.to_mask(64), wanted.stripes.to_mask(64))
    assert torch.isfinite(out[:, :, :32]).all()  # earlier groups
    assert torch.equal(torch.isfinite(out[0, :, 35]), torch.isfinite(expected[0, :, 35]))
    # Inside the group it spreads tile by tile; rows of later groups are as in the reference.
    assert torch.equal(torch.isfinite(out[:, :, 48:]), torch.isfinite(expected[:, :, 48:]))


def test_a_row_that_stage_1_cannot_see_may_still_find_stripes():
    """All scores of initial region and window are -inf; those of the stripes are not."""
    config = AnchorConfig(8, 1, theta=math.inf, init_blocks=0)
    case = random_case(16, 16, (1, 1, 1), 16, config)
    case.q[0, 0, 8:] = 0
    case.q[0, 0, 8:, 0] = 1
    case.k[0, 0, 8:, 0] = -math.inf
    out, _ = run(case)
    expected = anchor_ref.anchor_attention(case.q, case.k, case.v, config)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_later_tokens_leave_earlier_groups_bit_identical():
    case = random_case(64, 64, (1, 2, 1), 16, AnchorConfig(8, 2, theta=1.0))
    before, _ = run(case)
    for x in (case.q, case.k, case.v):
        x[:, :, 40] = 7.0
    after, _ = run(case)
    assert torch.equal(before[:, :, :32], after[:, :, :32])


def test_what_the_kernels_cannot_do_is_said():
    config = AnchorConfig(8, 2)

    def refused(dim=16, dtype=torch.float32):
        x = torch.randn(1, 1, 8, dim, device=DEVICE).to(dtype)
        with pytest.raises(anchor_kernels.UnsupportedError) as caught:
            anchor_kernels.anchor_attention(x, x, x, config)
        return str(caught.value)

    assert "head_dim must be at most 256, got 257" in refused(dim=257)
    assert "got torch.float64" in refused(dtype=torch.float64)
    if not ON_GPU:
        assert "bfloat16" in refused(dtype=torch.bfloat16)


@pytest.mark.parametrize("tail", [0, 30])
@pytest.mark.parametrize("rows", [{}, {"outliers": 3, "outlier_choice": "even"}], ids=["", "rows"])
def test_a_threshold_for_each_head_is_what_that_head_has_alone(rows, tail):
    config = AnchorConfig(16, 2, tail=tail, **rows)
    case = random_case(60, 90, (2, 2, 2), 16, config, strength=2.0)
    thetas = [1.0, math.inf, -math.inf, 0.25]
    more = {"return_trace": True, "theta_by_head": thetas}
    out, trace = anchor_kernels.anchor_attention(case.q, case.k, case.v, config, **more)
    _, expected = anchor_ref.anchor_attention(case.q, case.k, case.v, config, **more)
    assert torch.equal(trace.stripes.to_mask(90), expected.stripes.to_mask(90))
    torch.testing.assert_close(trace.row_anchor, expected.row_anchor)  # as found, not lowered
    for head, theta in enumerate(thetas):
        one = replace(case, q=case.q[:, head : head + 1], config=replace(config, theta=theta))
        one = replace(one, k=case.k[:, head // 2, None], v=case.v[:, head // 2, None])
        alone, of_head = run(one)
        same = of_head.stripes.to_mask(90)[:, 0]
        assert torch.equal(trace.stripes.to_mask(90)[:, head], same)
        torch.testing.assert_close(out[:, head], alone[:, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [2, 5])
def test_each_head_asks_rows_of_its_own(count):
    rows = {"outliers": count, "outlier_choice": "even", "outlier_theta": 0.0}
    config = AnchorConfig(8, 3, theta=-math.inf, **rows)  # means keep nothing
    case = random_case(60, 90, (2, 2, 2), 16, config, strength=2.0)
    found = run(case)[1].stripes.to_mask(90)
    _, expected = anchor_ref.anchor_attention(case.q, case.k, case.v, config, return_trace=True)
    assert torch.equal(found, expected.stripes.to_mask(90))
    by_head = found.flatten(2).unbind(1)
    assert all(mask.any() for mask in by_head)
    assert not any(torch.equal(one, other) for one, other in combinations(by_head, 2))


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("bad", [[1.0], [1.0, "2"], [math.nan, 1.0], 3.0, [1.0, 2.0, 3.0]])
def test_thresholds_by_head_that_are_none_are_refused_by_name(bad):
    x = torch.randn(1, 2, 40, 16, device=DEVICE)
    with pytest.raises((TypeError, ValueError), match=r"^theta"):
        anchor_kernels.anchor_attention(x, x, x, AnchorConfig(8, 2), theta_by_head=bad)


def test_rows_that_have_to_be_looked_for_are_refused_by_name_whole_and_in_stage_2():
    x = torch.randn(1, 1, 40, 16, device=DEVICE)
    config = AnchorConfig(8, 2, theta=1.0)
    with_rows = replace(config, outliers=3)
    words = (
        "anchor_kernels cannot run: outlier_choice must be 'even', got 'cosine' with outliers = 3"
    )
    anchor_kernels.anchor_attention(x, x, x, config)  # a call like it, but for these rows
    with pytest.raises(anchor_kernels.UnsupportedError, match=words):
        anchor_kernels.anchor_attention(x, x, x, with_rows)
    state = anchor_kernels.compute_anchor(x, x, x, with_rows)
    with pytest.raises(anchor_kernels.UnsupportedError, match=words):
        anchor_kernels.identify_stripes(x, x, state.max, with_rows)
    # Stages 1 and 3 take what the reference chose, with these rows or without.
    stripes = anchor_ref.identify_stripes(x, x, state.max, with_rows)
    out = anchor_kernels.attend_stripes(x, x, x, state, stripes, with_rows)
    expected = anchor_ref.anchor_attention(x, x, x, with_rows)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_without_interpreter_a_cpu_tensor_is_refused_by_name():
    code = (
        "import torch, anchor_kernels\n"
        "x = torch.zeros(1, 1, 4, 16)\n"
        "try: anchor_kernels.anchor_attention(x, x, x)\n"
        "except anchor_kernels.UnsupportedError as problem: print(problem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "q must be on a GPU, got cpu" in done.stdout


def test_bad_plans_and_states_are_refused():
    config = AnchorConfig(8, 2, theta=1.0)
    case = random_case(40, 40, (1, 2, 1), 16, config)
    q, k, v = case.q, case.k, case.v
    state = anchor_kernels.compute_anchor(q, k, v, config)
    stripes = anchor_kernels.identify_stripes(q, k, state.max, config)
    with pytest.raises(ValueError, match="stripes must have one list"):
        anchor_kernels.attend_stripes(q, k, v, state, stripes, AnchorConfig(8, 1))
    half = q[:, :, :20]
    with pytest.raises(ValueError, match=r"state\.out must have shape"):
        anchor_kernels.attend_stripes(half, k, v, state, stripes, config)
    ahead = StripePlan(stripes.counts, stripes.offsets, stripes.indices + 8)
    with pytest.raises(ValueError, match="must be candidates of the group"):
        anchor_kernels.attend_stripes(q, k, v, state, ahead, config)
    with pytest.raises(ValueError, match="row_anchor must have shape"):
        anchor_kernels.identify_stripes(half, k, state.max, config)
    with pytest.raises(TypeError, match="row_anchor must be float32"):
        anchor_kernels.identify_stripes(q, k, state.max.double(), config)


def test_the_formula_of_memory_counts_the_mean_queries_that_are_held():
    """One group of three blocks, without candidates: mean queries and one empty list."""
    config = AnchorConfig(16, 4)
    case = random_case(40, 40, (2, 3, 1), 24, config)
    parts = Call(case.q, case.k, case.v, config, 1.0, None).places
    held = sum(parts[name].nbytes for name in ("pooled_q", "pooled_anchor"))
    assert held == 2 * 3 * (choice_bytes(40, 24, 0.5, config) - 12)
