"""What transformers' own mask functions hide is read from them; all others are not known."""

import pytest
import torch
from transformers import masking_utils
from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_overlay

from anchor_models.integration.mask_functions import known

N = 20
TEXTS = torch.tensor([[0] * 7 + [1] * 13])
PACKED = masking_utils.packed_sequence_mask_function(TEXTS)


def test_parts_of_known_masks_are_found():
    assert known(causal_mask_function).local is None
    found = known(and_masks(and_masks(sliding_window_overlay(5), causal_mask_function), PACKED))
    assert found.local == 5
    assert torch.equal(found.texts, TEXTS)


@pytest.mark.parametrize(
    "function",
    [
        sliding_window_overlay(5),  # with later keys
        and_masks(PACKED, sliding_window_overlay(5)),
        and_masks(causal_mask_function, sliding_window_overlay(5), sliding_window_overlay(9)),
        and_masks(causal_mask_function, lambda b, h, q, k: k != 3),
        masking_utils.or_masks(causal_mask_function, PACKED),
        lambda b, h, q, k: k <= q,
        torch.nn.Identity(),
    ],
)
def test_others_are_not_known(function):
    assert known(function) is None
