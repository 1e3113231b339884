"""Every test that needs a GPU, and the kernels under tools that watch memory: what they found.

    python -m anchor_verify.gpu_report                              gpu_report.json and .md
    python -m anchor_verify.gpu_report --pieces bfloat16 memcheck   others stay as they were
    python -m anchor_verify.gpu_report --jobs 6                     six pieces at a time
    python -m anchor_verify.gpu_report --table                      .md from gpu_report.json

Run in the repository's root. Pieces, each in processes of its own and stopped after --limit-s
seconds:

bfloat16, float16, float32, other   `pytest -m gpu`, divided by dtype
memcheck, racecheck, initcheck      compute-sanitizer on `anchor_verify.small_calls`
consan                              Triton's Concurrency Sanitizer on some of them
memcheck-store, consan-race, ...    the same tool on a kernel of `anchor_verify.small_controls`:
                                    does it see what it should, and nothing else?

racecheck does not see that warps with tasks of their own wait for each other: it complains of
the faultless `handover` as of its twin without the wait. So the kernels that work like this are
left out of racecheck, and stage 3's is shown to the Concurrency Sanitizer, which tells the two
apart; for stage 1's it compiles too long (`small_calls`). cuDNN's
attention works like this too, and initcheck does not see what it writes: the one call that needs
it is left out of both, and its merge is a call of its own.

Exits with 1 unless every piece asked for has passed; a tool that is absent has not.
"""

import argparse
import importlib.util
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
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from anchor_lab.experiments.environment import cuda_facts, kernels_version, lacks_cuda
from anchor_lab.experiments.experiment import RESULTS
from anchor_lab.experiments.page import render
from anchor_lab.experiments.store import Store, read, write_whole

TESTS = {
    "bfloat16": "bfloat16",
    "float16": "float16 and not bfloat16",
    "float32": "float32",
    "other": "not float16 and not float32",
}
SANITIZER, CONSAN = "compute-sanitizer", "consan"
BY_BARRIERS = "hopper"  # in the names of kernels whose warps have tasks of their own
BY_CUDNN = ("--but", "long tail")  # the call in which cuDNN has a part


@dataclass(frozen=True)
class Watch:
    """A tool, the arguments of `small_calls`, whether the tool has to complain, its options."""

    tool: str
    arguments: tuple[str, ...] = ()
    finds: bool = False
    options: tuple[str, ...] = ()


def _control(tool: str, name: str, finds: bool = True) -> Watch:
    return Watch(tool, ("--control", name), finds)


# Compiling its ledger takes the Concurrency Sanitizer a minute and more for each variant of a
# kernel: here two of the kernel that racecheck cannot judge, and every way through them.
CONSAN_CALLS = ("--calls", "ragged", "every key", "packed", "contiguous", "tail", "done again")
TOOLS = {
    "memcheck-store": _control("memcheck", "store"),
    "memcheck": Watch("memcheck"),
    "racecheck-copy": _control("racecheck", "copy"),
    "racecheck-handover": _control("racecheck", "handover"),
    "racecheck-cudnn": _control("racecheck", "cudnn"),
    "racecheck": Watch(
        "racecheck", BY_CUDNN, options=("--kernel-name-exclude", f"kernel_substring={BY_BARRIERS}")
    ),
    "consan-copy": _control(CONSAN, "copy"),
    "consan-race": _control(CONSAN, "race"),
    "consan-unwaited": _control(CONSAN, "unwaited"),
    "consan-handover": _control(CONSAN, "handover", finds=False),
    "consan": Watch(CONSAN, CONSAN_CALLS),
    "initcheck-unwritten": _control("initcheck", "unwritten"),
    "initcheck-cudnn": _control("initcheck", "cudnn"),
    "initcheck": Watch("initcheck", BY_CUDNN),
}
# What a fault in a kernel is called. The host's complaints are counted too: no memory, say.
FAULTS = r"Invalid __\w+__|Uninitialized __\w+__|Race reported"
PIECES = (*TESTS, *TOOLS)
DTYPES = [name for name in TESTS if name != "other"]
# What a piece ran on, as far as the page tells.
ABOUT = ("date", "device", "driver", "cuda", "torch", "triton", "python", "kernels")


@dataclass(frozen=True)
class Finished:
    """A process that ended, or was ended: code None when its time was up."""

    code: int | None
    output: str


def finish(command: list[str], limit_s: float, **environment: str) -> Finished:
    """Run a command; it and all that it started end with the limit."""
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(
            command,
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
    """Test files of the repository that hold a test marked `gpu`."""
    found = sorted(Path("tests").rglob("test_*.py"))
    return [path for path in found if "mark.gpu" in path.read_text(encoding="utf-8")]


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
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if folder]
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    homes += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    folders += [Path(home) / "bin" for home in homes if home]
    if wheels := importlib.util.find_spec("nvidia"):
        for folder in wheels.submodule_search_locations:
            folders += [path.parent for path in Path(folder).rglob(SANITIZER)]
    found = shutil.which(SANITIZER, path=os.pathsep.join(map(str, folders)))
    return Path(found) if found else None


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
        its_own = watch.tool == CONSAN or re.search(FAULTS, done.output)
        return "passed" if any(counted) and its_own else "failed"
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


def run_piece(piece: str, limit_s: float) -> dict:
    """What a piece found, on what, and how long it took."""
    started = time.monotonic()
    found = run_tests(TESTS[piece], limit_s) if piece in TESTS else run_tool(TOOLS[piece], limit_s)
    about = {**cuda_facts(), "python": platform.python_version(), "kernels": kernels_version()}
    return {"piece": piece, **about, "seconds": round(time.monotonic() - started), **found}


def page(results: dict) -> str:
    """The report as Markdown, of what `store.read` finds in its file."""
    pieces = sorted(results["rows"], key=lambda found: PIECES.index(found["piece"]))
    machines: dict[tuple, list[str]] = {}
    for found in pieces:
        machines.setdefault(tuple(found[name] for name in ABOUT), []).append(found["piece"])
    tests = [test for found in pieces for test in found.get("tests", [])]
    functions: dict[str, list[dict]] = {}
    for test in tests:
        functions.setdefault(test["name"].partition("[")[0], []).append(test)
    recorded = ("error_ratio", "otherwise_than_float64", "mib")
    return render(
        "gpu_report.md.j2",
        Path(__file__).parent,
        about=ABOUT,
        by_barriers=BY_BARRIERS,
        dtypes=DTYPES,
        functions=functions,
        machines=[[*about, ", ".join(names)] for about, names in machines.items()],
        not_passed=[test for test in tests if test["outcome"] != "passed"],
        not_run=[name for name in PIECES if name not in {found["piece"] for found in pieces}],
        pieces=pieces,
        **{name: by_case(tests, name) for name in recorded},
    )


def by_case(tests: list[dict], name: str) -> list[list[str]]:
    """What tests recorded under a name: case, then its value for each dtype."""
    rows: dict[str, dict[str, str]] = {}
    for test in tests:
        if name in test:
            function, _, case = test["name"].rstrip("]").partition("[")
            case, _, dtype = case.rpartition("-")
            rows.setdefault(case or function.removeprefix("test_"), {})[dtype] = test[name]
    return [[case, *(row.get(dtype, "–") for dtype in DTYPES)] for case, row in rows.items()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = RESULTS / "verify" / "gpu_report.json"
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=list(PIECES))
    parser.add_argument("--out", type=Path, default=default, help=f"default: {default}")
    parser.add_argument("--limit-s", type=float, default=450, help="of each piece")
    parser.add_argument("--jobs", type=int, default=1, help="pieces that run at the same time")
    parser.add_argument("--table", action="store_true", help="write --out as .md, run nothing")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    all_passed = True
    if not options.table:
        if lacks_cuda("anchor_verify.gpu_report"):
            return 2
        store = Store(options.out, ["piece"], settings={})
        # Each piece is a process of its own; a thread only waits for it.
        with ThreadPoolExecutor(options.jobs) as pool:
            running = [pool.submit(run_piece, piece, options.limit_s) for piece in options.pieces]
            for done in as_completed(running):
                found = done.result()
                store.add([found])
                about = f"{found['status']}, {found['seconds']} s, {found['message']}"
                print(f"{found['piece']}: {about}", flush=True)
                all_passed &= found["status"] == "passed"
    write_whole(options.out.with_suffix(".md"), page(read(options.out)))
    return int(not all_passed)


if __name__ == "__main__":
    sys.exit(main())
