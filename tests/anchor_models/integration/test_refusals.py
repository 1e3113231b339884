"""What is more than causal attention over q, k and v is refused by all who take it over."""

import pytest
import torch

from anchor_lab.methods import in_a_model
from anchor_models import capture, transformers
from anchor_models.interface import beyond_causal
from anchor_models.parallel import prefill as parallel

N = 8
CALLERS = {
    "capture": lambda module, given: capture._refuse_other_attention(module, 0, None, given),
    "transformers": lambda module, given: transformers._refuse_other_attention(
        module, torch.zeros(1, 1, N, 4), None, given
    ),
    "in_a_model": lambda module, given: in_a_model._refuse_other(module, None, given),
    "parallel": lambda module, given: parallel._refuse_other(module, None, N, given),
}
NAMES = {
    "softcap": "capped scores",
    "s_aux": "learned attention sinks",
    "sinks": "learned attention sinks",
    "position_bias": "a position bias",
    "indices": "a learned choice of keys",
    "block_indices": "a learned choice of keys",
    "head_mask": "a mask of heads",
    "cache": "a paged cache",
}
OWN = {
    ("in_a_model", "sliding_window"): "a sliding window",
    ("parallel", "sliding_window"): "a sliding window of 4 tokens",
    ("parallel", "cu_seq_lens_q"): "packed texts",
}


def layer(**changes):
    module = torch.nn.Module()
    module.layer_idx = 0
    for name, value in changes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("caller", CALLERS)
def test_every_caller_refuses_everything_in_the_table(caller, name):
    CALLERS[caller](layer(), {name: None, "position_ids": torch.arange(N)[None]})
    if (caller, name) == ("capture", "softcap"):  # which a capture writes down
        CALLERS[caller](layer(), {name: 50.0})
        return
    with pytest.raises(ValueError, match=f"plain causal attention.* {NAMES[name]}"):
        CALLERS[caller](layer(), {name: 1.0})


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    ("changes", "given"), [({"is_causal": False}, {}), ({}, {"is_causal": False})]
)
def test_every_caller_refuses_both_directions(caller, changes, given):
    with pytest.raises(ValueError, match="attention in both directions"):
        CALLERS[caller](layer(**changes), given)


@pytest.mark.parametrize(("caller", "name"), OWN)
def test_callers_refuse_what_they_alone_cannot_do(caller, name):
    with pytest.raises(ValueError, match=f"got {OWN[caller, name]} in layer 0"):
        CALLERS[caller](layer(), {name: 4})


def test_a_mask_settles_who_sees_whom_but_for_a_layer_that_looks_both_ways():
    told = {"is_causal": False}
    assert beyond_causal(layer(), told, masked=True) == []
    assert beyond_causal(layer(is_causal=False), told, masked=True) != []
