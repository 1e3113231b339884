"""The kernels on a GPU at the sizes and in the dtypes that they are for.

`test_kernels.py` draws small cases; here each shape fills many tiles and groups. Truth is float64
on the same GPU, a group of queries at a time.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import anchor_kernels
import anchor_ref
from anchor_lab.experiments.attention.instruments import CudaInstruments
from anchor_lab.experiments.attention.jobs import sample_rows
from anchor_models import Planted, planted_stripes
from anchor_ref import AnchorConfig, StripePlan
from anchor_ref.measure import dense_attention
from anchor_ref.plan import AnchorTrace
from anchor_ref.regions import Group, groups
from tests.kernels.anchor_kernels.test_kernels import (
    Case,
    error_ratio,
    random_case,
    selection_bound,
)

pytestmark = pytest.mark.gpu
GIB = 2**30
# Of normal scores some come this near to the anchors of a group's first blocks, and most do not.
CONFIG = AnchorConfig(theta=2.5)


def dtypes(*chosen: torch.dtype):
    """A test of these dtypes; its name ends with the dtype's."""
    names = [str(dtype).removeprefix("torch.") for dtype in chosen]
    return pytest.mark.parametrize("dtype", chosen, ids=names)


each_dtype = dtypes(torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Shape:
    """Sizes of one call.

    Attributes:
        n_q, n_k: queries and keys.
        heads: batch, query heads for each kv head, kv heads.
        dim: D.
        bounds: of packed sequences.
        heads_inside: q, k and v lie in memory as `[B, N, H, D]`, as transformers hands them over.
    """

    n_q: int
    n_k: int
    heads: tuple[int, int, int]
    dim: int
    config: AnchorConfig = CONFIG
    bounds: tuple[int, ...] | None = None
    heads_inside: bool = False

    def case(self, dtype: torch.dtype) -> Case:
        """Normal queries, keys and values."""
        case = random_case(self.n_q, self.n_k, self.heads, self.dim, self.config, dtype=dtype)
        if not self.heads_inside:
            return case
        q, k, v = (
            x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.q, case.k, case.v)
        )
        return replace(case, q=q, k=k, v=v)

    @property
    def cu_seqlens(self) -> Tensor | None:
        return None if self.bounds is None else torch.tensor(self.bounds, dtype=torch.int32)

    @property
    def groups(self) -> tuple[Group, ...]:
        return groups(self.config, self.n_q, self.n_k, self.cu_seqlens)


def asking(count: int) -> AnchorConfig:
    """Means and single rows that both keep some keys: scores of single rows spread more."""
    return AnchorConfig(theta=2.0, outliers=count, outlier_theta=0.0, outlier_choice="even")


SHAPES = {
    "ragged": Shape(20_011, 20_011, (1, 4, 2), 128),
    "own-keys": Shape(8_193, 8_193, (2, 1, 2), 64),
    "seven-share": Shape(6_143, 6_143, (1, 7, 1), 96),
    "widest": Shape(5_000, 5_000, (1, 2, 2), 256),
    "chunk": Shape(3_000, 11_000, (1, 4, 1), 128),
    "packed": Shape(16_000, 16_000, (1, 4, 1), 128, bounds=(0, 1, 2_049, 2_049, 9_000, 16_000)),
    "transformers": Shape(9_001, 9_001, (1, 4, 2), 128, heads_inside=True),
    "window": Shape(
        10_000, 10_000, (1, 4, 1), 64, AnchorConfig(theta=2.75, init_blocks=2, window_blocks=1)
    ),
    "tail": Shape(12_000, 12_000, (1, 4, 2), 128, replace(CONFIG, tail=512)),
    "tail-of-two-groups": Shape(
        14_001, 14_001, (2, 3, 1), 64, replace(CONFIG, tail=2_500), heads_inside=True
    ),
    "tail-of-a-chunk": Shape(3_000, 11_000, (1, 4, 1), 96, replace(CONFIG, tail=700)),
    "tails-of-packs": Shape(
        16_000,
        16_000,
        (1, 4, 1),
        128,
        replace(CONFIG, tail=300),
        bounds=(0, 1, 2_049, 2_049, 9_000, 16_000),
    ),
    "rows-asked": Shape(9_001, 9_001, (1, 4, 2), 128, asking(4), heads_inside=True),
    "more-rows-asked": Shape(8_193, 8_193, (2, 3, 1), 64, asking(9)),
    "rows-asked-of-packs": Shape(
        16_000, 16_000, (1, 4, 1), 96, asking(3), bounds=(0, 1, 2_049, 2_049, 9_000, 16_000)
    ),
    "rows-asked-widest": Shape(3_000, 7_000, (1, 2, 1), 256, asking(2)),
    "all-keys": Shape(5_000, 5_000, (1, 4, 1), 128, AnchorConfig(theta=math.inf)),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@contextmanager
def poisoned_buffers() -> Iterator[None]:
    """PyTorch fills what nobody wrote with NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run(case: Case, cu_seqlens: Tensor | None = None) -> tuple[Tensor, AnchorTrace]:
    with poisoned_buffers():
        return anchor_kernels.anchor_attention(
            case.q, case.k, case.v, case.config, case.scale, cu_seqlens, return_trace=True
        )


def nearest(case: Case, group: Group, row_anchor: Tensor) -> Tensor:
    """How far above its threshold the least difference of anchor and score is, `[B, Hq, C]`.

    Of any block's means, and of any row that is asked by itself; float64.
    """
    repeat = case.q.shape[1] // case.k.shape[1]
    keys = case.k[:, :, group.candidates.start : group.candidates.stop].double()
    keys = keys.repeat_interleave(repeat, 1)
    blocks = [slice(rows.start, rows.stop) for rows in group.blocks]
    pooled = torch.stack([case.q[:, :, rows].double().mean(2) for rows in blocks], 2)
    anchor = torch.stack([row_anchor[:, :, rows].mean(2) for rows in blocks], 2)
    found = (anchor.unsqueeze(-1) - case.factor * (pooled @ keys.mT)).amin(2) - case.config.theta
    for block in group.blocks:
        parts = min(case.config.outliers, len(block))
        rows = [block[(2 * part + 1) * len(block) // (2 * parts)] for part in range(parts)]
        if rows:
            own = row_anchor[:, :, rows].unsqueeze(-1)
            own = own - case.factor * (case.q[:, :, rows].double() @ keys.mT)
            found = found.minimum(own.amin(2) - case.config.row_theta)
    return found


def kept_pairs(group: Group, chosen: Tensor) -> Tensor:
    """What a group's rows see, `[B, Hq, rows, N]`, given its stripes `[B, Hq, N]`."""
    key = torch.arange(chosen.shape[-1], device=chosen.device)
    own = torch.tensor(group.rows, device=chosen.device)[:, None] + group.shift
    initial = (key >= group.init.start) & (key < group.init.stop)
    window = (key >= group.window_start) & (key <= own)
    dense = (own - group.shift) >= group.tail.start
    everything = dense & (key >= group.init.start) & (key <= own)
    return chosen.unsqueeze(2) | initial | window | everything


@each_dtype
@each_shape
def test_stripes_are_those_of_float64_but_for_rounding(shape, dtype, record_property):
    case = shape.case(dtype)
    _, trace = run(case, shape.cu_seqlens)
    exact = anchor_ref.compute_anchor(
        case.q, case.k, case.v, shape.config, None, shape.cu_seqlens, compute_dtype=torch.float64
    ).max
    bound = selection_bound(case)
    assert (trace.row_anchor - exact).abs().max() <= bound
    chosen = trace.stripes.to_mask(shape.n_k)
    kept = candidates = excused = 0
    farthest = 0.0
    for g, group in enumerate(shape.groups):
        if not group.candidates:
            assert not chosen[:, :, g].any()
            continue
        gap = nearest(case, group, exact)
        found = chosen[:, :, g, group.candidates.start : group.candidates.stop]
        wrong = found != (gap <= 0)
        assert not (wrong & (gap.abs() > bound)).any(), group.rows
        assert chosen[:, :, g].sum() == found.sum()
        kept, candidates = kept + int(found.sum()), candidates + found.numel()
        excused += int(wrong.sum())
        farthest = max(farthest, gap.abs().where(wrong, 0.0).max().item())
    told = f"{excused} of {candidates}, at most {farthest:.1e} from θ, {bound:.1e} allowed"
    print(told)
    record_property("otherwise_than_float64", told)
    if math.isfinite(shape.config.theta):
        assert 0 < kept < candidates
    else:
        assert kept == candidates


@each_dtype
@each_shape
def test_the_error_is_at_most_that_of_eager_and_rounding(shape, dtype, record_property):
    case = shape.case(dtype)
    out, trace = run(case, shape.cu_seqlens)
    chosen = trace.stripes.to_mask(shape.n_k)
    worst = 0.0
    for g, group in enumerate(shape.groups):
        rows, end = slice(group.rows.start, group.rows.stop), group.rows.stop + group.shift
        part = replace(case, q=case.q[:, :, rows], k=case.k[:, :, :end], v=case.v[:, :, :end])
        kept = kept_pairs(group, chosen[:, :, g, :end])
        worst = max(worst, error_ratio(part, out[:, :, rows], kept))
    print(f"error over what is allowed: {worst:.3f}")
    record_property("error_ratio", f"{worst:.3f}")
    assert worst <= 1


@each_dtype
@each_shape
def test_rows_before_the_tail_have_the_bits_that_they_have_without(shape, dtype):
    case = shape.case(dtype)
    bounds = shape.bounds or (0, shape.n_q)
    without, _ = run(replace(case, config=replace(case.config, tail=0)), shape.cu_seqlens)
    for tail in (1, 64, 512, 2_500):
        out, _ = run(replace(case, config=replace(case.config, tail=tail)), shape.cu_seqlens)
        for start, end in pairwise(bounds):
            rows = slice(start, max(start, end - tail))
            assert torch.equal(out[:, :, rows], without[:, :, rows]), tail


# Block size, step, initial blocks, window blocks, queries: regions that begin and end within tiles
# of keys and on their edges, first groups without an initial region, chunks, rows behind the end.
REGIONS = {
    "shipped": (128, 2, 1, 0, 700),
    "small blocks": (16, 5, 3, 2, 700),
    "two initial tiles": (64, 4, 3, 0, 690),
    "no initial region": (128, 1, 0, 1, 513),
    "wide blocks": (192, 2, 1, 1, 700),
    "chunk": (128, 2, 1, 0, 411),
    "one row": (64, 3, 1, 0, 1),
}


@pytest.mark.parametrize("scale", [None, -0.2, 0.0])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("regions", REGIONS.values(), ids=REGIONS)
@dtypes(torch.bfloat16, torch.float16)
def test_stage_1_is_as_good_as_eager_wherever_regions_begin_and_end(regions, dim, scale, dtype):
    block, step, init, window, n_q = regions
    config = AnchorConfig(block, step, init_blocks=init, window_blocks=window)
    n_k = max(n_q, 700)
    case = random_case(n_q, n_k, (2, 3, 2), dim, config, dtype=dtype, scale=scale)
    with poisoned_buffers():
        state = anchor_kernels.compute_anchor(case.q, case.k, case.v, config, scale)
    nothing = torch.zeros(2, 6, n_k, dtype=torch.bool, device="cuda")
    parts = [kept_pairs(group, nothing) for group in groups(config, n_q, n_k)]
    always = torch.cat(parts, 2)
    k = case.k.double().repeat_interleave(3, 1)
    scores = (case.factor * (case.q.double() @ k.mT)).masked_fill(~always, -torch.inf)
    bound = selection_bound(case)
    assert (state.max.double() - scores.amax(-1)).abs().max() <= bound
    # A sum of n weights rounds as often, each time by 2^-24 of it.
    rounded = bound + 2.0**-24 * (n_k + 4 * case.largest_score)
    assert (state.lse.double() - scores.logsumexp(-1)).abs().max() <= rounded
    assert error_ratio(case, state.out, always) <= 1


@each_dtype
@each_shape
def test_two_runs_give_identical_bits(shape, dtype):
    case = shape.case(dtype)
    (out, trace), (again, trace_again) = (run(case, shape.cu_seqlens) for _ in range(2))
    assert torch.equal(out, again)
    assert torch.equal(trace.row_anchor, trace_again.row_anchor)
    for name, value in vars(trace.stripes).items():
        assert torch.equal(value, getattr(trace_again.stripes, name)), name


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("tail", [0, 100, 512, 3_000])
@dtypes(torch.bfloat16)
def test_the_host_does_not_wait_where_all_candidates_have_room(tail, dtype):
    case = SHAPES["transformers"].case(dtype)
    case = replace(case, config=replace(case.config, tail=tail))
    expected, _ = run(case)  # also makes kernels and tables
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # a wait is an error now
    try:
        out = anchor_kernels.anchor_attention(case.q, case.k, case.v, case.config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out, expected)


@each_dtype
def test_heads_inside_give_the_bits_of_heads_outside(dtype):
    inside = SHAPES["transformers"]
    (out, _), (seen, _) = (
        run(replace(inside, heads_inside=False).case(dtype)),
        run(inside.case(dtype)),
    )
    assert torch.equal(out, seen)


@each_dtype
@pytest.mark.parametrize(
    ("largest", "scale", "theta"), [(2, 2**-2, 10.0), (2000, 2**-11, 16.0)], ids=["ties", "fine"]
)
def test_where_every_sum_is_exact_so_is_the_selection(largest, scale, theta, dtype):
    """Integers, whole blocks and powers of two: the small tie, means of the large need 17 bits."""
    n, dim, config = 12_800, 64, AnchorConfig(theta=theta)
    random = torch.Generator().manual_seed(0)

    def values(heads: int, most: int = 2) -> Tensor:
        x = torch.randint(-most, most + 1, (1, heads, n, dim), generator=random)
        return x.to("cuda", dtype)

    case = Case(values(8, largest), values(2), values(2), config, scale)
    _, trace = run(case)
    _, expected = anchor_ref.anchor_attention(
        case.q, case.k, case.v, config, scale, return_trace=True
    )
    assert torch.equal(trace.row_anchor, expected.row_anchor)
    for name, value in vars(expected.stripes).items():
        assert torch.equal(getattr(trace.stripes, name), value), name
    all_groups = groups(config, n, n)
    kept = trace.stripes.indices.numel()
    assert 0 < kept < 8 * sum(len(group.candidates) for group in all_groups)
    if largest == 2:
        closest = nearest(case, all_groups[-1], expected.row_anchor.double())
        assert (closest == 0).any()


def planted(n: int, dtype: torch.dtype, q_heads: int, kv_heads: int) -> Planted:
    return planted_stripes(
        n,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=128,
        density=0.05,
        dtype=dtype,
        device="cuda",
    )


def has_the_planted_keys(stripes: StripePlan, positions: Tensor, g: int, group: Group) -> bool:
    """Are the stripes of a group, in every head, the planted keys among its candidates?"""
    inside = (positions >= group.candidates.start) & (positions < group.candidates.stop)
    return all(
        torch.equal(stripes.keys(0, head, g).long(), positions[inside])
        for head in range(stripes.counts.shape[1])
    )


@each_dtype
def test_planted_stripes_are_found_and_nothing_else(dtype):
    n, config = 20_011, AnchorConfig()
    x = planted(n, dtype, 8, 2)
    _, trace = run(Case(x.q, x.k, x.v, config, None))
    for g, group in enumerate(groups(config, n, n)):
        assert has_the_planted_keys(trace.stripes, x.positions, g, group), group.rows


@dtypes(torch.bfloat16)
def test_a_million_tokens(dtype, record_property):
    n, config = 2**20, AnchorConfig()
    x = planted(n, dtype, 8, 2)
    out, trace = run(Case(x.q, x.k, x.v, config, None))
    all_groups = groups(config, n, n)
    for g in (1, len(all_groups) // 2, len(all_groups) - 1):
        assert has_the_planted_keys(trace.stripes, x.positions, g, all_groups[g])
    worst = 0.0
    for row in sample_rows(n, 16).tolist():
        g = row // config.group_size
        group = all_groups[g]
        for head in range(8):
            keys = torch.cat(
                [
                    torch.tensor(group.init, dtype=torch.int64, device="cuda"),
                    trace.stripes.keys(0, head, g).long(),
                    torch.arange(group.window_start, row + 1, device="cuda"),
                ]
            )
            one = slice(head, head + 1), slice(row, row + 1)
            k, v = (y[:, head // 4 : head // 4 + 1, keys] for y in (x.k, x.v))
            part = Case(x.q[:, *one], k, v, config, None)
            everything = torch.ones(1, 1, 1, len(keys), dtype=torch.bool, device="cuda")
            worst = max(worst, error_ratio(part, out[:, *one], everything))
    print(f"error over what is allowed: {worst:.3f}")
    record_property("error_ratio", f"{worst:.3f}")
    assert worst <= 1


@dtypes(torch.bfloat16)
@pytest.mark.parametrize("theta", [12.0, math.inf], ids="theta-{}".format)
def test_memory_beyond_inputs_and_output_stays_below_a_gibibyte(theta, dtype, record_property):
    """Even when every candidate is kept: the lists are the most of it, 4 bytes a stripe."""
    x = planted(131_072, dtype, 32, 8)
    config = AnchorConfig(theta=theta)
    _, extra = CudaInstruments(0.0).peak(
        lambda: anchor_kernels.anchor_attention(x.q, x.k, x.v, config)
    )
    record_property("mib", f"{extra / 2**20:.0f}")
    assert extra <= GIB


@each_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_what_is_not_a_number_spreads_as_far_as_it_may(where, bad, dtype):
    shape = Shape(8_200, 8_200, (1, 4, 2), 128)
    case = shape.case(dtype)
    clean, _ = run(case)
    row, own = 5_000, range(4_096, 6_144)  # in the third group
    getattr(case, where)[0, 0, row, 3] = bad
    out, trace = run(case)
    inputs = (case.q, case.k, case.v)
    expected, wanted = anchor_ref.anchor_attention(*inputs, shape.config, return_trace=True)
    assert torch.equal(out[:, :, : own.start], clean[:, :, : own.start])
    found, reference = trace.stripes.to_mask(shape.n_k), wanted.stripes.to_mask(shape.n_k)
    lost, lost_in_reference = ~out.isfinite(), ~expected.isfinite()
    assert torch.equal(lost[:, :, row], lost_in_reference[:, :, row])
    later = slice(own.stop, None)
    # The two parts of a half-precision mean make NaN of what is Inf in one: such a key is kept.
    if dtype == torch.float32 or math.isnan(bad) or where == "v":
        assert torch.equal(lost[:, :, later], lost_in_reference[:, :, later])
    else:
        dense = ~dense_attention(*inputs)[:, :, later].isfinite()
        assert not (lost_in_reference[:, :, later] & ~lost[:, :, later]).any()
        assert not (lost[:, :, later] & ~dense).any()
    # What the reference keeps of the bad token, the kernels keep.
    assert not (reference & ~found)[..., row].any()
