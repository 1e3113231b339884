"""The wheel holds what it should; the files that name dependencies agree with each other."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.tree import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ["3.11", "3.12", "3.13"]


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, except the extra that names the others."""
    extras = PROJECT["optional-dependencies"]
    named = [line for name, lines in extras.items() if name != "all" for line in lines]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *named]]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(pin.name) for pin in found]
    assert len(set(names)) == len(names), "a package is pinned twice"
    return dict(zip(names, found, strict=True))


def pinned_version(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", f"{pin} is not exact"
    return Version(specifier.version)


# Versions


def test_all_is_every_other_extra():
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(extras) - {"all"}


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_requirement_is_a_range_that_holds_its_pin(requirement):
    assert not any(one.operator in ("==", "===") for one in requirement.specifier)
    pin = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned_version(pin))


@pytest.mark.parametrize("pin", pins().values(), ids=lambda pin: pin.name)
def test_pin_is_exact_and_fits_every_machine(pin):
    assert pinned_version(pin).local is None, "a local version exists on one index only"
    assert not pin.name.startswith(("nvidia-", "cuda-")), "torch's CUDA build pins these itself"


def test_triton_is_asked_for_on_linux_only():
    for triton in (*[r for r in requirements() if r.name == "triton"], pins()["triton"]):
        assert triton.marker.evaluate({"sys_platform": "linux"})
        assert not triton.marker.evaluate({"sys_platform": "darwin"})


def test_what_is_installed_is_pinned():
    """The tree of every requirement, walked through the packages that are installed here."""
    from importlib.metadata import distribution

    pinned, missing, seen = pins(), set(), set()
    left = [(requirement, frozenset()) for requirement in requirements()]
    while left:
        requirement, extras = left.pop()
        wanted = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker and not any(requirement.marker.evaluate(env) for env in wanted):
            continue
        name = canonicalize_name(requirement.name)
        if (name, *sorted(requirement.extras)) in seen or name.startswith(("nvidia-", "cuda-")):
            continue
        seen.add((name, *sorted(requirement.extras)))
        missing |= {name} - set(pinned)
        needs = distribution(name).requires or []
        left += [(Requirement(need), frozenset(requirement.extras)) for need in needs]
    assert not missing


def test_what_is_installed_runs_on_the_oldest_python_promised():
    """Also on its first release: Debian 12 has 3.11.2, and some packages want 3.11.5."""
    oldest = f"{PYTHONS[0]}.0"
    refused = [
        f"{dist.name} {dist.version}"
        for dist in distributions()
        if canonicalize_name(dist.name) in pins()
        and not SpecifierSet(dist.metadata["Requires-Python"] or "").contains(oldest)
    ]
    assert not refused


def test_python_versions_agree():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(20) if allowed.contains(f"3.{minor}.1")] == PYTHONS
    classifiers = [line.split(" :: ")[-1] for line in PROJECT["classifiers"]]
    assert [name for name in classifiers if re.fullmatch(r"3\.\d+", name)] == PYTHONS
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS


def test_conda_environment_adds_no_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, last = environment["dependencies"]
    assert conda == [f"python {PROJECT['requires-python']}", "pip"]
    assert last == {"pip": ["-c constraints.txt", "-e .[all]"]}
    assert environment["name"] == PROJECT["name"]


# Commands, plug-ins and what others load by themselves: nobody imports them.
NOT_IMPORTED = {
    "beartype": "named in tests/conftest.py",
    "ipykernel": "runs the notebooks' cells",
    "jupyterlab": "a command",
    "myst-nb": "an extension of Sphinx",
    "nbval": "a plug-in of pytest",
    "pyarrow": "pandas writes Parquet with it",
    "pytest-xdist": "a plug-in of pytest",
    "ruff": "a command",
    "setuptools": "builds the wheel",
    "sphinx-book-theme": "a theme of Sphinx",
}
# Rivals that an experiment measures where somebody has put them: for GPUs alone, and not needed.
NOT_DECLARED = {"cutlass", "flash-attn", "flashinfer"}
OWN = {path.name for path in (*ROOT.glob("anchor_*"), *ROOT.glob("kernels/anchor_*"))}


def imported() -> set[str]:
    """Distributions of every module that a file of the repository imports, at any depth."""
    known, found = packages_distributions(), set()
    here = {*sys.stdlib_module_names, *OWN, "tests", "tools", "training", "standalone"}
    files = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in TREE]
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module]
        else:
            continue
        tops = {module.split(".")[0] for module in modules} - here
        found |= {canonicalize_name(name) for top in tops for name in known.get(top, [top])}
    return found


TREE = {*OWN, "kernels", "docs", "tests", "tools", "training", "standalone"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert imported() - declared == NOT_DECLARED
    assert declared - imported() == set(NOT_IMPORTED)


# Citation, licence, continuous integration


def test_citation_names_paper_and_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert citation["preferred-citation"]["url"] == PROJECT["urls"]["Paper"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_ci_runs_what_a_reader_runs():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8").splitlines()


# The wheel


def sources() -> set[str]:
    """Every file that the wheel must hold, as it is named there."""
    kinds = (
        "*.py",
        "*.j2",
        "*.css",
        "*.ipynb",
        "*.toml",
        "prose.txt",
        "model/*",
        "captured/*",
        "integration/*.json",
    )
    return {
        path.relative_to(package.parent).as_posix()
        for package in (*ROOT.glob("anchor_*"), *ROOT.glob("kernels/anchor_*"))
        for kind in kinds
        for path in package.rglob(kind)
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the tree and nothing old in it is packed."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in (
        "anchor_ref",
        "anchor_models",
        "anchor_lab",
        "kernels",
        "training",
        "tests",
        "tools",
    ):
        if (ROOT / name).exists():
            ignored = shutil.ignore_patterns("__pycache__", "data", "runs")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    built = subprocess.run([*pip, *options, str(copy)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_packages_the_model_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == sources()


def test_wheel_imports_in_a_fresh_interpreter(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
import sys, torch, anchor_ref
from anchor_models import bundled_model_path
assert anchor_ref.__file__.startswith(sys.argv[1]), anchor_ref.__file__
assert (bundled_model_path() / "model.safetensors").stat().st_size > 1_000_000
q = torch.randn(1, 2, 10, 8)
print(*anchor_ref.anchor_attention(q, q, q).shape)
"""
    site = str(tmp_path / "site")
    run = subprocess.run(
        [sys.executable, "-c", code, site],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": site},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["1", "2", "10", "8"]
