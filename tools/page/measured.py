"""What the page holds of the bundled heads: exact numbers, a pooled map, the keys kept by θ.

A head's 33 million weights become 512 x 512 cells of 16 x 16 pairs, each with its largest weight
and, where that is worth a look, the pair that has it. The numbers are those of
`anchor_ref.measure`; the page computes none.
"""

import math
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from anchor_models.backend import TAIL
from anchor_models.heads import BundledHeads
from anchor_ref import AnchorConfig, compute_anchor, identify_stripes
from anchor_ref.measure import block_scores, density, recall, rows_beyond
from anchor_ref.regions import groups

THETAS = range(21)
TAILS = (0, TAIL)
CELL = 16  # queries and keys to a side
LEVELS, DECADES = 80, 4  # a weight as a byte: 0 is 10⁻⁴ or less, 80 is 1
NAMED = 20  # the level from which on a cell names its largest pair: 0.001
NEVER = 255  # a key that no θ of the page keeps
NUMBERS = ("density", "beyond", "all", "worst")
KINDS = {
    "stripes": "clear stripes",
    "retrieval": "head 7 looks things up",
    "diffuse": "head 6 is diffuse",
}


def measured(bundled: BundledHeads) -> Iterator[dict]:
    """Each head in turn.

    Yields:
        layer, head, kind; "numbers", by tail and θ those of `NUMBERS`; and packed bytes:
        "levels" of the cells below the diagonal and on it, row by row; "pairs", of each cell of
        at least `NAMED` where its largest pair lies, 16 · row + key; "least", of each group's
        candidates the first θ that keeps it.
    """
    config, kinds = AnchorConfig(), {layer: kind for kind, (layer, _) in bundled.chosen.items()}
    for layer, x in sorted(bundled.captured.items()):
        n = x.q.shape[2]
        beyond = rows_beyond(config, n, n)
        anchor = compute_anchor(x.q, x.k, x.v, config, x.scaling).max
        numbers = torch.empty(x.q.shape[1], len(TAILS), len(THETAS), len(NUMBERS))
        least = torch.full((x.q.shape[1], len(groups(config, n, n)), n), NEVER, dtype=torch.uint8)
        for at, theta in enumerate(THETAS):
            chosen = replace(config, theta=float(theta))
            plan = identify_stripes(x.q, x.k, anchor, chosen, x.scaling)
            least[plan.to_mask(n)[0] & (least == NEVER)] = theta
            rows = recall(x.q, x.k, plan, chosen, x.scaling)[0]  # [Hq, N]
            for of_tail, tail in enumerate(TAILS):
                rows = rows.clone()
                rows[:, n - tail :] = 1  # by the definition of recall
                numbers[:, of_tail, at] = torch.stack(
                    [
                        density(plan, replace(chosen, tail=tail), n, n)[0].float(),
                        rows[:, beyond].mean(-1),
                        rows.mean(-1),
                        rows[:, beyond].amin(-1),
                    ],
                    -1,
                )
        levels, pairs = pooled(x.q, x.k, x.scaling)
        for place, head in enumerate(x.query_heads):
            yield {
                "layer": layer,
                "head": head,
                "kind": KINDS[kinds[layer]],
                "numbers": [
                    [[round(value, 5) for value in row] for row in of_tail]
                    for of_tail in numbers[place].tolist()
                ],
                "levels": packed(levels[place]),
                "pairs": packed(pairs[place][levels[place] >= NAMED]),
                "least": packed(
                    torch.cat(
                        [
                            least[place, g, group.candidates.start : group.candidates.stop]
                            for g, group in enumerate(groups(config, n, n))
                        ]
                    )
                ),
            }


def pooled(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Of the cells on and below the diagonal, row by row: level, and place of the largest pair.

    Returns:
        Two tensors `[Hq, cells]` of bytes.
    """
    n = q.shape[2]
    found = []
    for group in groups(AnchorConfig(), n, n):
        for rows, scores in block_scores(q, k, group, scale):
            log_weight = scores[0].log_softmax(-1) / math.log(10)  # [Hq, b, M]
            cells = log_weight.unflatten(1, (-1, CELL)).unflatten(3, (-1, CELL))
            cells = cells.transpose(2, 3).flatten(3)  # [Hq, rows of cells, keys of cells, 256]
            largest, place = cells.max(-1)
            for at, row in enumerate(range(rows.start // CELL, rows.stop // CELL)):
                found.append((largest[:, at, : row + 1], place[:, at, : row + 1]))
    log_weight, place = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    level = ((log_weight / DECADES + 1).clamp(0, 1) * LEVELS).round()
    return level.byte(), place.byte()


def lookup(heads: list[dict], bundled: BundledHeads) -> dict:
    """The pair by which the question finds the fact: of the last rows' the heaviest.

    Returns:
        Which of `heads`; query, key and weight; and the first θ that keeps the key.
    """
    best = {"weight": 0.0}
    for layer, x in bundled.captured.items():
        n = x.q.shape[2]
        for place, head in enumerate(x.query_heads):
            key_head = x.k[0, place * x.k.shape[1] // x.q.shape[1]]
            scores = x.scaling * (x.q[0, place, -CELL:] @ key_head.T)
            later = torch.arange(n) > torch.arange(n - CELL, n)[:, None]
            weight = scores.masked_fill_(later, -torch.inf).softmax(-1)
            weight = weight[:, bundled.fact.start : bundled.fact.stop]
            if weight.max() > best["weight"]:
                row, key = divmod(int(weight.argmax()), len(bundled.fact))
                number = [(h["layer"], h["head"]) for h in heads].index((layer, head))
                key += bundled.fact.start
                best = {"head": number, "query": n - CELL + row, "key": key}
                best["weight"] = round(float(weight.max()), 4)
                best["theta"] = first_theta(heads[number], key, n)
    return best


def first_theta(head: dict, key: int, n: int) -> int | None:
    """From which θ on the last group keeps this candidate; None for no θ of the page."""
    last = groups(AnchorConfig(), n, n)[-1].candidates
    theta = unpacked(head["least"])[-len(last) :][key - last.start]
    return None if theta == NEVER else theta


def packed(values: Tensor) -> str:
    """Bytes as text: deflated, in base 64."""
    return b64encode(zlib.compress(values.byte().contiguous().numpy().tobytes(), 9)).decode()


def unpacked(text: str) -> bytes:
    """The inverse of `packed`."""
    return zlib.decompress(b64decode(text))
