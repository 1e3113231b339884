"""What holds for all tests: annotations are checked, draws repeat, skips are said aloud."""

import importlib
import os
import sys

import hypothesis
import jaxtyping
import pytest

# Before anything imports Triton: where no device is, its interpreter runs the kernels.
if not any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Most tests are small: threads would wait for each other, for minutes when the cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No window opens in a test run.
os.environ.setdefault("MPLBACKEND", "Agg")

# While the hook below loads a file, what that file imports is compiled anew, past its cache. A
# worker of a whole run imports all of this anyway, so let it be before.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("torch._dynamo", "transformers.modeling_utils"):
        importlib.import_module(name)

# Before anything imports the package: its annotations are then checked at every call.
jaxtyping.install_import_hook(["anchor_ref", "anchor_models", "anchor_lab"], "beartype.beartype")

# A slow machine is no failure, so no deadline. CI draws the same cases every time.
hypothesis.settings.register_profile(
    "project", deadline=None, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("project")


def pytest_collection_modifyitems(items):
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needs_gpu:
        return
    import torch  # a run of the packaging tests alone need not wait for it

    if not torch.cuda.is_available():
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    """Triton's interpreter makes `triton.language` ready at a launch, and not again inside it.

    It does so at every call of one `@triton.jit` function by another, which takes two fifths of a
    launch and changes nothing: what is replaced already is replaced by the same once more.
    """
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None:
        return
    core, make_ready = interpreter.tl.core, interpreter._patch_lang

    def make_ready_once(function):
        seen = [x for x in function.__globals__.values() if x is interpreter.tl or x is core]
        if seen and not any(core.is_builtin(module.load) for module in seen):
            return interpreter._LangPatchScope()  # nothing to undo when the call ends
        return make_ready(function)

    interpreter._patch_lang = make_ready_once


@pytest.fixture(autouse=True)
def no_figure_is_left_to_the_next_test():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def unchecked_annotations():
    """The package as a user calls it, annotations unchecked: its own refusals must do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
