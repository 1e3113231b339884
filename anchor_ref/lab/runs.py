"""A comparison from a model and a text to a table, which an interrupted run goes on with."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from anchor_ref.activations.capture import capture_qkv
from anchor_ref.baselines import Method
from anchor_ref.lab.compare import compare_layer, label_configurations
from anchor_ref.lab.results import Results
from anchor_ref.lab.texts import Text

PACKAGES = ("anchor-attention", "torch", "transformers")
SOURCE = Path(__file__).parents[1]
# What the numbers of a table come from; texts and weights have hashes of their own.
MEASURING = ("*.py", "activations/*.py", "baselines/*.py", "lab/compare.py", "lab/curves.py")


def describe_run(model, name: str, text: Text, group_size: int) -> dict:
    """What all rows of a table share: model, text, length, groups, versions, code.

    Args:
        model: a transformers model.
        name: what it was loaded by.
        text: what it reads.
        group_size: queries of a group.
    """
    return {
        "model": name,
        "weights": _fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "text": text.name,
        "text_sha256": text.sha256,
        "length": text.tokens.shape[1],
        "group_size": group_size,
        "versions": {package: version(package) for package in PACKAGES},
        "code": code_version(),
    }


def code_version(folder: Path = SOURCE) -> str:
    """The first digits of a SHA-256 of the sources that measure, comments included.

    Between two releases the version stays the same, and a corrected method must not add its rows
    to a table of the wrong one.

    Args:
        folder: of the package.
    """
    digest = hashlib.sha256()
    for path in sorted({path for part in MEASURING for path in folder.glob(part)}):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def check_length(model, length: int) -> None:
    """Refuse, with a ValueError, a prompt that is longer than the model's positions."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length > most:
        raise ValueError(f"length must be at most the model's {most} positions, got {length}")


def run_comparison(
    model,
    text: Text,
    results: Results,
    sweeps: dict[str, list[Method]],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    watch: Callable[[list], Iterable] = iter,
):
    """Measure what the table lacks, and keep it after every layer and method.

    Args:
        model: a transformers causal model; what it computes on, the methods are run on.
        text: one prompt.
        results: the table to fill.
        sweeps: configurations of each method, as `lab.compare.sweeps` gives them.
        layers, heads: the model's indices; None for all.
        watch: wraps the list of (layer, method) that are left, such as tqdm.

    Returns:
        The rows asked for as a pandas frame, those of earlier runs included.

    Raises:
        TypeError, ValueError: see `capture_qkv` and `lab.compare.compare_layer`; or a head does
            not exist, or the prompt is longer than the model's positions.
    """
    check_length(model, text.tokens.shape[1])
    config = model.config.get_text_config()
    layers = _indices("layers", layers, config.num_hidden_layers)
    heads = _indices("heads", heads, config.num_attention_heads)
    labels = {name: label_configurations(sweep) for name, sweep in sweeps.items()}
    left = {
        (layer, name): missing
        for layer in layers
        for name in sweeps
        if (missing := results.missing(name, labels[name], layer, heads))
    }
    if left:
        # On disk, and layer by layer in memory: a long prompt in a large model is many GiB.
        with tempfile.TemporaryDirectory(dir=results.folder, prefix="capture-") as folder:
            captured = capture_qkv(
                model,
                text.tokens.to(model.device),
                sorted({layer for layer, _ in left}),
                dtype=None,
                save_to=folder,
            )
            for layer, name in watch(list(left)):
                x = captured[layer]
                x = replace(x, **{part: getattr(x, part).to(model.device) for part in "qkv"})
                results.add(compare_layer(x, name, sweeps[name], left[layer, name], text.name))
    wanted = results.frame
    asked = [
        wanted["layer"].isin(layers)
        & wanted["head"].isin(heads)
        & (wanted["method"] == name)
        & wanted["configuration"].isin(labels[name])
        for name in sweeps
    ]
    return wanted[sum(asked) > 0].reset_index(drop=True)


def _indices(name: str, asked: Sequence[int] | None, available: int) -> list[int]:
    chosen = list(range(available)) if asked is None else sorted(set(asked))
    if not chosen:
        raise ValueError(f"{name} must name at least one, got none")
    if chosen[0] < 0 or chosen[-1] >= available:
        wrong = chosen[0] if chosen[0] < 0 else chosen[-1]
        raise ValueError(f"{name} must be in 0..{available - 1}, got {wrong}")
    return chosen


@torch.no_grad()
def _fingerprint(model) -> str:
    """Which weights these are: a hash over the beginning of each, 16 hexadecimal digits."""
    found = hashlib.sha256()
    for weight in model.parameters():
        found.update(weight.flatten()[:64].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
