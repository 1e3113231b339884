"""Oracles: methods that see every score before they choose.

None of them saves any work. Each is the best that its kind of choice can do, so the distance of a
real method to its oracle is the price of guessing, and the distance between two oracles the price
of a coarser grain: tokens, stripes, blocks.

Equal scores or masses are decided for the earlier key, block or column. Scores are formed in
float32, or float64 for float64 inputs. A NaN among the scores keeps what cannot be compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anchor_ref.baselines.anchor import stripe_selection
from anchor_ref.baselines.selection import (
    ROWS,
    Selection,
    block_selection,
    causal_pairs,
    check_count,
    check_number,
    check_prompt,
    largest,
    largest_share,
    row_selection,
)
from anchor_ref.config import AnchorConfig
from anchor_ref.heads import causal_scores
from anchor_ref.inputs import check_compute_dtype, check_type
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups

SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


@dataclass(frozen=True)
class TokenTopK:
    """The k keys of each row with the largest scores.

    Args:
        k: keys of a row, at least 1; a row that sees fewer keeps them all.

    Raises:
        ValueError: `k` is outside its range.
    """

    k: int = 1024

    def __post_init__(self):
        check_count("k", self.k, 1)

    @classmethod
    def sweep(cls) -> list["TokenTopK"]:
        """k from 16 to 4096, doubling; each keeps what the one before keeps."""
        return [cls(2**p) for p in range(4, 13)]

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """The largest scores of each row.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """
        return _select_by_scores(q, k, scale, lambda scores: largest(scores, self.k))


@dataclass(frozen=True)
class TokenTopCdf:
    """The fewest keys of each row that hold a given mass.

    Args:
        mass: share of the row's softmax mass that is reached, in [0, 1]; a row keeps its largest
            key at least.

    Raises:
        ValueError: `mass` is outside its range.
    """

    mass: float = 0.95

    def __post_init__(self):
        check_number("mass", self.mass, 0, 1)

    @classmethod
    def sweep(cls) -> list["TokenTopCdf"]:
        """Masses from 0.5 to 0.999; each keeps what the one before keeps."""
        return [cls(share) for share in SHARES]

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """The largest weights of each row, until their sum reaches `mass`.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """

        def keep(scores: Tensor) -> Tensor:
            weights = scores.softmax(-1)
            return largest_share(weights, self.mass) | largest(weights, 1)

        return _select_by_scores(q, k, scale, keep)


@dataclass(frozen=True)
class DifferenceOracle:
    """The difference test without its approximations: each row's own maximum, its own scores.

    keep key j for query i   when   max_j' s_ij' − s_ij <= θ

    A dropped key weighs less than e^(−θ) of the row's largest.

    Args:
        theta: θ, natural-log units of the scaled score, at least 0; +inf keeps every key.

    Raises:
        ValueError: `theta` is outside its range.
    """

    theta: float = 12.0

    def __post_init__(self):
        check_number("theta", self.theta, 0, torch.inf)

    @classmethod
    def sweep(cls) -> list["DifferenceOracle"]:
        """θ from 1 to 16; each keeps what the one before keeps."""
        return [cls(float(theta)) for theta in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)]

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """The scores at most θ below the largest of their row.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """

        def keep(scores: Tensor) -> Tensor:
            return ~(scores.amax(-1, keepdim=True) - scores > self.theta)

        return _select_by_scores(q, k, scale, keep)


@dataclass(frozen=True)
class BlockTopK:
    """The key blocks that hold most dense mass, a fixed number for each query block.

    The mass of a block is Σ softmax weight over its rows and keys.

    Args:
        blocks: key blocks of a query block, at least 1.
        block_size: queries and keys of a block, at least 1.

    Raises:
        ValueError: a field is outside its range.
    """

    blocks: int = 16
    block_size: int = 128

    def __post_init__(self):
        check_count("blocks", self.blocks, 1)
        check_count("block_size", self.block_size, 1)

    @classmethod
    def sweep(cls) -> list["BlockTopK"]:
        """1 to 64 blocks, doubling; each keeps what the one before keeps."""
        return [cls(2**p) for p in range(7)]

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """The heaviest key blocks of each query block.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """
        return _select_by_blocks(q, k, scale, self.block_size, lambda m: largest(m, self.blocks))


@dataclass(frozen=True)
class BlockTopCdf:
    """The fewest key blocks of each query block that hold a given share of its dense mass.

    Args:
        mass: share that is reached, in [0, 1]; a query block keeps its heaviest block at least.
        block_size: queries and keys of a block, at least 1.

    Raises:
        ValueError: a field is outside its range.
    """

    mass: float = 0.95
    block_size: int = 128

    def __post_init__(self):
        check_number("mass", self.mass, 0, 1)
        check_count("block_size", self.block_size, 1)

    @classmethod
    def sweep(cls) -> list["BlockTopCdf"]:
        """Masses from 0.5 to 0.999; each keeps what the one before keeps."""
        return [cls(share) for share in SHARES]

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """The heaviest key blocks of each query block, until their share reaches `mass`.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """

        def keep(mass: Tensor) -> Tensor:
            return largest_share(mass, self.mass) | largest(mass, 1)

        return _select_by_blocks(q, k, scale, self.block_size, keep)


@dataclass(frozen=True)
class StripeOracle:
    """The fewest stripes of each group that hold γ of what initial region and window leave.

    m_j = Σ_{i in g} softmax_i(s)_j for candidates j;   keep by falling m_j until Σ m >= γ Σ_C m

    Args:
        gamma: γ, share of the group's dense mass on its candidates, in [0, 1]; 0 keeps the
            regions alone.
        config: block, group and regions of AnchorAttention; its θ plays no part.

    Raises:
        TypeError: `config` is no `AnchorConfig`.
        ValueError: `gamma` is outside its range.
    """

    gamma: float = 0.95
    config: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self):
        check_number("gamma", self.gamma, 0, 1)
        check_type("config", self.config, AnchorConfig)

    @classmethod
    def sweep(cls) -> list["StripeOracle"]:
        """γ from 0 to 0.999; each keeps what the one before keeps."""
        return [cls(share) for share in (0.0, *SHARES)]

    def select(
        self,
        q: Float[Tensor, "B Hq N D"],
        k: Float[Tensor, "B Hkv N D"],
        scale: float | None = None,
    ) -> Selection:
        """Initial region, window, and the heaviest columns between them.

        Args:
            q, k, scale: as in `anchor_attention`, with as many queries as keys.

        Raises:
            TypeError, ValueError: see `selection.check_prompt`.
        """
        scale = check_prompt(q, k, scale)
        batch, heads, n, _ = q.shape
        all_groups = groups(self.config, n, n)
        chosen = torch.zeros(batch, heads, len(all_groups), n, dtype=torch.bool, device=q.device)
        for g, group in enumerate(all_groups):
            candidates = slice(group.candidates.start, group.candidates.stop)
            mass = sum(
                scores.softmax(-1)[..., candidates].sum(2)
                for _, scores in _scores_of_rows(q, k, scale, group.rows, ROWS)
            )  # [B, Hq, C]
            if group.candidates:
                chosen[:, :, g, candidates] = largest_share(mass, self.gamma)
        return stripe_selection(StripePlan.from_mask(chosen), self.config, n, _scored(n))


def _scored(n: int) -> float:
    """An oracle forms the score of every causal pair, and no product with a value."""
    return causal_pairs(n) / 2


def _scores_of_rows(
    q: Tensor, k: Tensor, scale: float, rows: range, size: int
) -> Iterator[tuple[range, Tensor]]:
    """Scores `[B, Hq, R, M]` of `size` rows at a time, over the keys up to the last row's own."""
    dtype = check_compute_dtype(None, q.dtype)
    for start in range(rows.start, rows.stop, size):
        part = range(start, min(start + size, rows.stop))
        q_rows = q[:, :, part.start : part.stop].to(dtype)
        yield part, causal_scores(q_rows, k[:, :, : part.stop].to(dtype), scale)


def _select_by_scores(
    q: Tensor, k: Tensor, scale: float | None, keep: Callable[[Tensor], Tensor]
) -> Selection:
    """Each row decides by its own scores, when it is asked."""
    scale = check_prompt(q, k, scale)

    def keep_rows(rows: range) -> Bool[Tensor, "B Hq R M"]:
        ((_, scores),) = _scores_of_rows(q, k, scale, rows, ROWS)
        return keep(scores)

    return row_selection(tuple(q.shape[:3]), keep_rows, _scored(q.shape[2]))


def _select_by_blocks(
    q: Tensor, k: Tensor, scale: float | None, block: int, keep: Callable[[Tensor], Tensor]
) -> Selection:
    """Each query block decides by the dense mass of its key blocks, the causal ones."""
    scale = check_prompt(q, k, scale)
    batch, heads, n, _ = q.shape
    size = -(-n // block)
    kept = torch.zeros(batch, heads, size, size, dtype=torch.bool, device=q.device)
    for t, (rows, scores) in enumerate(_scores_of_rows(q, k, scale, range(n), block)):
        column = scores.softmax(-1).sum(2)  # [B, Hq, M]
        whole = torch.nn.functional.pad(column, (0, (t + 1) * block - rows.stop))
        kept[:, :, t, : t + 1] = keep(whole.unflatten(-1, (t + 1, block)).sum(-1))
    return block_selection(kept, n, block, block, _scored(n))
