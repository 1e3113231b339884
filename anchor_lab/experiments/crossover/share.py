"""Attention's share of a dense prefill: its one definition, wherever the number stands.

The device's time for one layer's dense attention, times the layers, over the time of the whole
prefill. Both are of `crossover`: the same device, and the kernel that PyTorch takes for
`scaled_dot_product_attention` as transformers calls it. What the device waits for the host is no
attention, so a prefill that the host holds up has a small share.
"""

from collections.abc import Sequence

from anchor_lab.experiments.crossover.figure import WIDE, data_calls, data_prefills

# Of the models that were prefilled, the heads of a layer: Hq, Hkv, D.
HEADS = {"smollm2": (9, 3, 64), "random": WIDE}


def data_dense(rows: Sequence[dict]) -> dict[str, dict[int, dict[str, float]]]:
    """By model and length, while attention is dense: what a prefill takes, and its share of it.

    Lengths whose attention was not measured alone are left out, and models of which no prefill
    ran AnchorAttention: how many layers they have is not known.

    Args:
        rows: of results/crossover/crossover.json.

    Returns:
        ms: of the whole; attention_ms: of one layer's attention; layers; share.
    """
    found: dict[str, dict[int, dict[str, float]]] = {}
    for model, by_length in data_prefills(rows).items():
        # Of prompts that are no longer than a group no layer is sparse.
        layers = max(
            (ways["always"]["sparse_layers"] for ways in by_length.values() if "always" in ways),
            default=0,
        )
        if model not in HEADS or not layers:
            continue
        calls, _ = data_calls(rows, HEADS[model], tail=0)
        found[model] = {
            n: {
                "ms": (whole := ways["sdpa"]["ms"]["median"]),
                "attention_ms": calls[n],
                "layers": layers,
                "share": layers * calls[n] / whole,
            }
            for n, ways in by_length.items()
            if n in calls and "sdpa" in ways
        }
    return found
