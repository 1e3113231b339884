"""The one file to copy: alone it runs, and it is the reference's equal."""

import ast
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings

import anchor_ref
from anchor_ref.regions import groups
from standalone.anchor_attention import anchor_attention
from tests.brute_force import TAILS, cases
from tests.tree import ROOT

FILE = ROOT / "standalone" / "anchor_attention.py"


def compared(q, k, v, config, scale):
    """Outputs and selections of the file and of the reference, on whole prompts in float64."""
    k, v = k[:, :, -q.shape[2] :], v[:, :, -q.shape[2] :]
    q, k, v = q.double(), k.double(), v.double()
    out, kept = anchor_attention(
        q,
        k,
        v,
        config.theta,
        config.tail,
        block=config.block_size,
        step=config.step,
        init_blocks=config.init_blocks,
        window_blocks=config.window_blocks,
        scale=scale,
    )
    expected, trace = anchor_ref.anchor_attention(q, k, v, config, scale, return_trace=True)
    return (out, torch.stack(kept, 2)), (expected, trace.stripes.to_mask(q.shape[2]))


@pytest.mark.parametrize("integers", [False, True], ids=["real", "with ties"])
def test_outputs_and_selections_are_those_of_the_reference(integers):
    seen = {"stripes": 0, "dropped": 0, "ragged": 0, "grouped": 0, "tail": 0}

    @given(cases(integers=integers, tails=TAILS))
    @settings(max_examples=150)
    def check(case):
        q, k, v, config, scale = case
        (out, kept), (expected, stripes) = compared(q, k, v, config, scale)
        assert torch.equal(kept, stripes)
        size = v.abs().max().double().clamp(min=1e-300)
        torch.testing.assert_close(out / size, expected / size, atol=1e-12, rtol=0)
        n = q.shape[2]
        possible = sum(len(group.candidates) for group in groups(config, n, n))
        seen["stripes"] += int(kept.sum())
        seen["dropped"] += possible * kept.shape[0] * kept.shape[1] - int(kept.sum())
        seen["ragged"] += n % config.block_size > 0
        seen["grouped"] += q.shape[1] > k.shape[1]
        seen["tail"] += 0 < config.tail < n

    check()
    rare = {"ragged"} if integers else set()  # ties need whole blocks
    assert all(seen[what] for what in seen.keys() - rare), seen


@pytest.mark.parametrize("n", [1, 127, 128, 2048, 2049, 4096 + 77])
@pytest.mark.parametrize("tail", [0, 300])
def test_default_sizes_are_those_of_the_reference(n, tail):
    random = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(1, heads, n, 16, generator=random) for heads in (4, 2, 2))
    config = anchor_ref.AnchorConfig(theta=3.5, tail=tail)
    (out, kept), (expected, stripes) = compared(q, k, v, config, None)
    assert torch.equal(kept, stripes)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


def test_defaults_are_those_of_the_reference():
    q, k, v = (torch.randn(1, 1, 2300, 16) for _ in range(3))
    out, _ = anchor_attention(q, k, v)
    torch.testing.assert_close(out, anchor_ref.anchor_attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_are_computed_in_float32(dtype):
    q, k, v = (torch.randn(1, heads, 300, 16).to(dtype) for heads in (2, 1, 1))
    out, _ = anchor_attention(q, k, v, block=16, step=2, theta=4.0)
    config = anchor_ref.AnchorConfig(block_size=16, step=2, theta=4.0)
    assert out.dtype == dtype
    torch.testing.assert_close(out, anchor_ref.anchor_attention(q, k, v, config))


def test_it_imports_torch_alone():
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [alias.name for node in found for alias in node.names] == ["torch"]


def test_it_is_a_page_or_two():
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 125


def test_a_copy_runs_where_the_project_is_not(tmp_path):
    copy = shutil.copy(FILE, tmp_path)
    ran = subprocess.run(
        [sys.executable, "-I", "-W", "error", str(copy)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    none, *some, everything = (line.split() for line in ran.stdout.splitlines())
    assert none[:3] == ["θ", "=", "-inf"]
    assert float(none[4].rstrip("%")) == 0
    assert float(everything[4].rstrip("%")) == 100
    assert float(everything[-1]) < 1e-5
    shares = [float(line[4].rstrip("%")) for line in some]
    errors = [float(line[-1]) for line in (none, *some)]
    assert 0 < shares[0] <= shares[1] < 100, "the demonstration should show a sparse choice"
    assert errors == sorted(errors, reverse=True)


def test_a_threshold_that_is_no_number_is_refused():
    x = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ValueError, match="theta must be a number, got nan"):
        anchor_attention(x, x, x, theta=float("nan"))
