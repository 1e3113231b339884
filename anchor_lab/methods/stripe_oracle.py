"""The oracle that chooses whole columns for each group of queries, as AnchorAttention must.

An oracle sees every score before it chooses and saves no work: it is the best that its kind of
choice can do. Equal scores or masses are decided for the earlier one. A NaN among the scores keeps
what cannot be compared.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from anchor_lab.methods.method import Method, check_number
from anchor_lab.methods.scores import SHARES, all_scored, scores_of_rows
from anchor_lab.methods.selection import ROWS, Selection, largest_share
from anchor_lab.methods.stripes import stripe_selection
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_type
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups


@dataclass(frozen=True)
class StripeOracle(Method):
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
        check_number("gamma", self.gamma, 0.0, 1.0)
        check_type("config", self.config, AnchorConfig)

    @classmethod
    def sweep(cls) -> list["StripeOracle"]:
        """γ from 0 to 0.999; each keeps what the one before keeps."""
        return [cls(share) for share in (0.0, *SHARES)]

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        batch, heads, n, _ = q.shape
        all_groups = groups(self.config, n, n)
        chosen = torch.zeros(batch, heads, len(all_groups), n, dtype=torch.bool, device=q.device)
        for g, group in enumerate(all_groups):
            candidates = slice(group.candidates.start, group.candidates.stop)
            mass = sum(
                scores.softmax(-1)[..., candidates].sum(2)
                for _, scores in scores_of_rows(q, k, scale, group.rows, ROWS)
            )  # [B, Hq, C]
            if group.candidates:
                chosen[:, :, g, candidates] = largest_share(mass, self.gamma)
        return stripe_selection(StripePlan.from_mask(chosen), self.config, n, all_scored(n))
