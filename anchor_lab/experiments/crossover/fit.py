"""The cost model of `when="auto"`, from what `crossover` measured.

    python -m anchor_lab.experiments.crossover.fit    writes cost.json of anchor_models

Coefficients of `anchor_models.integration.cost` are those, none below 0, with the least sum of
squared relative errors. Lengths between the powers of two are held out to judge them, and the
margin is how much they mislead there to our disadvantage, in nine of ten cells.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from itertools import combinations
from math import exp, log
from pathlib import Path

import torch

from anchor_lab.experiments.store import read, write_whole
from anchor_models.integration import cost
from anchor_ref.config import AnchorConfig

RESULTS = Path("results")
OF_REAL_HEADS = RESULTS / "smollm2" / "smollm2.json"
ABOUT = ("device", "generation", "kernels", "torch", "triton")
NEEDED = ("calls", "host", "layer")
HELD_OUT = (3072, 6144, 12_288)


def fit(rows: Sequence[dict], settings: dict, kept: dict) -> dict:
    """What `cost.json` holds.

    Args:
        rows: of `crossover`: calls, host and layer.
        settings: of `crossover`: device, generation, kernels, torch, triton.
        kept: what `kept_law` finds.

    Raises:
        ValueError: the rows lack one of these parts.
    """
    calls, hosts, layers = ([row for row in rows if row["part"] == part] for part in NEEDED)
    if not (calls and hosts and layers):
        raise ValueError(f"rows must hold {', '.join(NEEDED)}, which `crossover` measures first")
    found = {
        "made by": "python -m anchor_lab.experiments.crossover.fit",
        **{name: settings[name] for name in ABOUT},
    }
    for way, names in (
        ("anchor", cost.ANCHOR_WORK),
        ("dense", cost.DENSE_WORK),
        ("masked", cost.DENSE_WORK),
    ):
        of_way = [row for row in calls if row["way"] == way]
        if of_way:
            issued = [row["host_ms"] for row in hosts if row["way"] == way]
            found[way] = {
                "host_ms": digits(statistics.median(issued)),
                "device_ms": coefficients([x for x in of_way if not held_out(x)], names),
            }
    shortest = min(layers, key=lambda row: row["keys"])  # where the device waits for the host
    found["layer_host_ms"] = digits(
        max(0.0, of_a_layer(shortest) - found["dense"]["host_ms"]),
    )
    found["host_busy"] = digits(shortest["ms"]["p90"] / shortest["ms"]["median"])
    found["layer_device_ms"] = rest_of_layers([x for x in layers if x is not shortest], found)
    found["kept"] = kept
    found["margin"] = digits(margin(calls, found))
    found["error"] = digits(error(calls, found))
    if (rate := matrix_tflops(found["device"])) is not None:
        found["matrix_tflops"] = rate
    return found


def of_a_layer(row: dict) -> float:
    """Milliseconds of one layer of a whole prefill."""
    return row["ms"]["median"] / row["layers"]


def rest_of_layers(layers: Sequence[dict], found: dict) -> dict[str, float]:
    """What the device does beside attention, by `LAYER_WORK`, from long dense prefills."""
    work = [cost.layer_work(shape_of(row)) for row in layers]
    attention = [predicted({**row, "way": "dense"}, found) for row in layers]
    times = [of_a_layer(row) - ms for row, ms in zip(layers, attention, strict=True)]
    if min(times) <= 0:
        raise ValueError(f"layers must take longer than their attention, got {times} ms for both")
    return least_squares(work, times, cost.LAYER_WORK)


def held_out(row: dict) -> bool:
    return row["keys"] in HELD_OUT


def coefficients(rows: Sequence[dict], names: Sequence[str]) -> dict[str, float]:
    """Milliseconds of each kind of work in these calls."""
    return least_squares([of_row(row) for row in rows], [x["ms"]["median"] for x in rows], names)


def least_squares(
    work: Sequence[dict[str, float]], times: Sequence[float], names: Sequence[str]
) -> dict[str, float]:
    """Milliseconds of each kind of work, at least 0, by least squares of the relative error.

    A few kinds only: every choice of those that are 0 is tried.
    """
    table = torch.tensor([[each[name] for name in names] for each in work]).double()
    relative = table / torch.tensor(times).double()[:, None]
    scale = relative.abs().amax(0).clamp(min=1e-300)  # kinds differ by powers of ten
    best, least = torch.zeros(len(names)).double(), float(len(times))
    ones = torch.ones(len(times)).double()
    for count in range(1, len(names) + 1):
        for chosen in combinations(range(len(names)), count):
            part = (relative / scale)[:, chosen]
            solution = torch.linalg.lstsq(part, ones, driver="gelsd").solution
            error = float((part @ solution - 1).square().sum())
            if (solution >= 0).all() and error < least - 1e-12:
                best, least = torch.zeros_like(best), error
                best[list(chosen)] = solution / scale[list(chosen)]
    return {name: digits(x) for name, x in zip(names, best.tolist(), strict=True)}


def of_row(row: dict) -> dict[str, float]:
    """The work of a call that was measured."""
    shape = shape_of(row)
    if row["way"] != "anchor":
        return cost.dense_work(shape)
    return cost.anchor_work(shape, AnchorConfig(tail=row["tail"]), row["kept"])


def shape_of(row: dict) -> cost.Shape:
    return cost.Shape(
        1, *(row[name] for name in ("q_heads", "kv_heads", "queries", "keys", "head_dim"))
    )


def predicted(row: dict, found: dict) -> float:
    """Milliseconds of the device that the fit expects of a row."""
    return cost.device_ms(found[row["way"]]["device_ms"], of_row(row))


def margin(calls: Sequence[dict], found: dict) -> float:
    """The 90th percentile, over held-out calls, of how much slower beside dense ours was than
    expected."""
    wrong = {
        id(row): row["ms"]["median"] / predicted(row, found) for row in calls if held_out(row)
    }
    dense = {shape_of(row): wrong[id(row)] for row in calls if id(row) in wrong and is_dense(row)}
    ratios = [
        wrong[id(row)] / dense[shape_of(row)] - 1
        for row in calls
        if id(row) in wrong and row["way"] == "anchor" and shape_of(row) in dense
    ]
    if not ratios:
        return 0.0
    return max(0.0, float(torch.tensor(ratios).double().quantile(0.9)))


def error(calls: Sequence[dict], found: dict) -> float:
    """The 90th percentile of the relative error of a side's time, over held-out whole prompts.

    Over all of them where none is held out.
    """
    whole = [row for row in calls if row["queries"] == row["keys"]]
    wrong = [
        abs(predicted(row, found) / row["ms"]["median"] - 1)
        for row in [row for row in whole if held_out(row)] or whole
    ]
    return float(torch.tensor(wrong).double().quantile(0.9))


def matrix_tflops(device: str, folder: Path = RESULTS / "attention") -> float | None:
    """The rate of a large matrix product that `attention` measured on such a device, if it did."""
    for path in sorted(folder.glob("*.json")):
        measured = read(path)
        if measured["settings"].get("device") == device:
            return measured["runs"][-1].get("matrix_tflops")
    return None


def is_dense(row: dict) -> bool:
    return row["way"] == "dense"


def kept_law(path: Path = OF_REAL_HEADS) -> dict[str, dict]:
    """By θ: the share of the candidates that a real model's heads keep, a power of the length."""
    heads: dict[str, dict[int, list[float]]] = {}
    for row in read(path)["rows"]:
        if row["part"] == "heads":
            n = row["length"]
            always, candidates, _, _ = cost.method_pairs(AnchorConfig(), n, n)
            share = (row["density"] * n * (n + 1) / 2 - always) / candidates
            heads.setdefault(str(row["theta"]), {}).setdefault(n, []).append(share)
    found = {}
    for theta, by_length in sorted(heads.items(), key=lambda item: float(item[0])):
        points = [(log(n), log(statistics.mean(x))) for n, x in sorted(by_length.items())]
        exponent = statistics.linear_regression(*zip(*points, strict=True)).slope
        level = statistics.mean(y - exponent * (x - points[0][0]) for x, y in points)
        found[theta] = {
            "share": digits(exp(level)),
            "tokens": min(by_length),
            "exponent": digits(exponent),
        }
    return found


def digits(x: float) -> float:
    return float(f"{x:.4g}")


def write_cost(rows: Sequence[dict], settings: dict, path: Path = cost.FILE) -> None:
    """The fit of these rows as a file."""
    found = fit(rows, settings, kept_law())
    write_whole(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def main() -> int:
    results = read(RESULTS / "crossover" / "crossover.json")
    write_cost(results["rows"], results["settings"])
    print(f"{cost.FILE} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
