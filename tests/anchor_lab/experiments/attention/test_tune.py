"""What `anchor_lab.experiments.attention.tune` reads from its command line, and what it times."""

import argparse

import pytest
import torch

from anchor_kernels.launch import AttentionLaunch, HopperLaunch, SelectLaunch
from anchor_lab.experiments.attention import tune
from anchor_lab.experiments.attention.jobs import Case, kernels
from anchor_models import planted_stripes
from anchor_ref.config import AnchorConfig


def test_a_launch_is_a_stage_and_the_fields_of_its_kind():
    wide = AttentionLaunch(256, 64, 8, 2)
    assert tune.read_launch("sparse:256,64,8,2") == ("sparse", wide)
    capped = AttentionLaunch(128, 64, 8, 2, max_registers=128)
    assert tune.read_launch("anchor:128,64,8,2,128") == ("anchor", capped)
    again = AttentionLaunch(64, 32, 4, 2)
    assert tune.read_launch("hopper:64,4,128,152,56") == (
        "hopper",
        HopperLaunch(64, 4, 128, 152, 56, again),
    )
    assert tune.read_launch("select:64,64,4096,4,3") == (
        "select",
        SelectLaunch(64, 64, 4096, 4, 3),
    )


@pytest.mark.parametrize(
    "text", ["sparse", "256,64,8,2", "sparse:256", "sparse:a,b,c,d", "hopper:64", "x:1"]
)
def test_what_names_no_launch_is_refused_with_what_does(text):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        tune.read_launch(text)
    assert "anchor:block_m,block_n,num_warps,num_stages" in str(caught.value)
    assert text in str(caught.value)


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["sparse:256,64,8,2"]) == 2
    printed = capsys.readouterr()
    assert (
        printed.err
        == "anchor_lab.experiments.attention.tune needs a CUDA device, and torch finds none.\n"
    )
    assert not printed.out


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")
def test_every_stage_runs_under_its_own_and_another_launch():
    config = AnchorConfig(16, 2)
    inputs = planted_stripes(100, q_heads=2, kv_heads=1, head_dim=16, density=0.1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (x.to(device) for x in (inputs.q, inputs.k, inputs.v))
    known = tune.stages(Case(q, k, v, None, config, kernels()))
    others = ("anchor:16,16,4,1", "sparse:32,16,4,1", "select:16,32,64,4,1")
    for stage, launch in map(tune.read_launch, others):
        run, work = known[stage]
        torch.testing.assert_close(run(launch), run(None), atol=1e-5, rtol=1e-5)
        assert work > 0
