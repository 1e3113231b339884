"""Results of `rivals` and `losses` with few methods, whose places are known."""

from anchor_lab.experiments.losses.measure import EIGHTHS, TEXTS
from anchor_lab.experiments.rivals.measure import MEASURES
from tools import standing

OURS, ROOM = standing.OURS, standing.ROOM
# By method: recall at densities of .2 and .6, loss at these.
METHODS = {
    OURS: ((0.90, 1.00), (0.30, 0.20)),
    "SALE": ((0.95, 1.00), (0.02, 0.01)),
    "XAttention": ((0.50, 0.60), (0.04, 0.02)),
    "MoBA": ((0.60, 0.96), (0.90, 0.80)),
    ROOM: ((0.99, 1.00), (-0.00001, -0.002)),
    "AnchorBlocks": ((0.96, 1.00), (0.01, 0.01)),
}
LABELS = {OURS: ("theta=9", "theta=12")}


def recalls(n, methods=METHODS):
    rows = []
    for name in methods:
        for label, density, recall in zip(
            LABELS.get(name, "ab"), (0.2, 0.6), METHODS[name][0], strict=True
        ):
            row = {"length": n, "text": "prose", "layer": 0, "method": name}
            row |= {"configuration": label, **dict.fromkeys(MEASURES, recall)}
            rows.append(row | {"density": density, "total_cost": density + 0.1})
    return rows


def lost_row(name, label, density, loss, texts=TEXTS):
    runs = {text: [loss, loss] for text in texts}
    return {
        "method": name, "configuration": label, "density": density,
        "total_cost": density, "executed_density": density, "runs": runs,
        "classes": {text: [2 * loss, 3 * loss, 5 * loss] for text in texts},
        "counts": {text: [1, 2, 7] for text in texts},
        "eighths": {text: [6e3 * loss] + [8e2 * loss] * (EIGHTHS - 1) for text in texts},
        "worst": dict.fromkeys(texts, loss),
    }  # fmt: skip


def losses(n, methods=METHODS, texts=TEXTS):
    rows = [lost_row("Dense", "default", 1.0, 2.0, texts)]
    for name in methods:
        for label, density, loss in zip(
            LABELS.get(name, "ab"), (0.2, 0.6), METHODS[name][1], strict=True
        ):
            rows.append(lost_row(name, label, density, loss, texts))
    return {"settings": {"tokens": n, "texts": dict.fromkeys(texts, "hash")}, "rows": rows}


def table(*rows):
    return {"settings": {}, "rows": [row for some in rows for row in some]}
