"""A comparison from a source to a table, which an interrupted run goes on with."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from anchor_lab.experiments.compare.measure import compare_layer, label_configurations
from anchor_lab.experiments.store import Results
from anchor_lab.methods import Method
from anchor_lab.sources import Source
from anchor_models.models import device_name

SOURCE = Path(__file__).parents[1]
# What the numbers of a table come from; texts and weights have hashes of their own.
MEASURING = (
    *("*.py", "activations/*.py", "baselines/*.py"),
    *("lab/compare.py", "lab/curves.py", "lab/sources.py"),
)


def describe(source: Source, group_size: int) -> dict:
    """What all rows of a table share: source, device, groups, versions, code.

    Args:
        source: what is compared.
        group_size: queries of a group.
    """
    packages = ("anchor-attention", "torch", *source.packages)
    return {
        **source.about,
        "device": device_name(source.device),
        "group_size": group_size,
        "versions": {package: version(package) for package in packages},
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


def run_comparison(
    source: Source,
    results: Results,
    sweeps: dict[str, list[Method]],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    watch: Callable[[list], Iterable] = iter,
):
    """Measure what the table lacks, and keep it after every layer and method.

    Args:
        source: whose queries, keys and values.
        results: the table to fill.
        sweeps: configurations of each method, as `lab.compare.sweeps` gives them.
        layers, heads: the source's indices; None for all.
        watch: wraps the list of (layer, method) that are left, such as tqdm.

    Returns:
        The rows asked for as a pandas frame, those of earlier runs included.

    Raises:
        TypeError, ValueError: see `capture_qkv` and `lab.compare.compare_layer`; or a layer or
            head does not exist, or a layer left to measure is no causal attention over all keys.
    """
    layers = _chosen("layers", layers, source.layers)
    heads = _chosen("heads", heads, source.heads)
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
            captured = source.capture(sorted({layer for layer, _ in left}), Path(folder))
            for x in captured.values():
                x.causal()  # refused now, not after the layers before it
            for layer, name in watch(list(left)):
                x = captured[layer].to(source.device)
                results.add(compare_layer(x, name, sweeps[name], left[layer, name], source.name))
    wanted = results.frame
    asked = [
        wanted["layer"].isin(layers)
        & wanted["head"].isin(heads)
        & (wanted["method"] == name)
        & wanted["configuration"].isin(labels[name])
        for name in sweeps
    ]
    return wanted[sum(asked) > 0].reset_index(drop=True)


def _chosen(name: str, asked: Sequence[int] | None, there: Sequence[int]) -> list[int]:
    chosen = sorted(set(there if asked is None else asked))
    if not chosen:
        raise ValueError(f"{name} must name at least one, got none")
    if wrong := [index for index in chosen if index not in there]:
        first, last = there[0], there[-1]
        whole = list(there) == list(range(first, last + 1))
        allowed = f"in {first}..{last}" if whole else f"of {', '.join(map(str, there))}"
        raise ValueError(f"{name} must be {allowed}, got {wrong[0]}")
    return chosen
