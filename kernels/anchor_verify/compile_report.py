"""Every kernel in every shipped configuration, compiled for each target; no GPU needed.

    python -m anchor_verify.compile_report              # all, and results/verify/compile_report.md
    python -m anchor_verify.compile_report --targets sm_90 --head-dims 128 --dtypes bfloat16
    python -m anchor_verify.compile_report --launches   # only what would be compiled, in seconds

The stages run as they do in use, on CPU tensors, with launches written down in place of executed:
so what is compiled here is exactly what is launched elsewhere. The table holds what the assembler
reports: registers a thread, spilled bytes, what it slowed down, shared memory; and how many matrix
instructions and asynchronous copies the generated code holds. Exits with 1 when a configuration
has a fault (`faults`).
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import JITFunction, mangle_type

import anchor_kernels
from anchor_kernels import (
    anchor,
    anchor_hopper,
    calls,
    launch,
    sparse,
    sparse_hopper,
    stripes,
    support,
    tail,
)
from anchor_lab.experiments.experiment import RESULTS
from anchor_lab.experiments.page import render
from anchor_lab.experiments.store import write_whole
from anchor_ref.config import AnchorConfig

PAGE = RESULTS / "verify" / "compile_report.md"


@dataclass(frozen=True)
class Target:
    """What is compiled for.

    Attributes:
        gpu: as Triton calls it.
        shared: bytes of shared memory that one program may have. The compiler refuses nothing.
        matrix: pattern of its matrix instructions.
    """

    gpu: GPUTarget
    shared: int
    matrix: str


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 166_912, r"\bmma\.sync"),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 232_448, r"\bwgmma\.mma_async"),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 232_448, r"\btcgen05\.mma"),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 65_536, r"\bv_mfma_"),
}
# Copies to shared memory that nobody waits for.
ASYNC_COPY = r"\bcp\.async\.(ca|cg)|\bcp\.async\.bulk\.tensor"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = (16, 64, 96, 128, 192, 256)
MULTIPLY_NOTHING = ("pool_kernel", "compact_kernel", "merge_kernel")
MODULES = (anchor, anchor_hopper, sparse, sparse_hopper, stripes, tail)  # those that hold a kernel
KERNELS = {
    name: kernel
    for module in MODULES
    for name, kernel in vars(module).items()
    if name.endswith("_kernel") and isinstance(kernel, JITFunction)
}


@dataclass(frozen=True)
class Launch:
    """One kernel launch: arguments by name, and what the compiler is told beside them."""

    kernel: str
    arguments: dict
    options: dict

    @property
    def tiles(self) -> str:
        """Sizes of its tiles, by name."""
        names = [name for name in _TILE_NAMES if name in self.arguments]
        return ", ".join(f"{name} {self.arguments[name]}" for name in names)


@dataclass(frozen=True)
class Compiled:
    """What came out of one compilation."""

    kernel: str
    target: str
    dtype: str
    head_dim: int
    tiles: str
    warps: int
    stages: int
    registers: int
    spilled: int
    slowed: int
    shared: int
    matrix_instructions: int
    async_copies: int


class Recorder:
    """Stands where a kernel stood and writes launches down."""

    def __init__(self, name: str, kernel, launches: list[Launch]):
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid):
        def record(*args, num_warps=4, num_stages=3, maxnreg=None, **kwargs):
            arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            options = {"num_warps": num_warps, "num_stages": num_stages, "maxnreg": maxnreg}
            self.launches.append(Launch(self.name, arguments, options))

        return record


def record_launches(dtype: torch.dtype, head_dim: int, target: GPUTarget) -> list[Launch]:
    """All launches of one call on a common model's shape: 8 query heads, 2 kv heads."""
    launches = []
    with ExitStack() as stack:
        stack.enter_context(patch.object(support, "why_unsupported", lambda q: None))
        stack.enter_context(patch.object(launch, "target_of", lambda q: target))
        # Nothing runs, so nothing fills a buffer: counts of zero in place of whatever lay there.
        stack.enter_context(patch.object(torch, "empty", torch.zeros))
        # Calls of these sizes hold recorders in place of kernels: nobody else may get them.
        stack.enter_context(patch.dict(calls._calls, clear=True))
        for name, kernel in KERNELS.items():
            recorder = Recorder(name, kernel, launches)
            for module in MODULES:
                if getattr(module, name, None) is kernel:
                    stack.enter_context(patch.object(module, name, recorder))
        # Heads side by side in memory, as a model's projections leave them.
        q = torch.zeros(1, 4096, 8, head_dim, dtype=dtype).transpose(1, 2)
        k = torch.zeros(1, 4096, 2, head_dim, dtype=dtype).transpose(1, 2)
        anchor_kernels.anchor_attention(q, k, k.clone(), AnchorConfig())
        lse = torch.zeros(q.shape[:3])
        # Stage 2 by itself pools, which stage 1 does where its tiles are blocks; and asks rows, as
        # many as find room in shared memory.
        held = launch.select_launch(q, asked=True).held
        asks_rows = AnchorConfig(outliers=held or 4, outlier_choice="even")
        before = len(launches)
        anchor_kernels.identify_stripes(q, k, lse, asks_rows)
        known = {found.kernel for found in launches[:before]} - {"select_kernel"}
        launches[before:] = [x for x in launches[before:] if x.kernel not in known]
        # What comes behind cuDNN on a GPU, which takes the long tails there.
        tail.merge(q, lse, q[None], lse[None, ..., None], torch.zeros_like(q))
    return launches


def compile_launch(found: Launch, target_name: str, dtype: torch.dtype, head_dim: int) -> Compiled:
    """Compile one launch for one target and read what the compiler says about it."""
    kernel = KERNELS[found.kernel]
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = found.arguments[parameter.name]
        number = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (number and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        else:
            signature[parameter.name] = mangle_type(value)
            if isinstance(value, torch.Tensor) or (number and value % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
    make_source = GluonASTSource if kernel.is_gluon() else ASTSource
    source = make_source(kernel, signature, constants, attributes)
    target = TARGETS[target_name]
    binary = triton.compile(source, target=target.gpu, options=found.options)
    read = _read_amd if target.gpu.backend == "hip" else _read_nvidia
    text = binary.asm.get("ptx") or binary.asm["amdgcn"]
    return Compiled(
        kernel=found.kernel,
        target=target_name,
        dtype=_name(dtype),
        head_dim=head_dim,
        tiles=found.tiles,
        stages=found.options["num_stages"],
        **read(binary, target_name),
        shared=binary.metadata.shared,
        matrix_instructions=len(re.findall(target.matrix, text)),
        async_copies=len(re.findall(ASYNC_COPY, text)),
    )


_TILE_NAMES = (
    "BLOCK_M",
    "HEADS",
    "STEP_TILE",
    "ASKED",
    "BLOCK_N",
    "CHUNK",
    "WORDS",
    "STAGES",
    "ONLINE",
)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read_nvidia(binary, target_name: str) -> dict[str, int]:
    """Warps of a program, and what the assembler that ships with Triton says about them."""
    nvidia = triton.knobs.nvidia
    assembler = nvidia.ptxas_blackwell if target_name == "sm_100" else nvidia.ptxas
    # The suffix a opens the instructions of just this generation, wgmma and tcgen05 among them.
    name = target_name + ("a" if target_name != "sm_80" else "")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(binary.asm["ptx"])
        file.flush()
        command = [assembler.path, "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    threads = int(re.search(r"\.reqntid (\d+)", binary.asm["ptx"])[1])
    return {"warps": threads // 32, **read_assembler(done.stderr)}


def read_assembler(report: str) -> dict[str, int]:
    """Registers a thread, spilled bytes, and how often it says that it had to slow the code down.

    It does so when it makes wgmma instructions wait for each other, or ignores a setmaxnreg.
    """

    def numbers(pattern: str) -> list[int]:
        return [int(x) for x in re.findall(pattern, report)]

    return {
        "registers": max(numbers(r"Used (\d+) registers")),
        "spilled": sum(numbers(r"(\d+) bytes spill (?:stores|loads)")),
        "slowed": report.count("Potential Performance Loss"),
    }


def _read_amd(binary, target_name: str) -> dict[str, int]:
    """Waves of a program, vector registers a lane and spilled bytes: the assembly's own notes."""
    text = binary.asm["amdgcn"]

    def note(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    return {
        "warps": note("max_flat_workgroup_size") // 64,
        "registers": note("vgpr_count") + note("agpr_count"),
        "spilled": 4 * note("vgpr_spill_count"),
        "slowed": 0,  # nothing is said
    }


def _compile(job: tuple[str, torch.dtype, int]) -> list[Compiled]:
    target, dtype, head_dim = job
    launches = record_launches(dtype, head_dim, TARGETS[target].gpu)
    return [compile_launch(found, target, dtype, head_dim) for found in launches]


def report(
    targets: Iterable[str], dtypes: Iterable[torch.dtype], head_dims: Iterable[int]
) -> list[Compiled]:
    """Compile everything asked for; targets, dtypes and head sizes are shared by two processes."""
    with ProcessPoolExecutor(2) as pool:
        found = pool.map(_compile, product(targets, dtypes, head_dims))
        return [row for rows in found for row in rows]


def faults(row: Compiled) -> list[str]:
    """What is wrong with one compilation."""
    found = []
    if row.spilled:
        found.append(f"{row.spilled} bytes spilled")
    if row.slowed:
        found.append(f"{row.slowed} times slowed down by the assembler")
    if row.shared > TARGETS[row.target].shared:
        found.append(f"{row.shared} bytes of shared memory, {TARGETS[row.target].shared} allowed")
    if multiplies_on_matrix_units(row) and not row.matrix_instructions:
        found.append("no matrix instruction")
    if copies_ahead(row) and not row.async_copies:
        found.append("no asynchronous copy")
    return found


def multiplies_on_matrix_units(row: Compiled) -> bool:
    """float32 is multiplied exactly, on plain units; pooling and compaction multiply nothing."""
    return row.kernel not in MULTIPLY_NOTHING and row.dtype != "float32"


def copies_ahead(row: Compiled) -> bool:
    """NVIDIA kernels in half precision load the next tiles while they multiply."""
    return multiplies_on_matrix_units(row) and row.target != "gfx942" and row.stages > 1


def page(rows: list[Compiled]) -> str:
    """The extremes of each target, then all rows."""
    targets = {}
    for name in dict.fromkeys(row.target for row in rows):
        mine = [row for row in rows if row.target == name]
        targets[name] = {
            "rows": mine,
            "entries": [astuple(row) for row in mine],
            "faulty": sum(bool(faults(row)) for row in mine),
            "allowed": TARGETS[name].shared,
        }
    header = [field.name.replace("_", " ") for field in fields(Compiled)]
    return render(
        "compile_report.md.j2",
        Path(__file__).parent,
        header=header,
        targets=targets,
        triton=triton.__version__,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    names = [_name(dtype) for dtype in DTYPES]
    parser.add_argument("--dtypes", nargs="+", choices=names, default=names)
    parser.add_argument("--head-dims", nargs="+", type=int, default=list(HEAD_DIMS))
    parser.add_argument("--out", type=Path, help=f"default: {PAGE} for a whole run")
    parser.add_argument("--launches", action="store_true", help="compile nothing")
    options = parser.parse_args()
    dtypes = [getattr(torch, name) for name in options.dtypes]
    if options.launches:
        for target, dtype, head_dim in product(options.targets, dtypes, options.head_dims):
            for found in record_launches(dtype, head_dim, TARGETS[target].gpu):
                stages = found.options["num_stages"]
                print(found.kernel, target, _name(dtype), head_dim, found.tiles, stages, sep=" | ")
        return 0
    rows = report(options.targets, dtypes, options.head_dims)
    for row in rows:
        print(*astuple(row), "  ".join(faults(row)), sep="  ")
    whole = options.targets == list(TARGETS) and dtypes == list(DTYPES)
    if options.out or (whole and options.head_dims == list(HEAD_DIMS)):
        write_whole(options.out or PAGE, page(rows))
    return int(any(faults(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
