"""On what an experiment ran: device, versions, code; recorded with the numbers."""

import hashlib
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from anchor_models.models import device_name


def environment(device: str | torch.device, packages: Iterable[str] = ("torch",)) -> dict:
    """Date, device and versions.

    Args:
        device: where the work is done; of the CPU its name is recorded, as of a GPU.
        packages: whose versions are recorded, each under its own name.
    """
    device = torch.device(device)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": _processor() if device.type == "cpu" else device_name(device),
        **{package: _version(package) for package in packages},
    }


def _processor() -> str:
    """The CPU's name where the system tells it, else its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    # torch says which build it is ("+cpu"), its metadata does not everywhere.
    return str(torch.__version__) if package == "torch" else version(package)


def peak_memory(process: int | str = "self") -> int | None:
    """Most bytes that a process has held so far, by its id; None where the system does not tell.

    `resource.getrusage` would start at the peak of the process that began this one.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def cuda_facts() -> dict:
    """Date, the current CUDA device, and what drives it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.check_output(query, text=True).splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "triton": version("triton"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver,
    }


def lacks_cuda(program: str) -> bool:
    """Whether torch finds no CUDA device, which a line on stderr then says."""
    if torch.cuda.is_available():
        return False
    print(f"{program} needs a CUDA device, and torch finds none.", file=sys.stderr)
    return True


def kernels_version() -> str:
    """`sources_version` of the kernels."""
    found = find_spec("anchor_kernels")
    return sources_version(Path(found.origin).parent, ["*.py"])


def sources_version(folder: Path, patterns: Iterable[str]) -> str:
    """The first digits of a SHA-256 of source files, comments included: which code it was.

    Between two releases the version stays the same, and numbers of corrected code must not be
    added to those of the wrong one.

    Args:
        folder: where the files lie; their names below it count too.
        patterns: which files, as `Path.glob` takes them.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
