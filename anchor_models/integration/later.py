"""Truth values of a GPU that the host reads once they are there, and does not wait for."""

import torch
from jaxtyping import Bool
from torch import Tensor


class Later:
    """A truth value on its way to the host.

    Args:
        value: on a CUDA device, of the current stream.
    """

    def __init__(self, value: Bool[Tensor, ""]):
        self._value = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._value.copy_(value, non_blocking=True)
        self._there = torch.cuda.Event()
        self._there.record(torch.cuda.current_stream(value.device))

    def known(self, wait: bool) -> bool | None:
        """The value; None while it is not there, if nobody waits for it."""
        if wait:
            self._there.synchronize()
        elif not self._there.query():
            return None
        return bool(self._value)


def may_come_later(on_cuda: bool, config, layer: int) -> bool:
    """Whether the host need not wait for what the first layer of a pass asks.

    There must be a later layer that attends, to hear the answer; and in a CUDA graph nothing is
    known before its replay.

    Args:
        on_cuda: whether it is on a CUDA device; elsewhere there is nothing to wait for.
        config: of the model.
        layer: the one that asks.
    """
    last = last_layer(config)
    kinds = getattr(config, "layer_types", None)
    attends = kinds is None or (0 <= last < len(kinds) and kinds[last].endswith("attention"))
    return on_cuda and layer < last and attends and not _is_captured()


def last_layer(config) -> int:
    """Index of a model's last layer; -1 where it does not say."""
    return getattr(config, "num_hidden_layers", 0) - 1


def _is_captured() -> bool:
    return torch.cuda.is_current_stream_capturing()
