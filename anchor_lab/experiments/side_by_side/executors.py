"""Who computes attention here: each made ready on one set of inputs, then only called.

dense     SDPA as PyTorch chooses, its cuDNN and FlashAttention-2 backends, FlexAttention,
          flash-attn-4 (module `flash_attn.cute`)
blocks    a `BlockMap`: FlexAttention; flash-attn-4 with lists of blocks; FlashInfer's
          `BlockSparseAttentionWrapper` over a sparse matrix of blocks
ours      the project's kernels, or the reference where there is no CUDA device

Layouts and tables that an executor wants are made beforehand, and not timed. A package that is not
there, or does not run, raises in its own words: who measures records them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from anchor_lab.experiments.attention.jobs import Case, flex_over, sdpa
from anchor_lab.experiments.side_by_side.blocks import BLOCK, BlockMap, everything

Run = Callable[[], Tensor]  # gives [B, Hq, N, D]

# Whose versions are recorded; of some it is the compiler that decides how fast they are.
PACKAGES = ("flash-attn-4", "nvidia-cutlass-dsl", "flashinfer-python", "apache-tvm-ffi")
LARGEST_LIST = 2**30  # FlashInfer's places of keys are int32, and not all sums of them are checked
WORKSPACE = 2**27  # bytes, as FlashInfer recommends


def versions() -> dict[str, str]:
    """Of each of `PACKAGES`, "absent" for one that is not installed."""

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "absent"

    return {package: of(package) for package in PACKAGES}


def ours(case: Case, tail: int = 0) -> Run:
    """The whole call: anchors, choice and attention.

    Args:
        case: its config's tail plays no part.
        tail: last queries that see every key.
    """
    config = replace(case.config, tail=tail)
    return lambda: case.backend.anchor_attention(case.q, case.k, case.v, config, case.scale)


def sdpa_default(case: Case) -> Run:
    """`scaled_dot_product_attention`, which takes the backend that it likes best."""
    return sdpa(case).run


def sdpa_cudnn(case: Case) -> Run:
    """The same by cuDNN."""
    return sdpa(case, "CUDNN_ATTENTION").run


def sdpa_flash(case: Case) -> Run:
    """The same by FlashAttention-2."""
    return sdpa(case, "FLASH_ATTENTION").run


def flex_blocks(case: Case, blocks: BlockMap) -> Run:
    """FlexAttention, compiled on a CUDA device."""
    return flex_over(case, blocks.before, BLOCK).run


def flex_dense(case: Case) -> Run:
    """FlexAttention over all blocks."""
    batch, heads = case.q.shape[:2]
    return flex_blocks(case, everything(batch, heads, case.n, case.q.device))


def flash_4_dense(case: Case) -> Run:
    """flash-attn-4, which has tokens before heads."""
    from flash_attn.cute import flash_attn_func

    q, k, v = _tokens_first(case)
    return lambda: _heads_first(flash_attn_func(q, k, v, softmax_scale=_scale(case), causal=True))


def flash_4_blocks(case: Case, blocks: BlockMap) -> Run:
    """flash-attn-4 over the tables that FlexAttention gets: masked and whole blocks."""
    from flash_attn.cute import flash_attn_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    q, k, v = _tokens_first(case)
    masked, masked_lists, whole, whole_lists = blocks.tables()
    lists = BlockSparseTensorsTorch(
        mask_block_cnt=masked,
        mask_block_idx=masked_lists,
        full_block_cnt=whole,
        full_block_idx=whole_lists,
        block_size=(BLOCK, BLOCK),
    )
    options = {"mask_mod": _causal_in_cute(), "block_sparse_tensors": lists}
    return lambda: _heads_first(flash_attn_func(q, k, v, softmax_scale=_scale(case), **options))


@cache
def _causal_in_cute():
    """The causal mask in CuTe's language; one object, so that it is compiled once."""
    import cutlass.cute as cute

    # Without annotations: none would be checked inside what is compiled.
    @cute.jit
    def causal(batch, head, query, key, lengths, more):
        return key <= query

    return causal


def flashinfer_blocks(case: Case, blocks: BlockMap) -> Run:
    """FlashInfer, all heads under each other as one matrix of blocks with a single head.

    Its causal mask counts from the end of a row block's list, where the diagonal's block lies: it
    hides there what is later and nothing else. So no K or V is repeated for the heads that share
    one.

    Raises:
        ValueError: there is more than one prompt, its length is no multiple of 128, or all lists
            together have more than `LARGEST_LIST` keys.
    """
    from flashinfer import BlockSparseAttentionWrapper

    q, k, v = case.q, case.k, case.v
    if case.n % BLOCK:
        raise ValueError(f"N must be a multiple of {BLOCK} for FlashInfer, got {case.n}")
    starts, lists = blocks.flattened(k.shape[1])
    listed = len(lists) * BLOCK
    if listed > LARGEST_LIST:
        raise ValueError(
            f"FlashInfer lists every key as an int32 place: at most {LARGEST_LIST}, got {listed}"
        )
    flat = [x[0].reshape(-1, 1, x.shape[-1]).contiguous() for x in (q, k, v)]
    wrapper = BlockSparseAttentionWrapper(_bytes(WORKSPACE, q.device))
    wrapper.reset_workspace_buffer(
        _bytes(WORKSPACE, q.device),
        _bytes(WORKSPACE // 2, q.device),
        torch.empty(listed + 1, dtype=torch.int32, device=q.device),
        torch.empty(len(starts) + 1, dtype=torch.int32, device=q.device),
    )
    wrapper.plan(
        starts,
        lists,
        len(flat[0]),
        len(flat[1]),
        BLOCK,
        BLOCK,
        num_qo_heads=1,
        num_kv_heads=1,
        head_dim=q.shape[-1],
        causal=True,
        sm_scale=_scale(case),
        q_data_type=q.dtype,
        kv_data_type=k.dtype,
        o_data_type=q.dtype,
    )
    return lambda: wrapper.run(*flat).view(q.shape)


def _bytes(count: int, device: torch.device) -> Tensor:
    return torch.empty(count, dtype=torch.uint8, device=device)


def _scale(case: Case) -> float:
    return case.q.shape[-1] ** -0.5 if case.scale is None else case.scale


def _tokens_first(case: Case) -> list[Tensor]:
    return [x.transpose(1, 2).contiguous() for x in (case.q, case.k, case.v)]


def _heads_first(out: Tensor | tuple) -> Tensor:
    """The output alone, with or without its log-sum-exp, as a view `[B, Hq, N, D]`."""
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


DENSE: dict[str, Callable[[Case], Run]] = {
    "SDPA": sdpa_default,
    "cuDNN": sdpa_cudnn,
    "FlashAttention-2": sdpa_flash,
    "FlashAttention-4": flash_4_dense,
    "FlexAttention": flex_dense,
}
BLOCKS: dict[str, Callable[[Case, BlockMap], Run]] = {
    "FlashAttention-4": flash_4_blocks,
    "FlashInfer": flashinfer_blocks,
    "FlexAttention": flex_blocks,
}
