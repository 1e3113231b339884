"""Who may import whom (CONTRIBUTING.md), read from the source of every file."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.tree import ROOT

ROOMS = {
    name: ROOT / folder / name
    for name, folder in {
        "anchor_ref": "",
        "anchor_kernels": "kernels",
        "anchor_verify": "kernels",
        "anchor_models": "",
        "anchor_lab": "",
    }.items()
}
OUTSIDE = {"tools", "training", "tests", "notebooks", "standalone"}
LIGHT = {*sys.stdlib_module_names, "torch", "jaxtyping"}
# The plain data and the rules of the game, which the kernels share with the reference.
SHARED = {"anchor_ref.config", "anchor_ref.inputs", "anchor_ref.plan", "anchor_ref.regions"}
# Inside anchor_lab nobody imports from a shelf above its own.
SHELVES = {
    "sources": 0,
    "methods": 0,
    "analysis": 1,
    "drawing": 2,
    "experiments": 3,
    "report": 4,
    "explorer": 4,
    "exercises": 4,
    "commands": 5,
    "cli": 5,
    "__main__": 5,
}


@dataclass(frozen=True)
class Import:
    """One imported name in full, and whether importing the file is enough to import it."""

    name: str
    at_once: bool

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


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
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -(node.level - 1) or None] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # `from anchor_ref import plan` may name a module or an object of one.
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [Import(name, node not in inside) for name in names]
    return found


def within(name: str, modules: set[str]) -> bool:
    """Is the name one of the modules, or of something in one of them?"""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def allowed(room: str, entry: Import) -> bool:
    """May a file of the room import this?"""
    if entry.package in OUTSIDE:
        return False
    if entry.package in LIGHT or entry.package == room:
        return True
    if room == "anchor_ref":
        return False
    if room == "anchor_kernels":
        return entry.package == "triton" or within(entry.name, SHARED)
    if room == "anchor_verify":  # reports that are run by hand: nobody imports them
        return True
    below = {"anchor_models": {"anchor_ref"}, "anchor_lab": {"anchor_ref", "anchor_models"}}[room]
    above = set(ROOMS) - below - {"anchor_kernels"}
    if entry.package in {"triton", *above}:
        return False
    return entry.package in below or not entry.at_once


def faults(source: str, package: str) -> list[str]:
    """The imports that a file of this package must not have."""
    room = package.split(".")[0]
    return [entry.name for entry in imports(source, package) if not allowed(room, entry)]


def hidden_imports(source: str) -> list[str]:
    """Calls that import by a string, unless the string plainly names somebody else's package."""
    tree = ast.parse(source)
    importers = {"import_module", "__import__"}
    importers |= {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "importlib"
        for alias in node.names
        if alias.name in importers and alias.asname
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func).rpartition(".")[2] not in importers:
            continue
        name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
        if name.split(".")[0] in {"", *ROOMS, *OUTSIDE}:  # "" also of a relative one
            found.append(ast.unparse(node))
    return found


def package_files(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Every file by its module's name; a package goes by the name of its folder."""
    found = {}
    for folder in folders.values():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def package_of(module: str, path: Path) -> str:
    return module if path.stem == "__init__" else module.rpartition(".")[0]


def graph(sources: Mapping[str, str], packages: set[str]) -> dict[str, set[str]]:
    """Which folder imports from which, at any depth of the code.

    A folder is one node. Where folders lie in a folder, the files beside them are nodes of their
    own: `anchor_models.transformers` imports from `anchor_models.integration`, which imports
    `anchor_models.backend`, and that is no circle.
    """

    def node(module: str) -> str:
        folder = module if module in packages else module.rpartition(".")[0]
        has_folders = any(package.startswith(f"{folder}.") for package in packages)
        return module if has_folders else folder

    found: dict[str, set[str]] = {}
    for module, source in sources.items():
        package = module if module in packages else module.rpartition(".")[0]
        targets = {node(name) for name in modules_of(imports(source, package), sources)}
        found.setdefault(node(module), set()).update(targets - {node(module)})
    return found


def modules_of(entries: Iterable[Import], modules: Collection[str]) -> set[str]:
    """Which of the modules are imported, whole or something in them."""
    found = set()
    for entry in entries:
        name = entry.name
        while name and name not in modules:
            name = name.rpartition(".")[0]
        found |= {name} - {""}
    return found


def graph_of_files(sources: Mapping[str, str], packages: set[str]) -> dict[str, set[str]]:
    """Which file imports from which; a package's own file, which collects the others, is none."""
    return {
        module: modules_of(imports(source, module.rpartition(".")[0]), sources) - packages
        for module, source in sources.items()
        if module not in packages
    }


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """One circle of the graph, or nothing."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def shelf(node: str) -> int | None:
    """Where in anchor_lab a node stands; None for one that SHELVES does not know."""
    return SHELVES.get(node.split(".")[1])


def upward(edges: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Arrows inside anchor_lab that lead to a higher shelf, or from or to none."""
    return [
        (start, end)
        for start, ends in edges.items()
        for end in sorted(ends)
        if start.startswith("anchor_lab.") and end.startswith("anchor_lab.")
        if shelf(start) is None or shelf(end) is None or shelf(end) > shelf(start)
    ]


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    found = package_files(ROOMS)
    assert set(ROOMS) <= {module.split(".")[0] for module in found}
    return found


@pytest.fixture(scope="module")
def sources(files) -> dict[str, str]:
    return {module: path.read_text() for module, path in files.items()}


@pytest.fixture(scope="module")
def packages(files) -> set[str]:
    return {module for module, path in files.items() if path.stem == "__init__"}


@pytest.fixture(scope="module")
def edges(sources, packages) -> dict[str, set[str]]:
    return graph(sources, packages)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(files, room):
    found = {
        module: faults(path.read_text(), package_of(module, path))
        for module, path in files.items()
        if within(module, {room})
    }
    assert found
    assert not {module: wrong for module, wrong in found.items() if wrong}


def test_the_reference_is_one_folder_of_files():
    assert not list(ROOMS["anchor_ref"].glob("*/*.py"))


def test_folders_import_from_each_other_in_no_circle(edges):
    assert not circle(edges)


def test_files_import_from_each_other_in_no_circle(sources, packages):
    assert not circle(graph_of_files(sources, packages))


def test_arrows_inside_the_laboratory_run_down(edges):
    assert not upward(edges)


def test_nobody_imports_its_own_modules_by_a_string(files):
    outside = [path for name in ("tools", "training") for path in (ROOT / name).rglob("*.py")]
    found = {
        str(path.relative_to(ROOT)): hidden_imports(path.read_text())
        for path in [*files.values(), *outside]
    }
    assert not {path: calls for path, calls in found.items() if calls}


def test_kernels_folder_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists(), (
        "`kernels` is the import name of a package on PyPI which transformers looks for"
    )


GOOD = {
    "anchor_ref": "import math\nfrom torch import Tensor\nfrom anchor_ref.plan import Plan\n",
    "anchor_kernels": (
        "import triton\nfrom anchor_ref import plan\nfrom anchor_ref.config import AnchorConfig\n"
    ),
    "anchor_verify": "import triton, numpy\nimport anchor_kernels, anchor_ref, anchor_lab\n",
    "anchor_models": (
        "import anchor_ref\nfrom anchor_models import capture_qkv\n"
        "async def g():\n    import transformers, anchor_kernels\n"
    ),
    "anchor_lab.drawing": (
        "from anchor_ref.measure import measure\nfrom anchor_models.capture import Captured\n"
        "def g():\n    import matplotlib, anchor_kernels\n"
    ),
}
FAULTS = {
    "anchor_ref": [
        ("import numpy as np", "numpy"),
        ("def f():\n    import transformers", "transformers"),
        ("from anchor_models import capture_qkv", "anchor_models.capture_qkv"),
        ("from ..anchor_lab import drawing", "anchor_lab.drawing"),
        ("import anchor_kernels", "anchor_kernels"),
        ("try:\n    import triton.language as tl\nexcept ImportError:\n    0", "triton.language"),
    ],
    "anchor_kernels": [
        ("from anchor_ref import anchor_attention", "anchor_ref.anchor_attention"),
        ("import anchor_ref", "anchor_ref"),
        ("from anchor_ref.anchor import compute_anchor", "anchor_ref.anchor.compute_anchor"),
        ("def f():\n    from anchor_ref.measure import recall", "anchor_ref.measure.recall"),
        ("from anchor_ref.planned import x", "anchor_ref.planned.x"),
        ("import numpy", "numpy"),
        ("import anchor_models", "anchor_models"),
    ],
    "anchor_verify": [],
    "anchor_models": [
        ("import transformers", "transformers"),
        ("class A:\n    import safetensors.torch", "safetensors.torch"),
        ("import anchor_kernels", "anchor_kernels"),
        ("def f():\n    import triton", "triton"),
        ("def f():\n    from anchor_lab.analysis import x", "anchor_lab.analysis.x"),
        ("def f():\n    import anchor_verify", "anchor_verify"),
    ],
    "anchor_lab.drawing": [
        ("class A:\n    import matplotlib.pyplot", "matplotlib.pyplot"),
        ("if True:\n    from pandas import DataFrame", "pandas.DataFrame"),
        ("import anchor_kernels", "anchor_kernels"),
        ("def f():\n    import triton", "triton"),
        ("def f():\n    from anchor_verify import x", "anchor_verify.x"),
    ],
}


@pytest.mark.parametrize(
    ("package", "source", "fault"),
    [
        (package, *seeded)
        for package in GOOD
        for seeded in [
            *FAULTS[package],
            *((f"def f():\n    import {name}.x", f"{name}.x") for name in sorted(OUTSIDE)),
        ]
    ],
)
def test_a_fault_in_a_room_is_found(package, source, fault):
    assert faults(GOOD[package], package) == []
    assert faults(GOOD[package] + source, package) == [fault]


def lab(**imported: str) -> Iterator[tuple[str, str]]:
    """Files `anchor_lab.FOLDER.file` that each import what is named, inside a function."""
    for folder, name in imported.items():
        yield f"anchor_lab.{folder}", ""
        yield f"anchor_lab.{folder}.file", f"def f():\n    from {name} import x"


@pytest.mark.parametrize(
    ("imported", "found"),
    [
        ({"a": "anchor_lab.b.file", "b": "anchor_lab.c", "c": "torch"}, set()),
        ({"a": "anchor_lab.b.file", "b": "anchor_lab.a"}, {"anchor_lab.a", "anchor_lab.b"}),
        ({"a": "..b.file", "b": "anchor_lab.a.file"}, {"anchor_lab.a", "anchor_lab.b"}),
        (
            {"a": "anchor_lab.b", "b": "anchor_lab.c", "c": "anchor_lab.a"},
            {"anchor_lab.a", "anchor_lab.b", "anchor_lab.c"},
        ),
    ],
)
def test_a_circle_of_folders_is_found(imported, found):
    sources = {"anchor_lab": "", **dict(lab(**imported))}
    packages = {module for module in sources if not module.endswith(".file")}
    assert set(circle(graph(sources, packages))) == found


def test_files_beside_folders_are_no_circle_unless_they_import_each_other():
    sources = {
        "anchor_models": "from anchor_models.backend import run",
        "anchor_models.backend": "",
        "anchor_models.transformers": "from anchor_models.integration.prefill import prefill",
        "anchor_models.integration": "",
        "anchor_models.integration.prefill": "from anchor_models import backend",
    }
    packages = {"anchor_models", "anchor_models.integration"}
    assert not circle(graph(sources, packages))
    sources["anchor_models.backend"] = "import anchor_models.transformers"
    assert "anchor_models.integration" in circle(graph(sources, packages))


def test_a_circle_of_files_in_one_folder_is_found():
    sources = {
        "anchor_ref": "from anchor_ref.measure import recall\nimport anchor_ref.config",
        "anchor_ref.config": "from anchor_ref import AnchorConfig",
        "anchor_ref.measure": "from anchor_ref.config import AnchorConfig",
    }
    assert not circle(graph_of_files(sources, {"anchor_ref"}))
    sources["anchor_ref.config"] = "def f():\n    from anchor_ref import measure"
    found = set(circle(graph_of_files(sources, {"anchor_ref"})))
    assert found == {"anchor_ref.config", "anchor_ref.measure"}


@pytest.mark.parametrize(
    ("start", "end", "runs_down"),
    [
        ("analysis", "methods", True),
        ("report", "explorer", True),
        ("experiments.compare", "drawing", True),
        ("methods", "analysis", False),
        ("drawing", "experiments.compare", False),
        ("experiments.store", "report", False),
        ("exercises", "commands", False),
        ("methods", "attic", False),
    ],
)
def test_an_upward_arrow_is_found(start, end, runs_down):
    arrow = (f"anchor_lab.{start}", f"anchor_lab.{end}")
    assert upward({arrow[0]: {arrow[1], "anchor_models"}}) == ([] if runs_down else [arrow])


@pytest.mark.parametrize(
    "call",
    [
        "importlib.import_module('anchor_lab.report')",
        "import_module(f'anchor_lab.commands.{name}')",
        "__import__('training')",
        "import_module(name)",
        "import_module(name='anchor_lab.report')",
        "import_module('.report', 'anchor_lab')",
        "load('anchor_lab.report')",
    ],
)
def test_an_import_by_a_string_is_found(call):
    good = "from importlib.util import find_spec\nimport_module('pandas')\nfind_spec('plotly')\n"
    good += "from importlib import import_module as load\nload('seaborn')\n"
    assert hidden_imports(good) == []
    assert len(hidden_imports(good + f"def f(name):\n    return {call}")) == 1


def test_importing_the_packages_imports_nothing_heavy(files):
    rooms = {"anchor_ref", "anchor_models", "anchor_lab"}
    packages = [
        module
        for module, path in files.items()
        if path.stem == "__init__" and module.split(".")[0] in rooms
    ]
    code = (
        f"import sys, {', '.join(packages)}\n"
        "heavy = {'transformers', 'tokenizers', 'safetensors', 'matplotlib', 'seaborn', 'IPython',"
        " 'ipywidgets', 'jinja2', 'triton', 'anchor_kernels', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
