"""Every test that needs a GPU, and compute-sanitizer on small calls: what they found.

    python -m benchmarks.gpu_report                              writes gpu_report.json and .md
    python -m benchmarks.gpu_report --pieces bfloat16 memcheck   these; others stay as they were
    python -m benchmarks.gpu_report --table                      gpu_report.md from gpu_report.json

Pieces, each in processes of its own and stopped after --limit-s seconds:

bfloat16, float16, float32, other   `pytest -m gpu`, divided by dtype
control                             memcheck of a store out of bounds, which it has to find
memcheck, racecheck, initcheck      the tool on `benchmarks.small_calls`

Exits with 1 unless every piece asked for has passed; a tool that is absent has not.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import torch

from benchmarks.attention_measure import device_facts
from benchmarks.attention_tables import markdown

HERE = Path(__file__).parent
ROOT = HERE.parent
TESTS = {
    "bfloat16": "bfloat16",
    "float16": "float16 and not bfloat16",
    "float32": "float32",
    "other": "not float16 and not float32",
}
TOOLS = {"control": "memcheck"} | {tool: tool for tool in ("memcheck", "racecheck", "initcheck")}
PIECES = (*TESTS, *TOOLS)
SANITIZER = "compute-sanitizer"


@dataclass(frozen=True)
class Finished:
    """A process that ended, or was ended: code None when its time was up."""

    code: int | None
    output: str


def finish(command: list[str], limit_s: float, **environment: str) -> Finished:
    """Run a command in the repository's root; it and all that it started end with the limit."""
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        file.seek(0)
        return Finished(code, file.read())


def run_tests(choice: str, limit_s: float, run: Callable = finish) -> dict:
    """`pytest -m gpu` on what `choice` chooses: each test with its outcome and measured values."""
    # Other files need packages that a machine with a GPU may lack.
    files = [str(path) for path in gpu_test_files()]
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "junit.xml"
        options = ["-v", "-m", "gpu", "-k", choice, "-p", "no:cacheprovider", f"--junitxml={xml}"]
        options += ["-o", "junit_family=xunit1"]  # the one that keeps what a test records
        done = run([sys.executable, "-m", "pytest", *options, *files], limit_s)
        tests = read_junit(xml.read_text()) if xml.exists() else []
    passed = sum(test["outcome"] == "passed" for test in tests)
    if done.code is None:
        status = "timed out"
    else:
        status = "passed" if done.code == 0 and passed == len(tests) > 0 else "failed"
    return {"status": status, "message": last_line(done.output), "tests": tests}


def gpu_test_files() -> list[Path]:
    """Test files that hold a test marked `gpu`."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path.relative_to(ROOT) for path in found if "mark.gpu" in path.read_text()]


def read_junit(text: str) -> list[dict]:
    """Name, outcome, seconds, recorded properties and first line of the failure of each test."""
    tests = []
    for case in ElementTree.fromstring(text).iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        message = (bad[0].get("message") or "").strip() if bad else ""
        tests.append(
            {
                "name": case.get("name"),
                "outcome": bad[0].tag if bad else "passed",
                "seconds": round(float(case.get("time")), 2),
                "message": message.splitlines()[0][:300] if message else "",
                **{entry.get("name"): entry.get("value") for entry in case.iter("property")},
            }
        )
    return tests


def run_tool(piece: str, limit_s: float, run: Callable = finish) -> dict:
    """One tool of compute-sanitizer on the small calls, after these have run by themselves."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        places = "PATH, CUDA_HOME, CUDA_PATH, /usr/local/cuda* and NVIDIA's wheels"
        return {"status": "not run", "message": f"{SANITIZER} is in none of {places}"}
    calls = [sys.executable, "-m", "benchmarks.small_calls"]
    calls += ["--plant"] if piece == "control" else []
    started = time.monotonic()
    # Also compiles the kernels, which takes longer under the tool.
    alone = run(calls, limit_s)
    if alone.code != 0:
        return {"status": "failed", "message": f"without the tool: {last_line(alone.output)}"}
    left_s = max(1.0, limit_s - (time.monotonic() - started))
    command = [str(sanitizer), "--tool", TOOLS[piece], "--target-processes", "application-only"]
    done = run([*command, *calls], left_s, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return {"status": judge(piece, done), **read_sanitizer(done.output)}


def find_sanitizer() -> Path | None:
    """compute-sanitizer on PATH, in a CUDA toolkit, or in a wheel of NVIDIA's."""
    on_path = shutil.which(SANITIZER)
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(home) / "bin" for home in homes if home]
    places += [path / "bin" for path in sorted(Path("/usr/local").glob("cuda*"), reverse=True)]
    wheels = importlib.util.find_spec("nvidia")
    in_wheels = [
        path
        for folder in (wheels.submodule_search_locations if wheels else [])
        for path in Path(folder).rglob(SANITIZER)
    ]
    found = [Path(on_path)] if on_path else []
    found += [place / SANITIZER for place in places] + in_wheels
    return next((path for path in found if os.access(path, os.X_OK) and path.is_file()), None)


def judge(piece: str, done: Finished) -> str:
    """Passed is what ran to its end and was summed up without an error; control, with one."""
    if done.code is None:
        return "timed out"
    counted = [int(x) for x in re.findall(r"SUMMARY: (\d+) (?:error|hazard)", done.output)]
    if not counted:
        return "not run"
    if piece == "control":
        return "passed" if any(counted) else "failed"
    sound = done.code == 0 and "all calls done" in done.output
    return "passed" if sound and not any(counted) else "failed"


def read_sanitizer(output: str) -> dict:
    """The tool's summary, without one its first complaint, and more of its complaints."""
    lines = [line.lstrip("= ").strip() for line in output.splitlines() if line.startswith("====")]
    summary = [line for line in lines if "SUMMARY" in line]
    others = [x for x in lines if x and "SUMMARY" not in x and x != SANITIZER.upper()]
    first = others[0] if others else last_line(output)
    return {"message": "; ".join(summary) or f"no summary: {first}", "complaints": others[:20]}


def last_line(output: str) -> str:
    """The last line that says something."""
    return next((line.strip()[:300] for line in reversed(output.splitlines()) if line.strip()), "")


def kernels_version() -> str:
    """The first digits of the SHA-256 of the kernels' sources: which code it was."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "kernels" / "anchor_kernels").glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def run_piece(piece: str, limit_s: float, date: str) -> dict:
    """What a piece found, on what, and how long it took."""
    started = time.monotonic()
    found = run_tests(TESTS[piece], limit_s) if piece in TESTS else run_tool(piece, limit_s)
    about = {"date": date, **device_facts(), "python": platform.python_version()}
    seconds = round(time.monotonic() - started)
    return {**about, "kernels": kernels_version(), "seconds": seconds, **found}


def table(results: dict[str, dict]) -> str:
    """The report as Markdown."""
    header = ["piece", "status", "tests", "seconds", "what it says"]
    pieces = [
        [name, found["status"], _count(found), str(found["seconds"]), _safe(found["message"])]
        for name, found in results.items()
    ]
    names = ("date", "device", "driver", "cuda", "torch", "triton", "python", "kernels")
    machines: dict[tuple, list[str]] = {}
    for piece, found in results.items():
        machines.setdefault(tuple(found[name] for name in names), []).append(piece)
    where = [[*about, ", ".join(pieces)] for about, pieces in machines.items()]
    tests = [test for found in results.values() for test in found.get("tests", [])]
    parts = [
        "# The kernels on a GPU: tests and sanitizer",
        "Made by `python -m benchmarks.gpu_report`. Tests are those marked `gpu`; the sanitizer "
        "watches `benchmarks.small_calls`, each tensor an allocation of its own. `kernels` is the "
        "beginning of the SHA-256 of their sources.",
        markdown([*names, "pieces"], where),
        markdown(header, pieces),
        *(f"Not run: {name}." for name in PIECES if name not in results),
        _complaints(results),
        _failures(tests),
        _outcomes(tests),
        _values(
            tests,
            "error_ratio",
            "Error of the kernels over what is allowed",
            "Largest error against float64, over that of the same low-precision arithmetic in "
            "eager PyTorch plus rounding; at most 1.",
        ),
        _values(
            tests,
            "otherwise_than_float64",
            "Keys decided otherwise than in float64",
            "Of all candidates of all heads and groups; allowed is what rounding can change.",
        ),
        _values(tests, "mib", "Memory beyond inputs and output, MiB", "At most 1024."),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _count(found: dict) -> str:
    return str(len(found["tests"])) if "tests" in found else "–"


def _safe(text: str) -> str:
    return text.replace("|", "\\|")


def _complaints(results: dict[str, dict]) -> str:
    parts = [
        f"## What {name} complains of\n\n```\n" + "\n".join(found["complaints"]) + "\n```"
        for name, found in results.items()
        if found["status"] == "failed" and found.get("complaints")
    ]
    return "\n\n".join(parts)


def _failures(tests: list[dict]) -> str:
    rows = [
        [f"`{test['name']}`", test["outcome"], _safe(test["message"])]
        for test in tests
        if test["outcome"] != "passed"
    ]
    return "## Not passed\n\n" + markdown(["test", "outcome", "message"], rows) if rows else ""


def _outcomes(tests: list[dict]) -> str:
    """One row for each test function."""
    functions: dict[str, list[dict]] = {}
    for test in tests:
        functions.setdefault(test["name"].partition("[")[0], []).append(test)
    rows = [
        [
            f"`{name}`",
            str(sum(test["outcome"] == "passed" for test in cases)),
            str(sum(test["outcome"] != "passed" for test in cases)),
            f"{sum(test['seconds'] for test in cases):.0f}",
        ]
        for name, cases in functions.items()
    ]
    header = ["test", "passed", "not passed", "seconds"]
    return "## Tests\n\n" + markdown(header, rows) if rows else ""


def _values(tests: list[dict], measured: str, title: str, text: str) -> str:
    """What the tests recorded under one name: a row for each case, a column for each dtype."""
    columns = [name for name in TESTS if name != "other"]
    rows: dict[str, dict[str, str]] = {}
    for test in tests:
        if measured in test:
            name, _, case = test["name"].rstrip("]").partition("[")
            case, _, dtype = case.rpartition("-")
            rows.setdefault(case or name.removeprefix("test_"), {})[dtype] = test[measured]
    if not rows:
        return ""
    entries = [[name, *(row.get(dtype, "–") for dtype in columns)] for name, row in rows.items()]
    return f"## {title}\n\n{text}\n\n{markdown(['case', *columns], entries)}"


def write(results: dict[str, dict], path: Path) -> None:
    """JSON, and the table beside it."""
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(results))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=list(PIECES))
    parser.add_argument("--out", type=Path, default=HERE / "gpu_report.json")
    parser.add_argument("--limit-s", type=float, default=450, help="of each piece")
    parser.add_argument("--table", action="store_true", help="write --out as .md, run nothing")
    parser.add_argument("--date", default=f"{datetime.now(UTC):%Y-%m-%d}")
    options = parser.parse_args(arguments)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.table:
        write(results, options.out)
        return 0
    if not torch.cuda.is_available():
        print("benchmarks.gpu_report needs a CUDA device, and torch finds none.", file=sys.stderr)
        return 2
    for piece in options.pieces:
        print(f"{piece} ...", flush=True)
        found = run_piece(piece, options.limit_s, options.date)
        results[piece] = found
        results = {name: results[name] for name in PIECES if name in results}
        write(results, options.out)
        print(f"{piece}: {found['status']}, {found['seconds']} s, {found['message']}", flush=True)
    return int(any(results[piece]["status"] != "passed" for piece in options.pieces))


if __name__ == "__main__":
    sys.exit(main())
