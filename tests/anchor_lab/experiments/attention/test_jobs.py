"""The methods of the GPU benchmark without a GPU: what they count, and what they call."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import anchor_ref
from anchor_lab.experiments.attention import jobs as methods
from anchor_models import planted_stripes
from anchor_ref import AnchorConfig, anchor_attention


def small_case(
    n=300, config=None, *, dtype=torch.float32, scale=None, density=0.05
) -> methods.Case:
    inputs = planted_stripes(
        n, q_heads=4, kv_heads=2, head_dim=16, density=density, seed=n, dtype=dtype
    )
    config = config or AnchorConfig(block_size=16, step=4)
    return methods.Case(inputs.q, inputs.k, inputs.v, scale, config, anchor_ref)


def kept_pairs(case: methods.Case) -> torch.Tensor:
    """Every pair of the method, `[B, Hq, N, N]`, written out from its three regions."""
    n, config = case.n, case.config
    row, key = torch.arange(n)[:, None], torch.arange(n)
    start = row // config.group_size * config.group_size - config.window_blocks * config.block_size
    always = (key < config.init_blocks * config.block_size) | (key >= start)
    _, trace = anchor_attention(case.q, case.k, case.v, config, return_trace=True)
    stripes = trace.stripes.to_mask(n).repeat_interleave(config.group_size, 2)[:, :, :n]
    return (always | stripes) & (key <= row)


CASES = {
    "n": st.integers(1, 200),
    "config": st.builds(
        AnchorConfig,
        block_size=st.sampled_from([8, 16]),
        step=st.sampled_from([1, 3]),
        init_blocks=st.integers(0, 3),
        window_blocks=st.integers(0, 2),
    ),
}


# What is counted


@settings(max_examples=40)
@given(**CASES)
def test_pairs_of_the_stages_are_those_of_the_method_written_out(n, config):
    case = small_case(n, config)
    everything = int(kept_pairs(case).sum())
    assert methods.end_to_end(case).pairs == everything
    row, key = torch.arange(n)[:, None], torch.arange(n)
    start = row // config.group_size * config.group_size - config.window_blocks * config.block_size
    first = (key < config.init_blocks * config.block_size) | (key >= start)
    always = case.heads * int((first & (key <= row)).sum())
    assert methods.stage_1(case).pairs == always
    assert methods.stage_3(case).pairs == everything - always


@settings(max_examples=40)
@given(**CASES)
def test_pooled_pairs_are_a_block_and_a_candidate_each(n, config):
    key, block = torch.arange(n), config.block_size
    expected = 0
    for t in range(0, n, block):
        window = max(0, t // config.group_size * config.group_size - config.window_blocks * block)
        expected += int(((key >= config.init_blocks * block) & (key < window)).sum())
    assert methods.stage_2(small_case(n, config)).pooled == 4 * expected


def test_pairs_of_a_batch_are_those_of_its_entries():
    one, config = small_case(), AnchorConfig(block_size=16, step=4)
    other = planted_stripes(300, q_heads=4, kv_heads=2, head_dim=16, density=0.3)
    both = [torch.cat([getattr(one, x), getattr(other, x)]) for x in "qkv"]
    apart = methods.Case(other.q, other.k, other.v, None, config, anchor_ref)
    together = methods.Case(*both, None, config, anchor_ref)
    for method in (methods.end_to_end, methods.stage_1, methods.stage_3, methods.sdpa_flash):
        assert method(together).pairs == method(one).pairs + method(apart).pairs
    assert methods.stage_2(together).pooled == 2 * methods.stage_2(one).pooled


def test_work_at_128k_is_what_the_method_must_do():
    # 64 groups of 2048 queries; group g has 2048·g − 128 candidates; 5 % of them are stripes.
    n = 131_072
    empty = [torch.empty(1, heads, n, 1, device="meta") for heads in (1, 1, 1)]
    case = methods.Case(*empty, None, AnchorConfig(), anchor_ref)
    first = 2048 * 128 * 63 + 64 * 2048 * 2049 // 2
    pooled = sum(16 * (2048 * g - 128) for g in range(1, 64))
    assert case.always_pairs == first
    assert case.pooled_pairs == pooled
    assert 32 * methods.flop(first, 0, 128) == pytest.approx(2.5e12, rel=0.02)
    assert 32 * methods.flop(0, pooled, 128) == pytest.approx(0.54e12, rel=0.02)
    third = round(0.05 * sum(2048 * (2048 * g - 128) for g in range(1, 64)))
    total = 32 * methods.flop(first + third, pooled, 128)
    assert methods.floor_ms(total, 0, 790.0, 4.3) == pytest.approx(12.5, abs=0.1)


def test_the_floor_is_the_slower_of_arithmetic_and_traffic():
    assert methods.floor_ms(790 * 10**12, 1, 790.0, 4.3) == pytest.approx(1000)
    assert methods.floor_ms(1, 43 * 10**9, 790.0, 4.3) == pytest.approx(10)


def test_traffic_counts_every_tensor_once():
    case = small_case(dtype=torch.bfloat16)
    q, kv, row = 4 * 300 * 16 * 2, 2 * 300 * 16 * 2, 4 * 300 * 4
    lists = 4 * case.stripes.indices.numel()
    assert methods.end_to_end(case).bytes == methods.sdpa_cudnn(case).bytes == 2 * q + 2 * kv
    assert methods.stage_1(case).bytes == 2 * q + 2 * kv + 2 * row
    assert methods.stage_2(case).bytes == q + kv + row + lists
    assert methods.stage_3(case).bytes == 3 * q + row + lists


# FlexAttention's blocks


def mask_of(tables, block: int, n: int) -> torch.Tensor:
    """The pairs that the tables stand for."""
    masked_number, masked, whole_number, whole = tables
    mask = torch.zeros(*whole.shape, dtype=torch.bool)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, whole_number.shape)).tolist():
        mask[b, h, t, whole[b, h, t, : whole_number[b, h, t]].long()] = True
        own = masked[b, h, t, : masked_number[b, h, t]].tolist()
        assert own == [t], "only the diagonal block needs the causal mask"
        assert not mask[b, h, t, t:].any(), "a whole block must precede its queries"
        mask[b, h, t, own] = True
    mask = mask.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :n, :n]
    return mask & torch.ones(n, n, dtype=torch.bool).tril()


@settings(max_examples=40)
@given(**CASES)
def test_block_tables_hold_the_blocks_with_a_kept_pair_and_no_other(n, config):
    case, block = small_case(n, config), config.block_size
    tables = methods.tables_of(methods.kept_blocks(case.stripes, config, n))
    n_blocks = -(-n // block)
    padded = F.pad(kept_pairs(case), (0, n_blocks * block - n) * 2)
    touched = padded.unflatten(3, (-1, block)).any(4).unflatten(2, (-1, block)).any(3)
    expected = touched.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :n, :n]
    expected = expected & torch.ones(n, n, dtype=torch.bool).tril()
    assert torch.equal(mask_of(tables, block, n), expected)
    assert methods.block_pairs(tables[2], block, n) == int(expected.sum())
    assert all(x.dtype == torch.int32 for x in tables)


def test_flex_attention_takes_the_tables(monkeypatch):
    seen = {}

    def attend(q, k, v, **options):
        seen.update(options)
        return q

    monkeypatch.setattr(methods, "_compiled_flex", lambda: attend)
    case = small_case(scale=0.3)
    job = methods.flex(case)
    job.run()
    mask = seen["block_mask"]
    touched = mask.to_dense()[0, :, :, :].bool()
    pairs = kept_pairs(case)
    for h, t, j in ((0, 18, 0), (1, 5, 4), (2, 18, 16), (3, 12, 7)):
        block = pairs[0, h, 16 * t : 16 * t + 16, 16 * j : 16 * j + 16]
        assert bool(touched[h, t, j]) == bool(block.any())
    assert mask.seq_lengths == (300, 300)
    assert mask.mask_mod(0, 0, 5, 5)
    assert not mask.mask_mod(0, 0, 5, 6)
    assert (seen["scale"], seen["enable_gqa"]) == (0.3, True)
    assert job.held_bytes == 4 * (2 * 4 * 19 + 2 * 4 * 19 * 19)


# The truth


@given(n=st.integers(1, 5000), count=st.integers(1, 70))
def test_sampled_rows_cover_all_parts_and_end_with_the_last(n, count):
    rows = methods.sample_rows(n, count)
    assert len(rows) == min(n, count)
    assert rows[-1] == n - 1
    if n > count:
        parts = torch.bucketize(rows, torch.arange(count + 1) * n // count, right=True) - 1
        assert parts.tolist() == list(range(count))


@pytest.mark.parametrize("elements", [1, 2000, 2**26])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_dense_rows_are_rows_of_dense_attention_whatever_the_chunks(elements, scale):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, h, 130, 8, generator=generator) for h in (6, 3, 3))
    rows = torch.tensor([0, 1, 64, 77, 129])
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True, scale=scale, enable_gqa=True
    )
    found = methods.dense_rows(q, k, v, rows, scale, elements)
    torch.testing.assert_close(found, exact[:, :, rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("elements", [1, 2**26])
def test_rows_over_blocks_attend_to_those_of_their_own_query_block_and_head(elements):
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, h, 50, 8, generator=generator) for h in (6, 3, 3))
    blocks = torch.rand(2, 6, 4, 4, generator=generator) < 0.4
    blocks |= torch.eye(4, dtype=torch.bool)
    mask = blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, :50, :50].tril()
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=mask, enable_gqa=True
    )
    rows = torch.tensor([0, 15, 16, 33, 49])
    found = methods.dense_rows(q, k, v, rows, None, elements, blocks, block=16)
    torch.testing.assert_close(found, exact[:, :, rows], rtol=1e-12, atol=1e-12)


def test_stages_one_after_the_other_are_the_end_to_end_result():
    case = small_case()
    whole, last = methods.end_to_end(case), methods.stage_3(case)
    torch.testing.assert_close(last.run(), whole.run())
    assert torch.equal(methods.stage_2(case).run().indices, case.stripes.indices)
    torch.testing.assert_close(
        methods.stage_1(case).run().max,
        anchor_ref.compute_anchor(case.q, case.k, case.v, case.config).max,
    )


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")
def test_the_kernels_stages_are_those_of_the_whole_call():
    pytest.importorskip("triton", reason="Triton has wheels for Linux only")
    case = small_case(100, AnchorConfig(16, 2))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (x.to(device) for x in (case.q, case.k, case.v))
    case = methods.Case(q, k, v, None, case.config, methods.kernels())
    assert case.stripes.indices.numel() > 0
    assert torch.equal(methods.stage_3(case).run(), methods.end_to_end(case).run())


def test_sdpa_takes_the_forced_backend_and_records_what_torch_would_choose():
    from torch.nn.attention import _cur_sdpa_kernel_backends

    case, seen = small_case(scale=0.3), {}

    def attend(q, k, v, **options):
        assert options == {"is_causal": True, "scale": 0.3, "enable_gqa": True}
        seen["backends"] = [backend.name for backend in _cur_sdpa_kernel_backends()]
        return q

    flash, cudnn = methods.sdpa_flash(case), methods.sdpa_cudnn(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        flash.run()
        assert seen["backends"] == ["FLASH_ATTENTION"]
        cudnn.run()
        assert seen["backends"] == ["CUDNN_ATTENTION"]
    start, shape = flash.note.split(" for ")
    assert start.removeprefix("SDPA without a forced backend is ") in ("FLASH_ATTENTION", "MATH")
    assert shape == "4 / 2 heads of 16"
    assert flash.pairs == 4 * 300 * 301 // 2
