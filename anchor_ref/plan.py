"""What the stages hand to each other: plain data, read by the reference and the kernels alike."""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StripePlan:
    """The selected keys of every (batch, query head, group), as one ragged list.

    A stripe is one key column that all queries of a group attend to. The stripes of batch b, head
    h and group g are `indices[offsets[b, h, g] : offsets[b, h, g] + counts[b, h, g]]`.

    Attributes:
        counts: number of stripes, `[B, Hq, G]` int32.
        offsets: where each list starts in `indices`, `[B, Hq, G]` int64: the sum of all counts
            before it.
        indices: key positions (columns of k), `[total]` int32, ascending inside each list.
    """

    counts: Int[Tensor, "B Hq G"]
    offsets: Int[Tensor, "B Hq G"]
    indices: Int[Tensor, "total"]

    @classmethod
    def from_lists(
        cls, lists: list[Int[Tensor, "_"]], shape: tuple[int, int, int]
    ) -> "StripePlan":
        """Join one ascending list of keys for each (b, h, g), in that order.

        Args:
            lists: B·Hq·G one-dimensional integer tensors on one device.
            shape: (B, Hq, G).

        Raises:
            ValueError: there are more or fewer lists than the shape asks for.
        """
        if len(lists) != prod(shape):
            raise ValueError(f"lists must be B·Hq·G = {prod(shape)} lists, got {len(lists)}")
        device = lists[0].device
        counts = torch.tensor([len(keys) for keys in lists], dtype=torch.int64)
        offsets = counts.cumsum(0) - counts
        return cls(
            counts.to(device, torch.int32).view(shape),
            offsets.to(device).view(shape),
            torch.cat(lists).to(torch.int32),
        )

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "B Hq G N"]) -> "StripePlan":
        """The plan whose `to_mask` is `mask`."""
        counts = mask.sum(-1)
        offsets = counts.flatten().cumsum(0).view(counts.shape) - counts
        return cls(counts.to(torch.int32), offsets, mask.nonzero()[:, -1].to(torch.int32))

    def keys(self, b: int, h: int, g: int) -> Int[Tensor, "_"]:
        """The stripes of one batch entry, head and group: ascending key positions, int32."""
        start = int(self.offsets[b, h, g])
        return self.indices[start : start + int(self.counts[b, h, g])]

    def to_mask(self, n_keys: int) -> Bool[Tensor, "B Hq G N"]:
        """The plan as a mask over keys; its size is B·Hq·G·N, so for small N only."""
        mask = torch.zeros(
            self.counts.numel(), n_keys, dtype=torch.bool, device=self.indices.device
        )
        lists = torch.arange(self.counts.numel(), device=self.indices.device)
        mask[lists.repeat_interleave(self.counts.flatten().long()), self.indices.long()] = True
        return mask.view(*self.counts.shape, n_keys)


@dataclass(frozen=True, eq=False)
class AnchorTrace:
    """What a call saw on its way, for looking inside.

    Attributes:
        row_anchor: a_i, the largest score of query i over its initial region and window,
            `[B, Hq, Nq]`, natural-log units: float32, or float64 where that was asked for or is
            the inputs' dtype.
        stripes: the keys that stage 2 selected.
    """

    row_anchor: Float[Tensor, "B Hq Nq"]
    stripes: StripePlan
