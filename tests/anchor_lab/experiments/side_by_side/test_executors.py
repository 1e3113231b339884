"""What executors are handed, without the packages: stand-ins that compute what is documented."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

import anchor_ref
from anchor_lab.experiments.attention.jobs import Case
from anchor_lab.experiments.side_by_side import executors, timing
from anchor_ref import AnchorConfig
from tests.anchor_lab.experiments.side_by_side.test_blocks import pairs_of, some_map

BLOCK = 128


def some_case(n=512, scale=0.3, batch=1) -> Case:
    generator = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(batch, h, n, 16, generator=generator) for h in (4, 2, 2))
    return Case(q, k, v, scale, AnchorConfig(step=1), anchor_ref)


def attended(case: Case, mask=None) -> torch.Tensor:
    options = {"is_causal": True} if mask is None else {"attn_mask": mask}
    return F.scaled_dot_product_attention(
        case.q.double(), case.k.double(), case.v.double(),
        scale=case.scale, enable_gqa=True, **options,
    ).float()  # fmt: skip


class StandInWrapper:
    """FlashInfer's wrapper as its documentation has it: lists of blocks, then a causal mask that
    counts a row block's keys in the order of its list, from the end."""

    def __init__(self, workspace):
        assert workspace.dtype == torch.uint8

    def reset_workspace_buffer(self, floats, integers, places, starts):
        self.places, self.starts = places, starts

    def plan(self, starts, lists, m, n, r, c, **options):
        self.plan_of = starts, lists, m, n, r, c
        self.options = options

    def run(self, q, k, v):
        starts, lists, m, n, r, c = self.plan_of
        assert (q.shape[:2], k.shape[:2]) == ((m, 1), (n, 1))
        assert self.options["num_qo_heads"] == self.options["num_kv_heads"] == 1
        assert self.options["o_data_type"] == self.options["q_data_type"] == q.dtype
        assert len(self.places) > len(lists) * c
        assert len(self.starts) >= len(starts)
        out = torch.empty_like(q)
        for row in range(len(starts) - 1):
            block = lists[starts[row] : starts[row + 1]].long()
            keys = (block[:, None] * c + torch.arange(c)).flatten()
            scores = q[row * r : (row + 1) * r, 0] @ k[keys, 0].T * self.options["sm_scale"]
            if self.options["causal"]:
                late = torch.arange(len(keys)) > torch.arange(r)[:, None] + len(keys) - r
                scores = scores.masked_fill(late, -torch.inf)
            out[row * r : (row + 1) * r, 0] = scores.softmax(-1) @ v[keys, 0]
        return out


class BlockSparseTensorsTorch:
    def __init__(self, **tables):
        self.__dict__.update(tables)


def flash_attn_func(
    q, k, v, softmax_scale, causal=False, mask_mod=None, block_sparse_tensors=None
):
    """flash-attn-4 with tokens first; masked blocks ask `mask_mod`, whole ones do not."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    n, x = q.shape[2], block_sparse_tensors
    mask = torch.ones(n, n, dtype=torch.bool).tril().expand(*q.shape[:2], n, n).clone()
    if x is not None:
        assert not causal
        assert x.block_size == (BLOCK, BLOCK)
        mask[:] = False
        place = torch.arange(n)
        for b, h, t in torch.cartesian_prod(*map(torch.arange, x.mask_block_cnt.shape)).tolist():
            rows = place[t * BLOCK : (t + 1) * BLOCK, None]
            for u in x.full_block_idx[b, h, t, : x.full_block_cnt[b, h, t]].tolist():
                mask[b, h, rows, place[u * BLOCK : (u + 1) * BLOCK]] = True
            for u in x.mask_block_idx[b, h, t, : x.mask_block_cnt[b, h, t]].tolist():
                keys = place[u * BLOCK : (u + 1) * BLOCK]
                mask[b, h, rows, keys] = mask_mod(b, h, rows, keys, None, None)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=softmax_scale, enable_gqa=True
    )
    return out.transpose(1, 2), None


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins in the places of the packages."""
    made = {
        "flashinfer": {"BlockSparseAttentionWrapper": StandInWrapper},
        "flash_attn": {},
        "flash_attn.cute": {"flash_attn_func": flash_attn_func},
        "flash_attn.cute.block_sparsity": {"BlockSparseTensorsTorch": BlockSparseTensorsTorch},
        "cutlass": {},
        "cutlass.cute": {"jit": lambda function: function},
    }
    for name, contents in made.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    executors._causal_in_cute.cache_clear()
    yield
    executors._causal_in_cute.cache_clear()


@pytest.mark.parametrize("name", executors.BLOCKS)
def test_block_sparse_kernels_attend_to_the_blocks_and_nothing_else(name, packages):
    case, blocks = some_case(), some_map(512)
    out = executors.BLOCKS[name](case, blocks)()
    torch.testing.assert_close(out, attended(case, pairs_of(blocks)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, attended(case), atol=1e-2), "the map must not be dense"


@pytest.mark.parametrize("name", [x for x in executors.DENSE if x != "cuDNN"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_dense_peers_attend_to_everything(name, scale, packages):
    case = some_case(scale=scale)
    out = executors.DENSE[name](case)()
    torch.testing.assert_close(out, attended(case), rtol=1e-4, atol=1e-5)


def test_ours_has_the_tail_it_is_asked_for():
    x = some_case()
    everything, some = executors.ours(x, tail=512)(), executors.ours(x, tail=0)()
    torch.testing.assert_close(everything, attended(x), rtol=1e-4, atol=1e-5)
    expected = anchor_ref.anchor_attention(x.q, x.k, x.v, x.config, x.scale)
    torch.testing.assert_close(some, expected)


def test_what_flashinfer_cannot_take_is_refused_in_one_sentence(packages, monkeypatch):
    run = executors.flashinfer_blocks
    with pytest.raises(ValueError, match="N must be a multiple of 128 for FlashInfer, got 300"):
        run(some_case(300), some_map(300))
    monkeypatch.setattr(executors, "LARGEST_LIST", 1000)
    with pytest.raises(ValueError, match="lists every key as an int32 place: at most 1000, got"):
        run(some_case(), some_map(512))


def test_a_package_that_is_not_there_is_absent_and_says_so():
    assert set(executors.versions()) == set(executors.PACKAGES)
    if executors.versions()["flashinfer-python"] == "absent":
        with pytest.raises(ModuleNotFoundError, match="flashinfer"):
            executors.flashinfer_blocks(some_case(), some_map(512))


# Whether what ran was what was told


class Clock:
    """Every call takes 2 ms."""

    def times(self, run):
        run()
        return [2.0, 2.0, 3.0]


def test_a_call_that_ran_other_blocks_is_no_result():
    case, blocks, others = some_case(), some_map(512), some_map(512, seed=1)
    right = attended(case, pairs_of(blocks))
    found = timing.timed(case, lambda: right, Clock(), blocks)
    assert (found["status"], found["ms"]["median"]) == ("ok", 2.0)
    assert found["wrong"] < 1e-6 < 1e-2 < found["error"]
    wrong = attended(case, pairs_of(others))
    for out in (wrong, attended(case)):
        with pytest.raises(ArithmeticError, match="away from attention to the blocks given"):
            timing.timed(case, lambda out=out: out, Clock(), blocks)
    with pytest.raises(ArithmeticError):
        timing.timed(case, lambda: right * torch.nan, Clock(), blocks)


def test_errors_are_of_the_rows_that_were_sampled_from_the_output():
    case = some_case()
    rows, dense = case.truth
    right = attended(case)
    assert timing.timed(case, lambda: right, Clock())["error"] < 1e-6
    shifted = right.roll(1, dims=2)  # every row is there, one place later
    assert timing.timed(case, lambda: shifted, Clock())["error"] > 0.1
    one = right.clone()
    one[:, :, rows[5]] = 0
    expected = (dense[:, :, 5].norm(dim=-1) / dense.flatten(2).norm(dim=-1)).mean().item()
    assert timing.timed(case, lambda: one, Clock())["error"] == pytest.approx(expected, rel=0.01)


def test_the_fastest_is_the_least_median_of_those_that_ran():
    rows = [
        {"status": "error", "way": "a"},
        {"status": "ok", "way": "b", "ms": {"median": 2.0}},
        {"status": "ok", "way": "c", "ms": {"median": 1.0}},
    ]
    assert timing.fastest(rows)["way"] == "c"
    assert timing.fastest(rows[:1]) is None
