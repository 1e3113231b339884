"""Measure every head of a model at every θ, layer by layer, into a folder that can be resumed."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from anchor_lab.analysis.curves import THETAS, theta_curve
from anchor_lab.experiments.compare.runs import describe
from anchor_lab.experiments.store import Store, write_whole
from anchor_lab.sources import read_by_model
from anchor_models.capture import Captured, capture_qkv, load_capture
from anchor_models.texts import Text
from anchor_ref.config import AnchorConfig

LAYERS, MODEL, CAPTURE = "layers.json", "model.json", "capture"
MEASURES = ("recall", "p10", "least", "density")


def inspect_layers(
    model,
    tokenizer,
    name: str,
    text: Text,
    folder: Path,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    thetas: Sequence[float] = THETAS,
    progress: Callable[[list[int]], Iterable[int]] = iter,
) -> None:
    """Capture the model once, then measure its layers one by one.

    What the folder holds already is not measured again.

    Args:
        model, tokenizer: from `load_pretrained`.
        name: what the model was loaded by.
        text: what the model reads; longer than a group.
        folder: for captured tensors, facts about the model, and results.
        layers, heads: which to look at; None means all that compute attention.
        thetas: thresholds, ascending.
        progress: wraps the list of layers left to measure.

    Raises:
        ValueError: the folder holds results of other settings, weights, versions or code; the
            text is no longer than a group, or longer than the model's positions; or see
            `capture_qkv`.
    """
    n, group = text.tokens.shape[1], AnchorConfig().group_size
    if n <= group:
        raise ValueError(
            f"text must be longer than a group of {group} tokens, of which nothing is skipped: "
            f"{text.name} has {n}"
        )
    source = read_by_model(model, name, text, layers)
    layers = list(source.layers) if layers is None else sorted(set(layers))
    heads = None if heads is None else sorted(set(heads))
    settings = {
        **describe(source, group),
        "layers": layers,
        "heads": heads,
        "thetas": list(thetas),
    }
    store = Store(folder / LAYERS, ["layer"], settings)
    if not store.path.exists():  # it appears when the capture is complete
        shutil.rmtree(folder / CAPTURE, ignore_errors=True)  # of a run that was interrupted
        tokens = text.tokens.to(model.device)
        capture_qkv(model, tokens, layers, heads, dtype=None, save_to=folder / CAPTURE)
        write_whole(folder / MODEL, json.dumps(describe_model(model, tokenizer, text)))
        store.add([])
    captured = load_capture(folder / CAPTURE)
    for layer in progress([layer for layer in layers if not store.holds(layer=layer)]):
        store.add([{"layer": layer, **measure_layer(captured[layer], thetas, model.device)}])


def measure_layer(
    captured: Captured, thetas: Sequence[float], device: torch.device | str = "cpu"
) -> dict:
    """Recall and density of each head at each θ, one head in memory at a time.

    Returns:
        "heads" and, each `[T][H]`, the mean, 10th percentile and minimum of recall over rows and
        the density, named as in `MEASURES`; or only "skipped", the reason, for a layer that is
        not causal softmax attention over all keys.
    """
    try:
        x = captured.causal()
    except ValueError as reason:
        return {"skipped": str(reason)}
    config, shared = AnchorConfig(), x.q.shape[1] // x.k.shape[1]
    found: dict[str, list] = {name: [] for name in MEASURES}
    for place in range(x.q.shape[1]):
        q, k = (
            tensor[:1, at : at + 1].to(device)
            for tensor, at in ((x.q, place), (x.k, place // shared))
        )
        curve = theta_curve(q, k, config, thetas, x.scaling)
        recall = curve.recall[:, 0, 0].double()  # [T, N]
        found["recall"].append(recall.mean(-1))
        # quantile takes at most 2^24 numbers at once.
        found["p10"].append(torch.stack([row.quantile(0.1) for row in recall]))
        found["least"].append(recall.amin(-1))
        found["density"].append(curve.density[:, 0, 0])
    tables = {name: torch.stack(rows, 1).tolist() for name, rows in found.items()}
    return {"heads": list(x.query_heads), **tables}


def working_bytes(n: int, head_dim: int, n_thetas: int = len(THETAS)) -> int:
    """Memory that `measure_layer` takes beside the captured layer, at most, in bytes.

    For one head: the scores of a block of queries and their softmax, each key's bin as a one-hot
    row (int64, then float32), the recall of each row, and queries, keys and the anchor's state.
    """
    block = 4 * 4 * AnchorConfig().block_size
    return n * (block + (8 + 4) * (n_thetas + 1) + (4 + 8) * n_thetas + 8 * 4 * head_dim)


def describe_model(model, tokenizer, text: Text) -> dict:
    """Class, layers, heads, parameters, those of all linear layers but the last, and the words."""
    from torch import nn

    last = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not last]
    config = model.config.get_text_config()
    return {
        "class": type(model).__name__,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "parameters": sum(p.numel() for p in model.parameters()),
        "linear_parameters": sum(m.weight.numel() for m in linear),
        "words": [tokenizer.decode([token]) for token in text.tokens[0].tolist()],
    }
