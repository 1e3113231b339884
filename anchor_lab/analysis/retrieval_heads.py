"""Heads that fetch a fact: those whose questions look at the tokens that hold the answer.

    mass of a head for a fact = max over the rows that ask of Σ_{j in fact} A_ij

with A the dense attention of row i, mean over prompts. A head that gives a fact far away so much
of one row's mass is what copies it; with its keys chosen by the means of whole blocks, that row is
what gets lost. Such heads are few, and keeping them dense costs little.

Source: Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality"
(arXiv 2404.15574). They count how often a head's largest weight lies on the token that is being
written; here it is the mass, while the question is read, so that one prefill is enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from anchor_models import Calibration, Captured, capture_qkv
from anchor_ref.heads import causal_scores

SHARE = 0.1  # of a row's mass on the fact, from which on a head counts
MOST = 0.1  # of all heads that are kept at most: more would be no choice


@runtime_checkable
class HidesFacts(Protocol):
    """A prompt with `facts`, where they stand, and `document`, the first row that asks."""

    tokens: Int[Tensor, "1 N"]
    facts: Sequence[range]
    document: int


@dataclass(frozen=True)
class RetrievalHeads:
    """What was found.

    Attributes:
        mass: by layer, of each query head the mass on the facts, in [0, 1].
        heads: (layer, head) of those that fetch, the strongest first.
    """

    mass: dict[int, tuple[float, ...]]
    heads: tuple[tuple[int, int], ...]

    def in_words(self) -> str:
        """The heads with their mass, in a line."""
        count = sum(map(len, self.mass.values()))
        if not self.heads:
            most = max(x for row in self.mass.values() for x in row)
            return f"none of {count} heads fetches facts, the most mass on one is {most:.2f}"
        named = ", ".join(
            f"layer {layer} head {head} ({self.mass[layer][head]:.2f})"
            for layer, head in self.heads
        )
        return f"{len(self.heads)} of {count} heads fetch facts: {named}"


def find_retrieval_heads(
    model, prompts: Sequence[HidesFacts], share: float = SHARE, most: float = MOST
) -> RetrievalHeads:
    """Look for them while the model reads prompts, with its dense attention.

    Args:
        model: a transformers causal model; layers with a window are left out.
        prompts: each with facts and rows that ask, at least one.
        share: mean mass that makes a retrieval head, in (0, 1).
        most: share of all heads that is taken at most, in (0, 1].

    Raises:
        ValueError: there are no prompts, a share is out of range, a prompt lacks facts or rows
            that ask, or see `capture_qkv`.
    """
    if not prompts:
        raise ValueError("prompts must be at least one, got none")
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    if not 0 < most <= 1:
        raise ValueError(f"most must be in (0, 1], got {most}")
    sums: dict[int, Tensor] = {}
    for prompt in prompts:
        captured = capture_qkv(model, prompt.tokens.to(model.device), dtype=None)
        for layer, x in captured.items():
            if x.sliding_window is not None or x.softcap is not None:
                continue
            found = fact_mass(x, prompt).double().cpu()
            sums[layer] = sums.get(layer, 0) + found / len(prompts)
    if not sums:
        raise ValueError("model must have a layer of plain causal attention, found none")
    mass = {layer: tuple(row.tolist()) for layer, row in sorted(sums.items())}
    ranked = sorted(
        ((x, layer, head) for layer, row in mass.items() for head, x in enumerate(row)),
        key=lambda one: (-one[0], *one[1:]),
    )
    kept = ranked[: max(1, int(most * len(ranked)))]
    return RetrievalHeads(mass, tuple((layer, head) for x, layer, head in kept if x >= share))


def fact_mass(x: Captured, prompt: HidesFacts) -> Float[Tensor, "Hq"]:
    """Of each head the most mass that a row which asks gives to the facts.

    Raises:
        ValueError: the prompt has no facts, or no rows that ask.
    """
    n = x.q.shape[2]
    if not prompt.facts or not 0 < prompt.document < n:
        raise ValueError(
            f"prompts must have facts and rows that ask, got {len(prompt.facts)} facts and a "
            f"document of {prompt.document} of {n} tokens"
        )
    scores = causal_scores(x.q[:, :, prompt.document :].float(), x.k.float(), x.scaling)
    weights = scores.softmax(-1)[0]  # [Hq, rows that ask, N]
    on_facts = sum(weights[..., fact.start : fact.stop].sum(-1) for fact in prompt.facts)
    return on_facts.amax(-1)


def thetas_for(
    model,
    theta: float | Calibration | Mapping[int, Sequence[float]],
    heads: Sequence[tuple[int, int]],
    raised: float = float("inf"),
) -> dict[int, tuple[float, ...]]:
    """Thresholds by layer and query head, for `options(theta=...)`: those of `heads` raised.

    Args:
        model: tells how many layers and query heads there are.
        theta: of all other heads: one number, a calibration, or by layer one for each head.
        heads: (layer, head) of those to raise.
        raised: their threshold; +inf keeps a head dense.

    Raises:
        ValueError: a head is none of the model's, or `theta` lacks a layer.
    """
    config = model.config.get_text_config()
    layers, count = config.num_hidden_layers, config.num_attention_heads
    table = theta.thetas if isinstance(theta, Calibration) else theta
    if not isinstance(table, Mapping):
        table = {layer: (float(table),) * count for layer in range(layers)}
    if missing := sorted(set(range(layers)) - set(table)):
        raise ValueError(f"theta must have an entry for each layer, got none for {missing[0]}")
    found = {layer: list(map(float, table[layer])) for layer in range(layers)}
    for layer, head in heads:
        if layer not in found or not 0 <= head < len(found[layer]):
            raise ValueError(
                f"heads must be of layers 0..{layers - 1} and heads 0..{count - 1}, "
                f"got layer {layer} head {head}"
            )
        found[layer][head] = max(found[layer][head], raised)
    return {layer: tuple(row) for layer, row in found.items()}
