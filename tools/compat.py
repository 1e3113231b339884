"""The integration's tests on another transformers than the pinned one, beside it.

    python -m tools.compat                 # the last of the 4.x line
    python -m tools.compat 4.57.3

That transformers and what it needs in other versions go into out/compat/, in front of the
environment that runs this: torch and the rest are the same, and nothing installed changes.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAST_4 = "4.57.6"
TESTS = [
    f"tests/anchor_models/{name}"
    for name in ("integration", "test_interface.py", "test_capture.py")
]
# transformers 4 takes these below what constraints.txt has.
WITH = ("huggingface-hub>=0.34,<1", "tokenizers>=0.22,<=0.23.0")


def install(version: str) -> Path:
    """The folder with that transformers, installed unless it is there already."""
    folder = ROOT / "out" / "compat" / version
    if not (folder / "transformers").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
        # Their own requirements are in the environment, in versions that serve both.
        packages = [f"transformers=={version}", *WITH]
        subprocess.run([*command, "--no-deps", "--target", str(folder), *packages], check=True)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Variables under which Python finds what is in the folder first."""
    before = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [before])])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", nargs="?", default=LAST_4, help=f"default: {LAST_4}")
    version = parser.parse_args().version
    variables = environment(install(version))
    found = [sys.executable, "-c", "import transformers; print(transformers.__version__)"]
    run = subprocess.run(found, env=variables, capture_output=True, text=True, check=True)
    if run.stdout.strip() != version:
        print(f"transformers must be {version} here, got {run.stdout.strip()}", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "pytest", "-q", *TESTS]
    return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
