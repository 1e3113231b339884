"""Where the kernels' short way is not enough, and what callers may hand them."""

import math

import pytest
import torch
from triton.backends.compiler import GPUTarget

import anchor_kernels
import anchor_ref
from anchor_kernels import launch as launches
from anchor_kernels.anchor import AnchorState
from anchor_kernels.launch import (
    AnchorHopperLaunch,
    AttentionLaunch,
    HopperLaunch,
    SelectLaunch,
    anchor_launch_for,
    has_whole_rows,
    sparse_launch_for,
)
from anchor_ref import AnchorConfig, StripePlan
from tests.kernels.anchor_kernels.test_kernels import DEVICE, DTYPES, ON_GPU, random_case

HOPPER = GPUTarget("cuda", 90, 32)
# Of the head sizes here Hopper's own kernel takes 64 and 128; the interpreter has none.
HEAD_DIMS = [16, 64, 128] if ON_GPU else [16]


@pytest.mark.parametrize("level", [-20.0, -200.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_small_weights_count_where_stage_1_saw_nothing(dtype, level, dim):
    """Scores of the window are -inf, those of the stripes so low that from 0 they are nothing."""
    config = AnchorConfig(8, 1, theta=math.inf, init_blocks=0)
    case = random_case(16, 16, (1, 1, 1), dim, config, dtype=dtype, scale=1.0)
    case.q[0, 0, 8:] = 0
    case.q[0, 0, 8:, 0] = 1
    case.k[0, 0, :8, 0] = level
    case.k[0, 0, 8:, 0] = -math.inf
    out = anchor_kernels.anchor_attention(case.q, case.k, case.v, config, 1.0)
    expected = case.v[:, :, :8].float().mean(2, keepdim=True).expand(1, 1, 8, dim)
    torch.testing.assert_close(out[:, :, 8:].float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("level", [-20.0, -200.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_weights_count_where_the_diagonal_is_hidden(dtype, level):
    """In stage 1 the row's own key and its neighbours are -inf; the rest of its window is not."""
    config = AnchorConfig(256, 1, init_blocks=0)
    case = random_case(256, 256, (1, 1, 1), 16, config, dtype=dtype, scale=1.0)
    case.q[0, 0, 128:] = 0
    case.q[0, 0, 128:, 0] = 1
    case.k[0, 0, :128, 0] = level
    case.k[0, 0, 128:, 0] = -math.inf
    out = anchor_kernels.anchor_attention(case.q, case.k, case.v, config, 1.0)
    expected = case.v[:, :, :128].float().mean(2, keepdim=True).expand(1, 1, 128, 16)
    torch.testing.assert_close(out[:, :, 128:].float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_stripes_far_above_the_anchor_are_right_in_every_head_size(dtype, dim):
    config = AnchorConfig(16, 2, theta=math.inf, init_blocks=0)
    case = random_case(96, 96, (1, 2, 1), dim, config, dtype=dtype, scale=0.25)
    case.k[:, :, 5] = 0
    case.k[:, :, 5, 0] = 40
    case.q[:, :, 40:, 0] = 40  # scores of 400 at key 5, a candidate of later groups
    out = anchor_kernels.anchor_attention(case.q, case.k, case.v, config, 0.25)
    torch.testing.assert_close(
        out[:, :, 64:], case.v[:, :, 5:6].expand(1, 2, 32, dim), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_weights_too_large_for_float16_alone_are_right(dtype, dim):
    """A stripe outweighs stage 1 by e^11.5 or so: no float16, but far from float32's end."""
    config = AnchorConfig(16, 2, theta=math.inf, init_blocks=0)
    case = random_case(96, 96, (1, 2, 1), dim, config, dtype=dtype, scale=0.25)
    case.k[:, :, 5] = 0
    case.k[:, :, 5, 0] = 40
    case.q[:, :, 40:] = 0
    case.q[:, :, 40:, 0] = 1.25  # a score of 12.5 at key 5, of less than 1 elsewhere
    out = anchor_kernels.anchor_attention(case.q, case.k, case.v, config, 0.25)
    torch.testing.assert_close(
        out[:, :, 64:], case.v[:, :, 5:6].expand(1, 2, 32, dim), atol=5e-3, rtol=5e-3
    )


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float16])
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_the_largest_values_that_are_promised_do_not_overflow(dtype, dim):
    """A weight near the limit of 2^24 meets values of 2^100."""
    config = AnchorConfig(16, 2, theta=math.inf, init_blocks=0)
    case = random_case(64, 64, (1, 1, 1), dim, config, dtype=dtype, scale=1.0)
    case.q.zero_()
    case.q[..., 0] = 1
    case.k.zero_()
    case.k[:, :, 5, 0] = 16  # e^16 is 2^23, and the second group sees nothing else above 0
    values = case.v.sign() * 2.0**100
    out = anchor_kernels.anchor_attention(case.q, case.k, values, config, 1.0)
    expected = values[:, :, 5:6].expand(1, 1, 32, dim)
    torch.testing.assert_close(out[:, :, 32:], expected, atol=0, rtol=1e-2)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32])
def test_a_mean_query_keeps_more_digits_than_its_dtype(dtype):
    """The mean of 1 and 1 + eps is neither; times 64, rounding it would move the difference."""
    eps = torch.finfo(dtype).eps
    q, k = torch.zeros(2, 1, 1, 4, 16, dtype=dtype, device=DEVICE)
    q[..., 0] = torch.tensor([1, 1 + eps, 1, 1 + eps])
    k[..., 0] = torch.tensor([64, 64, 65, 65])
    # The anchor is 65 (1 + eps/2), the pooled score 64 (1 + eps/2).
    config = AnchorConfig(2, 1, theta=1 + 2 * eps, init_blocks=0)
    _, trace = anchor_kernels.anchor_attention(q, k, k, config, 1.0, return_trace=True)
    assert trace.stripes.counts.flatten().tolist() == [0, 2]


def test_states_and_plans_may_have_any_strides():
    config = AnchorConfig(8, 2, theta=1.0)
    case = random_case(64, 64, (1, 2, 2), 16, config)
    q, k, v = case.q, case.k, case.v
    state = anchor_kernels.compute_anchor(q, k, v, config)
    stripes = anchor_kernels.identify_stripes(q, k, state.max, config)
    out = anchor_kernels.attend_stripes(q, k, v, state, stripes, config)

    def apart(x):
        return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]

    apart_state = AnchorState(apart(state.max), apart(state.lse), apart(state.out))
    apart_plan = StripePlan(*(apart(x) for x in vars(stripes).values()))
    again = anchor_kernels.identify_stripes(q, k, apart(state.max), config)
    assert torch.equal(again.indices, stripes.indices)
    assert torch.equal(
        anchor_kernels.attend_stripes(q, k, v, apart_state, apart_plan, config), out
    )


def test_dimensions_beyond_31_bits_are_reached():
    """Entries of a head 2^28 apart: the ninth one starts where 32 bits with a sign end."""
    far, dim = 2**28, 16
    torch.use_deterministic_algorithms(False)  # filling it would take the memory it does not need
    storage = torch.empty(dim * far, dtype=torch.float16, device=DEVICE)
    x = storage.as_strided((1, 1, 20, dim), (20, 20, 1, far))
    x.copy_(torch.randn(1, 1, 20, dim))
    near, config = x.contiguous(), AnchorConfig(4, 1, theta=1.0)
    expected = anchor_kernels.anchor_attention(near, near, near, config)
    for q, k in ((near, x), (x, near)):
        out = anchor_kernels.anchor_attention(q, k, k, config)
        assert torch.equal(out.contiguous(), expected)


@pytest.mark.parametrize("repeat", [1, 3])
def test_groups_of_more_blocks_than_a_tile_holds_select_as_the_reference(repeat):
    config = AnchorConfig(1, 70, theta=0.5, init_blocks=3)
    case = random_case(145, 145, (1, repeat, 1), 16, config)
    _, found = anchor_kernels.anchor_attention(case.q, case.k, case.v, config, return_trace=True)
    _, wanted = anchor_ref.anchor_attention(case.q, case.k, case.v, config, return_trace=True)
    assert 0 < wanted.stripes.counts.sum() < repeat * (67 + 137)
    assert torch.equal(found.stripes.counts, wanted.stripes.counts)
    assert torch.equal(found.stripes.indices, wanted.stripes.indices)


def test_a_scale_too_small_to_divide_by_is_refused():
    x = torch.randn(1, 1, 8, 16, device=DEVICE)
    for scale in (1e-39, -1e-30):
        with pytest.raises(anchor_kernels.UnsupportedError, match="scale must be 0 or at least"):
            anchor_kernels.anchor_attention(x, x, x, AnchorConfig(4, 1), scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("launch_for", "kind"),
    [(sparse_launch_for, HopperLaunch), (anchor_launch_for, AnchorHopperLaunch)],
)
def test_hopper_has_kernels_of_its_own_where_rows_are_whole(launch_for, kind, head_dim, dtype):
    assert isinstance(launch_for(dtype, head_dim, HOPPER), kind)
    for other in (
        launch_for(dtype, head_dim, HOPPER, whole_rows=False),
        launch_for(dtype, 96, HOPPER),
        launch_for(torch.float32, head_dim, HOPPER),
        launch_for(dtype, head_dim, GPUTarget("cuda", 80, 32)),
        launch_for(dtype, head_dim, GPUTarget("cuda", 100, 32)),
    ):
        assert isinstance(other, AttentionLaunch)


def test_the_copy_engine_is_not_asked_for_rows_that_share_an_address(monkeypatch):
    monkeypatch.setattr(launches, "interpreted", lambda: False)
    monkeypatch.setattr(launches, "target_of", lambda q: HOPPER)
    x = torch.zeros(1, 2, 32, 64, dtype=torch.bfloat16)
    assert isinstance(launches.anchor_launch(x, x, x, x), AnchorHopperLaunch)
    same = x[:, :1].expand(1, 2, 32, 64)
    assert isinstance(launches.anchor_launch(x, same, x, x), AttentionLaunch)
    assert isinstance(launches.anchor_launch(x, x, x.mT.contiguous().mT, x), AttentionLaunch)


def test_rows_are_whole_when_contiguous_and_aligned():
    x = torch.zeros(1, 32, 4, 64, dtype=torch.bfloat16)
    assert has_whole_rows(x)
    assert has_whole_rows(x.transpose(1, 2))
    assert not has_whole_rows(x.transpose(2, 3))
    assert not has_whole_rows(torch.zeros(2, 65, dtype=torch.bfloat16)[:, 1:])
    assert not has_whole_rows(torch.zeros(2, 72, dtype=torch.bfloat16)[:, :64])


def test_launches_that_would_miss_rows_or_keys_are_refused():
    with pytest.raises(ValueError, match="block_n must be a multiple of 32"):
        SelectLaunch(64, 48, 4096, 4, 2)
    with pytest.raises(ValueError, match="chunk one of block_n"):
        SelectLaunch(16, 64, 32, 4, 1)
    for rows in (8, 96):
        with pytest.raises(ValueError, match="rows must be a power of two, at least 16, got"):
            SelectLaunch(rows, 64, 4096, 4, 2)
    with pytest.raises(ValueError, match="again must have block_m = 128"):
        AnchorHopperLaunch(128, 2, 168, 224, 56, AttentionLaunch(64, 32, 4, 2))
    with pytest.raises(ValueError, match="again must have block_m = 64"):
        HopperLaunch(64, 4, 128, 152, 56, AttentionLaunch(128, 32, 4, 2))


def test_a_launch_for_hopper_is_refused_where_it_would_read_wrong_rows():
    config = AnchorConfig(16, 2)
    case = random_case(70, 70, (1, 2, 1), 64, config)  # float32, anywhere
    state = anchor_kernels.compute_anchor(case.q, case.k, case.v, config)
    stripes = anchor_kernels.identify_stripes(case.q, case.k, state.max, config)
    launch = HopperLaunch(64, 4, 128, 152, 56, AttentionLaunch(64, 32, 4, 2))
    with pytest.raises(ValueError, match="launch must be an AttentionLaunch but on a Hopper GPU"):
        anchor_kernels.attend_stripes(
            case.q, case.k, case.v, state, stripes, config, launch=launch
        )
    launch = AnchorHopperLaunch(128, 2, 168, 224, 56, AttentionLaunch(128, 32, 8, 3))
    with pytest.raises(ValueError, match="launch must be an AttentionLaunch but on a Hopper GPU"):
        anchor_kernels.compute_anchor(case.q, case.k, case.v, config, launch=launch)
