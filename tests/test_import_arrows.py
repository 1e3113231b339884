"""Who may import whom (CONTRIBUTING.md), read from the source of every file."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tree import ROOT

REFERENCE = ROOT / "anchor_ref"
KERNELS = ROOT / "kernels" / "anchor_kernels"
LIGHT = {*sys.stdlib_module_names, "torch", "jaxtyping", "anchor_ref"}
# The plain data and the rules of the game, which the kernels share with the reference.
SHARED = {"anchor_ref.config", "anchor_ref.inputs", "anchor_ref.plan", "anchor_ref.regions"}


@dataclass(frozen=True)
class Import:
    """One imported module, and whether importing the file is enough to import it."""

    module: str
    at_once: bool

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def imports(source: str, package: str = "") -> list[Import]:
    """Every import of a file, those inside functions too; `package` resolves relative ones."""
    tree = ast.parse(source)
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -(node.level - 1) or None] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # `from anchor_ref import plan` may name a module or an object: both are on the list.
            modules = [base] if "." in base else [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [Import(module, node not in inside) for module in modules]
    return found


def faults_of_reference(source: str, top_level_modules: set[str]) -> list[str]:
    """The top level of anchor_ref: torch, jaxtyping, the standard library, its own files."""
    return [
        entry.module
        for entry in imports(source, "anchor_ref")
        if entry.package not in LIGHT
        or (
            entry.package == "anchor_ref"
            and entry.module != "anchor_ref"
            and entry.module.split(".")[1] not in top_level_modules
        )
    ]


def faults_of_upper_floors(source: str, package: str) -> list[str]:
    """Packages inside anchor_ref: nothing heavy before a function needs it, Triton never."""
    return [
        entry.module
        for entry in imports(source, package)
        if entry.package == "triton" or (entry.at_once and entry.package not in LIGHT)
    ]


def faults_of_kernels(source: str) -> list[str]:
    """anchor_kernels: of the reference the shared data only; torch, Triton, jaxtyping, itself."""
    allowed = {*LIGHT, "triton", "anchor_kernels"}
    return [
        entry.module
        for entry in imports(source, "anchor_kernels")
        if entry.package not in allowed
        or (entry.package == "anchor_ref" and entry.module not in SHARED)
    ]


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def test_the_reference_imports_torch_jaxtyping_and_itself_alone():
    files = sorted(REFERENCE.glob("*.py"))
    assert files
    names = {path.stem for path in files}
    faults = {path.name: faults_of_reference(path.read_text(), names) for path in files}
    assert not {name: found for name, found in faults.items() if found}


def test_upper_floors_import_heavy_packages_lazily():
    faults = {}
    for path in python_files(REFERENCE):
        if path.parent != REFERENCE:
            package = ".".join(path.parent.relative_to(ROOT).parts)
            found = faults_of_upper_floors(path.read_text(), package)
            if found:
                faults[str(path.relative_to(ROOT))] = found
    assert not faults


def test_kernels_share_data_with_the_reference_but_no_algorithm():
    faults = {path.name: faults_of_kernels(path.read_text()) for path in python_files(KERNELS)}
    assert not {name: found for name, found in faults.items() if found}


def test_kernels_folder_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists(), (
        "`kernels` is the import name of a package on PyPI which transformers looks for"
    )


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import numpy as np", "numpy"),
        ("def f():\n    import transformers", "transformers"),
        ("from anchor_models import capture_qkv", "anchor_models"),
        ("from anchor_ref import figures", "anchor_lab.drawing"),
        ("from .figures import draw", "anchor_lab.drawing"),
        ("from . import figures", "anchor_lab.drawing"),
        ("import anchor_kernels", "anchor_kernels"),
        (
            "try:\n    import triton.language as tl\nexcept ImportError:\n    tl = 0",
            "triton.language",
        ),
    ],
)
def test_a_fault_in_the_reference_is_found(source, fault):
    good = "import math\nfrom torch import Tensor\nfrom anchor_ref.plan import StripePlan\n"
    assert faults_of_reference(good, {"plan"}) == []
    assert faults_of_reference(good + source, {"plan"}) == [fault]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import transformers", "transformers"),
        ("class A:\n    import matplotlib.pyplot", "matplotlib.pyplot"),
        ("if True:\n    from safetensors.torch import save_file", "safetensors.torch"),
        ("def f():\n    import triton", "triton"),
    ],
)
def test_a_fault_in_an_upper_floor_is_found(source, fault):
    good = "import anchor_ref\nasync def g():\n    import transformers\n"
    assert faults_of_upper_floors(good, "anchor_lab.drawing") == []
    assert faults_of_upper_floors(good + source, "anchor_lab.drawing") == [fault]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from anchor_ref import anchor_attention", "anchor_ref.anchor_attention"),
        ("import anchor_ref", "anchor_ref"),
        ("from anchor_ref.anchor import compute_anchor", "anchor_ref.anchor"),
        ("def f():\n    from anchor_ref.measure import recall", "anchor_ref.measure"),
        ("import numpy", "numpy"),
    ],
)
def test_a_fault_in_the_kernels_is_found(source, fault):
    good = (
        "import triton\nfrom anchor_ref import plan\nfrom anchor_ref.config import AnchorConfig\n"
    )
    assert faults_of_kernels(good) == []
    assert faults_of_kernels(good + source) == [fault]


def test_importing_the_package_imports_nothing_heavy():
    packages = ["anchor_ref"] + [
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in sorted(REFERENCE.glob("*/__init__.py"))
    ]
    code = (
        f"import sys, {', '.join(packages)}\n"
        "heavy = {'transformers', 'tokenizers', 'safetensors', 'matplotlib', 'seaborn', 'IPython',"
        " 'triton', 'anchor_kernels', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
