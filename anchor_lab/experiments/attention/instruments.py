"""Time, memory and error of one method on one set of inputs, on the current CUDA device."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor

from anchor_lab.experiments.attention.jobs import Case, Job, floor_ms, flop, size
from anchor_ref.measure import output_error

LEAST_REPEATS, MOST_REPEATS = 3, 50
MIB = 2**20


def repeats_for(once_s: float, budget_s: float) -> int:
    """As many calls as fit into the budget, within what a quantile needs and what it gains by."""
    return min(MOST_REPEATS, max(LEAST_REPEATS, int(budget_s / max(once_s, 1e-9))))


def quantiles(times: list[float]) -> dict:
    """Median, 10th and 90th percentile and number of repeats."""
    sample = torch.tensor(times, dtype=torch.float64)
    low, middle, high = sample.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    return {
        "median": _digits(middle),
        "p10": _digits(low),
        "p90": _digits(high),
        "repeats": len(times),
    }


def _digits(x: float | Tensor) -> float:
    """Four digits: more would only be noise in the committed file."""
    return float(f"{float(x):.4g}")


class CudaInstruments:
    """Clock, memory meter and reference rates of the current CUDA device."""

    def __init__(self, budget_s: float):
        self.budget_s = budget_s  # of the repeats of one measurement
        self.flush = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")

    def times(self, run: Callable[[], object]) -> list[float]:
        """Milliseconds of each repeat, after a call that compiles and one that sets how many."""
        run()
        repeats = repeats_for(self._once(run) / 1e3, self.budget_s)
        return [self._once(run) for _ in range(repeats)]

    def _once(self, run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Empties the L2 cache, and keeps the device busy while the host queues the call.
        self.flush.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def peak(self, run: Callable[[], object]) -> tuple[object, int]:
        """What one call returns, and the bytes it needs above what is there and a tensor returned.

        What is no tensor, as a stage's state, counts as needed.
        """
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        own = size(result) if isinstance(result, Tensor) else 0
        return result, torch.cuda.max_memory_allocated() - before - own

    def settle(self) -> None:
        """Give memory back after a failure. Raises when the device no longer answers."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def rates(self) -> dict:
        """bf16 matrix product of 8192³ on random data, and a copy of 2 GiB."""
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        product = quantiles(self.times(lambda: a @ b))["median"]
        del a, b
        source = torch.zeros(2048 * MIB, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        copy = quantiles(self.times(lambda: target.copy_(source)))["median"]
        return {
            "matrix_tflops": _digits(2 * 8192**3 / product / 1e9),
            "copy_tbs": _digits(2 * size(source) / copy / 1e9),
        }


def measure_job(job: Job, case: Case, instruments, rates: dict[str, float]) -> dict:
    """Everything about one method on one case."""
    times = quantiles(instruments.times(job.run))
    # After the timing: the first call of a kernel may need memory that later ones do not.
    result, extra = instruments.peak(job.run)
    work = flop(job.pairs, job.pooled, case.q.shape[3])
    least = floor_ms(work, job.bytes, **rates)
    found = {
        "status": "ok",
        "ms": times,
        "pairs": job.pairs,
        "kept": _digits(job.pairs / case.dense_pairs),
        "pooled": job.pooled,
        "flop": work,
        "bytes": job.bytes,
        "tflops": _digits(work / times["median"] / 1e9),
        "floor_ms": _digits(least),
        "floor_ratio": _digits(times["median"] / least),
        "extra_mib": round((extra + job.held_bytes) / MIB, 1),
        "input_output_mib": round(size(case.q, case.q, case.k, case.v) / MIB, 1),
        "heads": [case.q.shape[0], case.q.shape[1], case.k.shape[1], case.q.shape[3]],
    }
    if job.complete:
        rows, truth = case.truth
        errors = output_error(result[:, :, rows.to(result.device)].double(), truth)
        found |= {
            "error_mean": _digits(errors.mean()),
            "error_worst_head": _digits(errors.max()),
        }
    return found | ({"note": job.note} if job.note else {})


def attempt(measured: Callable[[], dict]) -> dict:
    """Its result, or what kept it from having one."""
    try:
        return measured()
    except torch.OutOfMemoryError as error:
        return {"status": "out of memory", "message": _first_line(error)}
    except Exception as error:
        return {"status": "error", "message": f"{type(error).__name__}: {_first_line(error)}"}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
