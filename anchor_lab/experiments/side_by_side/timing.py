"""One call: its time, and what its output has to do with the truth."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from anchor_lab.experiments.attention.instruments import quantiles
from anchor_lab.experiments.attention.jobs import Case, dense_rows
from anchor_lab.experiments.side_by_side.blocks import BLOCK, BlockMap
from anchor_lab.experiments.side_by_side.executors import Run
from anchor_ref.measure import output_error

MOST_WRONG = 0.02  # of an output whose pairs are known: bfloat16 makes 0.002 to 0.005


class HostInstruments:
    """A clock for the CPU, where nothing is queued and no cache is emptied."""

    def times(self, run: Callable[[], object]) -> list[float]:
        """Milliseconds of three calls, after one that is not counted."""
        run()
        return [self._once(run) for _ in range(3)]

    def _once(self, run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1e3

    def settle(self) -> None:
        """Nothing is left behind by a failure."""


def timed(case: Case, run: Run, instruments, blocks: BlockMap | None = None) -> dict:
    """Milliseconds of a call, its error against dense attention, and whether it did what it was
    told.

    Args:
        case: what `run` was made ready on.
        run: gives `[B, Hq, N, D]`.
        instruments: with `times`.
        blocks: what `run` was told to multiply; None for dense attention and for ours, whose
            pairs are not looked at.

    Returns:
        A row's "status", "ms", "error" (‖out − dense‖ / ‖dense‖ on `jobs.sample_rows`, mean over
        heads, dense in float64), and with `blocks` "wrong": the same against attention to these
        blocks alone.

    Raises:
        ArithmeticError: "wrong" is above `MOST_WRONG`: what ran are not these blocks.
    """
    rows, dense = case.truth
    out = run()[:, :, rows.to(case.q.device)].double()
    found = {"status": "ok", "error": _mean(output_error(out, dense))}
    if blocks is not None:
        own = dense_rows(
            case.q, case.k, case.v, rows, case.scale, blocks=blocks.whole, block=BLOCK
        )
        found["wrong"] = _mean(output_error(out, own))
        if not found["wrong"] <= MOST_WRONG:
            raise ArithmeticError(
                f"the output is {found['wrong']:.2g} away from attention to the blocks given"
            )
    return found | {"ms": quantiles(instruments.times(run))}


def _mean(errors: Tensor) -> float:
    return float(f"{statistics.fmean(errors.flatten().tolist()):.3g}")


def fastest(rows: list[dict]) -> dict | None:
    """The row with the least median time among those that have one."""
    there = [row for row in rows if row["status"] == "ok"]
    return min(there, key=lambda row: row["ms"]["median"], default=None)


def compute_dtype(device: str) -> torch.dtype:
    """bfloat16 on a CUDA device, float32 elsewhere."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
