"""The oracle that chooses whole columns for each group of queries, as AnchorAttention must."""

from dataclasses import dataclass, field

from torch import Tensor

from anchor_lab.methods.method import number
from anchor_lab.methods.ranking import largest_share
from anchor_lab.methods.scores import SHARES, all_scored, scores_of_rows
from anchor_lab.methods.selection import ROWS, Selection
from anchor_lab.methods.stripes import StripeMethod, stripe_selection
from anchor_ref.config import AnchorConfig
from anchor_ref.plan import StripePlan
from anchor_ref.regions import groups


@dataclass(frozen=True)
class StripeOracle(StripeMethod):
    """The fewest stripes of each group that hold γ of what initial region and window leave.

    m_j = Σ_{i in g} softmax_i(s)_j for candidates j;   keep by falling m_j until Σ m >= γ Σ_C m

    Args:
        gamma: γ, share of the group's dense mass on its candidates, in [0, 1]; 0 keeps the
            regions alone.
        config: block, group and regions of AnchorAttention; its θ plays no part.
    """

    gamma: float = number(0.95, 0.0, 1.0)
    config: AnchorConfig = field(default_factory=AnchorConfig)

    @classmethod
    def sweep(cls) -> list["StripeOracle"]:
        """γ from 0 to 0.999; each keeps what the one before keeps."""
        return [cls(share) for share in (0.0, *SHARES)]

    def stripes(self, q: Tensor, k: Tensor, scale: float) -> StripePlan:
        layout, kept = groups(self.config, q.shape[2], q.shape[2]), []
        for group in layout:
            candidates = slice(group.candidates.start, group.candidates.stop)
            mass = sum(
                scores.softmax(-1)[..., candidates].sum(2)
                for _, scores in scores_of_rows(q, k, scale, group.rows, ROWS)
            )  # [B, Hq, C]
            kept.append(largest_share(mass, self.gamma))
        return StripePlan.from_candidates(kept, [group.candidates for group in layout])

    def choose(self, q: Tensor, k: Tensor, scale: float) -> Selection:
        stripes, n = self.stripes(q, k, scale), q.shape[2]
        return stripe_selection(stripes, self.config, n, all_scored(n), self.gather)
