"""What the stages hand to each other: plain data, read by the reference and the kernels alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
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
    def from_candidates(
        cls, kept: Sequence[Bool[Tensor, "B Hq _"]], candidates: Sequence[range]
    ) -> "StripePlan":
        """The plan that keeps some candidates of each group.

        Args:
            kept: for each group which of its candidates are stripes, `[B, Hq, C_g]`.
            candidates: of each group, as `regions.groups` has them.
        """
        batch, heads, _ = kept[0].shape
        lists = [
            keys.start + of_group[b, h].nonzero().flatten()
            for b, h in product(range(batch), range(heads))
            for of_group, keys in zip(kept, candidates, strict=True)
        ]
        return cls.from_lists(lists, (batch, heads, len(kept)))

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

    def kept(self, g: int, candidates: range) -> Bool[Tensor, "B Hq C"]:
        """Which candidates of group g are stripes."""
        batch, heads, _ = self.counts.shape
        mask = torch.zeros(
            batch, heads, len(candidates), dtype=torch.bool, device=self.indices.device
        )
        for b, h in product(range(batch), range(heads)):
            mask[b, h, self.keys(b, h, g).long() - candidates.start] = True
        return mask

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
