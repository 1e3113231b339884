"""What a model loses of its owner's text: the predictions of a whole prompt, dense against ours.

Rows beyond the first group are predicted from what a sparse prefill leaves. The text is read with
dense attention, and with AnchorAttention as models run it but for `when="always"`: what the method
loses is the question, also where dense attention would be as fast.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import expm1
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_lab.analysis.intervals import bootstrap
from anchor_lab.experiments.answers.ask import DENSE, Way, reading
from anchor_lab.experiments.losses.measure import RUNS
from anchor_lab.experiments.outliers.reading import losses_after, token_losses
from anchor_lab.experiments.page import percent
from anchor_lab.experiments.store import Store
from anchor_models.backend import TAIL
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import density_floor

FILE = "losses.json"
KEY = ("theta",)  # None is dense attention
CONFIG = AnchorConfig(tail=TAIL)
# Nats a token that may be lost, two percent of perplexity: a convention, not a finding.
ALLOWED = 0.02
FEW = 32  # tokens that tell whether a model's logits are those of its last layer alone


@dataclass(frozen=True)
class TextLoss:
    """What one θ loses on one text.

    Attributes:
        theta: of all heads; with the tail of models.
        tokens: of the predictions that count, those in rows beyond the first group.
        dense, ours: nats a token, mean over them.
        low, high: 95 % interval of the difference, over runs of tokens read in both ways.
        density: share of the causal pairs that was kept, mean over layers and heads.
    """

    theta: float
    tokens: int
    dense: float
    ours: float
    low: float
    high: float
    density: float

    @property
    def lost(self) -> float:
        """Nats a token above dense attention."""
        return self.ours - self.dense

    @property
    def against(self) -> bool:
        """Whether more is lost than may be, with all of the interval."""
        return self.low > ALLOWED

    def __str__(self) -> str:
        """The numbers, and whether they speak against the method here."""
        below, above = (_signed(100 * expm1(x), 1) for x in (self.low, self.high))
        told = (
            f"θ = {self.theta:g}, a tail of {TAIL}, {percent(self.density)} of the pairs: "
            f"{_signed(self.lost)} nats a token (95 %: {_signed(self.low)} to "
            f"{_signed(self.high)}), perplexity {_signed(100 * expm1(self.lost), 1)} % "
            f"({below} to {above} %)"
        )
        level = f"{ALLOWED:g} nats"
        if self.against:
            return f"{told}: more than {level} are lost. Do not use it here."
        if self.high <= ALLOWED:
            return f"{told}: no more than {level} are lost."
        return f"{told}: this text does not tell whether more than {level} are lost."


def nothing_to_lose(tokens: int) -> bool:
    """Whether first group, windows and tail are all pairs of a prompt, so that nothing is lost."""
    return float(density_floor(CONFIG, tokens, tokens)) == 1.0


def text_losses(
    model,
    tokens: Int[Tensor, "1 N"],
    thetas: Sequence[float],
    folder: Path,
    settings: dict,
    progress: Callable[[list], Iterable] = iter,
) -> list[TextLoss]:
    """Read a text in all ways; what the folder holds already is not read again.

    Args:
        model: a transformers causal model, in eval mode.
        tokens: one prompt, in which there is something to lose.
        thetas: thresholds, one after the other for all heads.
        folder: where `FILE` is kept.
        settings: what tells model and text from any others.
        progress: wraps the list of the θ that are left, None for dense attention.

    Returns:
        One for each θ.

    Raises:
        ValueError: there is nothing to lose; the attention or the output of the model is not one
            whose losses are known; no layer ran AnchorAttention; the folder holds those of other
            settings.
    """
    n, group = tokens.shape[1], CONFIG.group_size
    if nothing_to_lose(n):
        raise ValueError(f"tokens must be more than a group and the tail, got {n}")
    store = Store(folder / FILE, KEY, {**settings, "tail": TAIL, "runs": RUNS})
    left = [theta for theta in (None, *thetas) if not store.holds(theta=theta)]
    tokens = tokens.to(model.device)
    if left:
        _check_output(model, tokens[:, :FEW])
    for theta in progress(left):
        nats, density = _read(model, tokens, theta)
        beyond = nats[group:].double()
        runs = [run.mean().item() for run in beyond.tensor_split(RUNS)]
        row = {"theta": theta, "mean": beyond.mean().item(), "runs": runs, "density": density}
        store.add([row])
    rows = {row["theta"]: row for row in store.rows}
    return [_against(rows[None], rows[theta], n - 1 - group) for theta in thetas]


def _against(dense: dict, ours: dict, tokens: int) -> TextLoss:
    pairs = zip(dense["runs"], ours["runs"], strict=True)
    low, high = bootstrap([[after - before for before, after in pairs]])
    means = dense["mean"], ours["mean"]
    return TextLoss(ours["theta"], tokens, *means, low, high, ours["density"])


def _read(model, tokens: Tensor, theta: float | None) -> tuple[Tensor, float]:
    """Nats of each prediction, and the share of the pairs that was kept."""
    if theta is None:
        with reading(model, DENSE):
            return token_losses(model, tokens), 1.0
    from anchor_models.transformers import record

    with record() as seen, reading(model, Way(theta, TAIL)):
        nats = token_losses(model, tokens)
    if not any(call.ran == "anchor" for call in seen.calls):
        why = seen.calls[0].why if seen.calls else "no layer of the model asks for attention"
        raise ValueError(f"a layer must run AnchorAttention, none did: {why}")
    return nats, seen.density


@torch.no_grad()
def _check_output(model, tokens: Tensor) -> None:
    """Refuse, with a ValueError, a model that changes its logits after the last layer.

    The losses are formed from that layer's output, of few rows at a time.
    """
    if model.get_output_embeddings() is None:
        raise ValueError("model must have an output layer, it has none")
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
    whole = torch.nn.functional.cross_entropy(logits, tokens[0, 1:])
    if not torch.isclose(losses_after(model, hidden[0], tokens[0]).mean(), whole.cpu(), rtol=1e-2):
        raise ValueError("model must not change its logits after the output layer, it does")


def _signed(x: float, digits: int = 3) -> str:
    """With a sign; nothing is not below nothing."""
    return f"{x:+.{digits}f}".replace(f"-{0:.{digits}f}", f"+{0:.{digits}f}").replace("-", "−")
