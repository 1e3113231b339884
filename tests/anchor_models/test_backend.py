"""Which implementation runs, and that nothing else runs in its place."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import anchor_ref
from anchor_models import anchor_attention, choose_backend
from anchor_ref import AnchorConfig

CONFIG = AnchorConfig(8, 2, theta=1.0)


def tensors(dtype=torch.float32, device="cpu"):
    random = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, 50, 16, generator=random).to(device, dtype) for heads in (4, 2, 2)
    ]


def test_auto_takes_the_reference_on_a_cpu_and_says_why():
    choice = choose_backend(tensors()[0])
    assert choice.name == "torch"
    assert "cpu" in choice.reason.lower()


def test_auto_gives_what_the_reference_gives():
    out, trace = anchor_attention(*tensors(), CONFIG, scale=0.3, return_trace=True)
    same, same_trace = anchor_ref.anchor_attention(*tensors(), CONFIG, 0.3, return_trace=True)
    assert torch.equal(out, same)
    assert torch.equal(trace.stripes.indices, same_trace.stripes.indices)


@pytest.mark.parametrize("by_head", [None, (1.0, 0.5, 1.0, 2.0)])
def test_packed_sequences_are_each_computed_alone(by_head):
    q, k, v = tensors()
    more = {"scale": 0.3, "theta_by_head": by_head, "backend": "torch"}
    bounds = torch.tensor([0, 21, 50])
    out = anchor_attention(q, k, v, CONFIG, cu_seqlens=bounds, **more)
    for start, end in ((0, 21), (21, 50)):
        alone = anchor_attention(*(x[:, :, start:end] for x in (q, k, v)), CONFIG, **more)
        torch.testing.assert_close(out[:, :, start:end], alone)


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'triton', 'torch', got"):
        anchor_attention(*tensors(), CONFIG, backend="cuda")


def test_the_kernels_are_refused_for_float64():
    with pytest.raises(RuntimeError, match="q must be float16, bfloat16 or float32"):
        anchor_attention(*tensors(torch.float64), CONFIG, backend="triton")
    assert choose_backend(tensors(torch.float64)[0]).name == "torch"


def test_outlier_rows_are_the_references_and_auto_says_so(monkeypatch):
    config = replace(CONFIG, outliers=2)
    monkeypatch.setattr("anchor_kernels.support.why_unsupported", lambda q: None)
    reason = "outlier_choice must be 'even', got 'cosine' with outliers = 2"
    choice = choose_backend(tensors()[0], config=config)
    assert (choice.name, reason in choice.reason) == ("torch", True)
    for known in (CONFIG, replace(config, outlier_choice="even")):
        assert reason not in choose_backend(tensors()[0], config=known).reason
    with pytest.raises(RuntimeError, match=f"backend='triton' cannot run: {reason}"):
        choose_backend(tensors()[0], "triton", config)
    with pytest.raises(RuntimeError, match=f"backend='triton' cannot run: {reason}"):
        anchor_attention(*tensors(), config, backend="triton")
    out, trace = anchor_attention(*tensors(), config, scale=0.3, return_trace=True)
    same, expected = anchor_ref.anchor_attention(*tensors(), config, 0.3, return_trace=True)
    assert torch.equal(out, same)
    assert torch.equal(trace.stripes.indices, expected.stripes.indices)
    plain = anchor_ref.anchor_attention(*tensors(), CONFIG, 0.3, return_trace=True)[1]
    assert len(trace.stripes.indices) > len(plain.stripes.indices)


def test_a_config_that_is_none_is_refused_before_a_backend_is_chosen(unchecked_annotations):
    with pytest.raises(TypeError, match="config must be of type AnchorConfig, got float"):
        choose_backend(tensors()[0], "triton", 12.0)


def test_outlier_rows_share_the_threshold_of_their_head():
    config, thetas = replace(CONFIG, outliers=1), (1.0, 0.5, 1.0, 2.0)
    more = {"scale": 0.3, "theta_by_head": thetas, "return_trace": True}
    _, trace = anchor_attention(*tensors(), config, **more)
    q, k, v = tensors()
    for head, theta in enumerate(thetas):
        one, at = replace(config, theta=theta), head // 2
        alone = (q[:, head : head + 1], k[:, at : at + 1], v[:, at : at + 1])
        _, expected = anchor_ref.anchor_attention(*alone, one, 0.3, return_trace=True)
        assert torch.equal(trace.stripes.counts[:, head], expected.stripes.counts[:, 0])
    with pytest.raises(ValueError, match=r"outlier_theta must be None with .* got 3.0"):
        anchor_attention(*tensors(), replace(config, outlier_theta=3.0), **more)


def test_without_triton_auto_takes_the_reference_and_triton_is_refused(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("anchor_kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "anchor_kernels", None)
    choice = choose_backend(tensors()[0])
    assert (choice.name, "anchor_kernels cannot be imported" in choice.reason) == ("torch", True)
    with pytest.raises(RuntimeError, match="anchor_kernels cannot be imported"):
        anchor_attention(*tensors(), CONFIG, backend="triton")


def test_without_a_gpu_and_without_the_interpreter_triton_is_refused():
    code = (
        "import torch\n"
        "from anchor_models import anchor_attention\n"
        "x = torch.zeros(1, 1, 4, 16)\n"
        "try: anchor_attention(x, x, x, backend='triton')\n"
        "except RuntimeError as problem: print(problem)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "backend='triton' cannot run: q must be on a GPU, got cpu" in done.stdout


def test_the_kernels_run_when_they_are_asked_for():
    q, k, v = (x.cuda() if torch.cuda.is_available() else x for x in tensors())
    import anchor_kernels

    out = anchor_attention(q, k, v, CONFIG, backend="triton")
    assert torch.equal(out, anchor_kernels.anchor_attention(q, k, v, CONFIG))


@pytest.mark.gpu
def test_auto_takes_the_kernels_on_a_gpu():
    q, k, v = tensors(torch.bfloat16, "cuda")
    assert choose_backend(q).name == "triton"
    import anchor_kernels

    out = anchor_attention(q, k, v, CONFIG)
    assert torch.equal(out, anchor_kernels.anchor_attention(q, k, v, CONFIG))
    assert choose_backend(q.double()).name == "torch"
