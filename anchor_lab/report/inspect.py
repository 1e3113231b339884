"""Measure every head of a model at every θ, layer by layer, into a folder that can be resumed."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from anchor_lab.analysis.curves import THETAS, LayerCurves, layer_curves
from anchor_lab.experiments.compare.runs import describe
from anchor_lab.experiments.store import Store, write_whole
from anchor_lab.sources import read_by_model
from anchor_models.capture import Captured, capture_qkv, load_capture
from anchor_models.texts import Text
from anchor_ref.config import AnchorConfig

LAYERS, MODEL, CAPTURE = "layers.json", "model.json", "capture"
MEASURES = ("recall", "p10", "least", "density")  # of each head
SHARES = "shares"  # of each group


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
    measured_layers(
        model, name, text, folder, layers=layers, heads=heads, thetas=thetas, progress=progress
    )
    if not (folder / MODEL).exists():
        write_whole(folder / MODEL, json.dumps(describe_model(model, tokenizer, text)))


def measured_layers(
    model,
    name: str,
    text: Text,
    folder: Path,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    thetas: Sequence[float] = THETAS,
    config: AnchorConfig | None = None,
    progress: Callable[[list[int]], Iterable[int]] = iter,
) -> list[dict]:
    """What `inspect_layers` does, in groups of any size; returns the rows, layer by layer.

    Args:
        model, name, text, folder, layers, heads, thetas, progress: as in `inspect_layers`.
        config: block and group sizes; None means the published ones.

    Raises:
        ValueError: as in `inspect_layers`.
    """
    config = replace(config or AnchorConfig(), theta=AnchorConfig().theta, tail=0)
    n, group = text.tokens.shape[1], config.group_size
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
        "sizes": [config.block_size, config.step, config.init_blocks, config.window_blocks],
        "layers": layers,
        "heads": heads,
        "thetas": list(thetas),
        "rows": "beyond the first group",
    }
    store = Store(folder / LAYERS, ["layer"], settings)
    if not store.path.exists():  # it appears when the capture is complete
        shutil.rmtree(folder / CAPTURE, ignore_errors=True)  # of a run that was interrupted
        (folder / MODEL).unlink(missing_ok=True)
        tokens = text.tokens.to(model.device)
        capture_qkv(model, tokens, layers, heads, dtype=None, save_to=folder / CAPTURE)
        store.add([])
    left = [layer for layer in layers if not store.holds(layer=layer)]
    captured = load_capture(folder / CAPTURE) if left else {}
    for layer in progress(left):
        found = measure_layer(captured[layer], thetas, model.device, config)
        store.add([{"layer": layer, **found}])
    rows = {row["layer"]: row for row in store.rows}
    return [rows[layer] for layer in layers]


def measure_layer(
    captured: Captured,
    thetas: Sequence[float],
    device: torch.device | str = "cpu",
    config: AnchorConfig | None = None,
) -> dict:
    """Recall and density of each head at each θ, one head in memory at a time.

    Returns:
        "heads" and, each `[T][H]`, the mean, 10th percentile and minimum of recall over the rows
        beyond the first group and the density, named as in `MEASURES`; and `[T][G]` "shares" of
        each group's candidates that are kept, mean over heads. Or only "skipped", the reason, for
        a layer that is not causal softmax attention over all keys.
    """
    try:
        x = captured.causal()
    except ValueError as reason:
        return {"skipped": str(reason)}
    curves = layer_curves(x, config or AnchorConfig(), thetas, device)
    tables = {name: getattr(curves, name).tolist() for name in (*MEASURES, SHARES)}
    return {"heads": list(x.query_heads), "prompts": curves.prompts, **tables}


def curves_of(row: dict, tokens: int) -> LayerCurves:
    """What `measure_layer` found of a layer, as tensors again.

    Raises:
        ValueError: the layer could not be measured; the message says why.
    """
    if "skipped" in row:
        raise ValueError(row["skipped"])
    tables = {name: torch.tensor(row[name], dtype=torch.float64) for name in (*MEASURES, SHARES)}
    return LayerCurves(**tables, prompts=row["prompts"], tokens=tokens)


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
        "kv_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "positions": getattr(config, "max_position_embeddings", None),
        "parameters": sum(p.numel() for p in model.parameters()),
        "linear_parameters": sum(m.weight.numel() for m in linear),
        "words": [tokenizer.decode([token]) for token in text.tokens[0].tolist()],
    }
