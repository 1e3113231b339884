"""Every test that needs a GPU, and the kernels under tools that watch memory: what they found.

    python -m anchor_verify.gpu_report                              writes gpu_report.json and .md
    python -m anchor_verify.gpu_report --pieces bfloat16 memcheck   these; others stay as they were
    python -m anchor_verify.gpu_report --table                      gpu_report.md from gpu_report.json

Pieces, each in processes of its own and stopped after --limit-s seconds:

bfloat16, float16, float32, other   `pytest -m gpu`, divided by dtype
memcheck, racecheck, initcheck      compute-sanitizer on `anchor_verify.small_calls`
consan                              Triton's Concurrency Sanitizer on some of them
memcheck-store, consan-race, ...    the same tool on a kernel of `anchor_verify.small_controls`:
                                    does it see what it should, and nothing else?

racecheck does not see that warps with tasks of their own wait for each other: it complains of
the faultless `handover` as of its twin without the wait. So the kernel that works like this is
left out of racecheck and shown to the Concurrency Sanitizer, which tells the two apart.

Exits with 1 unless every piece asked for has passed; a tool that is absent has not.
"""

import argparse
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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from anchor_lab.experiments.attention.instruments import device_facts, kernels_version
from anchor_lab.experiments.attention.page import markdown
from anchor_lab.experiments.command import lacks_cuda

HERE = Path("results") / "verify"
ROOT = HERE.parent
TESTS = {
    "bfloat16": "bfloat16",
    "float16": "float16 and not bfloat16",
    "float32": "float32",
    "other": "not float16 and not float32",
}
SANITIZER, CONSAN = "compute-sanitizer", "consan"
BY_BARRIERS = "sparse_hopper"  # the kernel whose warps have tasks of their own


@dataclass(frozen=True)
class Watch:
    """A tool, the arguments of `anchor_verify.small_calls`, and whether the tool has to complain."""

    tool: str
    arguments: tuple[str, ...] = ()
    finds: bool = False
    options: tuple[str, ...] = ()


def _control(tool: str, name: str, finds: bool = True) -> Watch:
    return Watch(tool, ("--control", name), finds)


# Compiling its ledger takes the Concurrency Sanitizer a minute and more for each variant of a
# kernel: here two of the kernel that racecheck cannot judge, and every way through them.
CONSAN_CALLS = ("--calls", "ragged", "every key", "packed", "contiguous", "done again")
TOOLS = {
    "memcheck-store": _control("memcheck", "store"),
    "memcheck": Watch("memcheck"),
    "racecheck-copy": _control("racecheck", "copy"),
    "racecheck-handover": _control("racecheck", "handover"),
    "racecheck": Watch(
        "racecheck", options=("--kernel-name-exclude", f"kernel_substring={BY_BARRIERS}")
    ),
    "consan-copy": _control(CONSAN, "copy"),
    "consan-race": _control(CONSAN, "race"),
    "consan-unwaited": _control(CONSAN, "unwaited"),
    "consan-handover": _control(CONSAN, "handover", finds=False),
    "consan": Watch(CONSAN, CONSAN_CALLS),
    "initcheck-unwritten": _control("initcheck", "unwritten"),
    "initcheck": Watch("initcheck"),
}
PIECES = (*TESTS, *TOOLS)


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


def run_tool(watch: Watch, limit_s: float, run: Callable = finish) -> dict:
    """One tool on small calls, after these have run by themselves."""
    sanitizer = find_sanitizer() if watch.tool != CONSAN else None
    if sanitizer is None and watch.tool != CONSAN:
        places = "PATH, CUDA_HOME, CUDA_PATH, /usr/local/cuda* and NVIDIA's wheels"
        return {"status": "not run", "message": f"{SANITIZER} is in none of {places}"}
    calls = [sys.executable, "-m", "anchor_verify.small_calls", *watch.arguments]
    started = time.monotonic()
    if watch.tool == CONSAN:
        done = run(calls, limit_s, TRITON_INSTRUMENTATION_MODE=CONSAN)
        return {"status": judge(watch, done), **read_consan(done.output)}
    # Also compiles the kernels, which takes longer under the tool.
    alone = run(calls, limit_s)
    # A fault may end the calls even where no tool watches them.
    if alone.code != 0 and not watch.finds:
        return {"status": "failed", "message": f"without the tool: {last_line(alone.output)}"}
    left_s = max(1.0, limit_s - (time.monotonic() - started))
    command = [str(sanitizer), "--tool", watch.tool, *watch.options]
    command += ["--target-processes", "application-only"]
    done = run([*command, *calls], left_s, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return {"status": judge(watch, done), **read_sanitizer(done.output)}


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


def judge(watch: Watch, done: Finished) -> str:
    """Whether a tool ran to its end and found what it had to: faults in a control, else none."""
    if done.code is None:
        return "timed out"
    sound = done.code == 0 and "all calls done" in done.output
    if watch.tool == CONSAN:
        counted = [len(_assertions(done.output))]
        if not any(counted) and not sound:
            return "failed"  # it ended of something else
    else:
        counted = [int(x) for x in re.findall(r"SUMMARY: (\d+) (?:error|hazard)", done.output)]
        if not counted:
            return "not run"
    if watch.finds:
        return "passed" if any(counted) else "failed"
    return "passed" if sound and not any(counted) else "failed"


def _assertions(output: str) -> list[str]:
    """What failed in a kernel under the Concurrency Sanitizer, each once, most frequent first."""
    found = Counter(re.findall(r"Assertion `(.*?)` failed", output))
    return [f"{text} ({count} threads)" for text, count in found.most_common()]


def read_consan(output: str) -> dict:
    """Its assertions, or the last line."""
    found = _assertions(output)
    return {"message": found[0] if found else last_line(output), "complaints": found[:20]}


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


def run_piece(piece: str, limit_s: float, date: str) -> dict:
    """What a piece found, on what, and how long it took."""
    started = time.monotonic()
    found = run_tests(TESTS[piece], limit_s) if piece in TESTS else run_tool(TOOLS[piece], limit_s)
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
        "# The kernels on a GPU: tests and sanitizers",
        "Made by `python -m anchor_verify.gpu_report`. Tests are those marked `gpu`; "
        "compute-sanitizer watches `anchor_verify.small_calls`, each tensor an allocation of its "
        "own. `kernels` is the beginning of the SHA-256 of their sources.",
        "`memcheck-store` and the like are controls: the tool on a kernel with one fault, passed "
        "if it complains; only `consan-handover` has none, and passes without complaint. "
        "racecheck complains of `handover` too, so it cannot judge warps that wait for each "
        f"other at barriers: `{BY_BARRIERS}` is left out of it and shown to Triton's Concurrency "
        "Sanitizer, `consan`, which also finds that kernel's waits missing once they are taken "
        "out (`consan-unwaited`).",
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
    if lacks_cuda("gpu_report"):
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
