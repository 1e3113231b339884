"""When a whole prompt gains: attention's share of a prefill, and what became of the time."""

from collections.abc import Mapping, Sequence

from anchor_lab.experiments.course import columns
from anchor_lab.experiments.crossover.figure import data_prefills, over_sdpa
from anchor_lab.experiments.crossover.share import data_dense
from anchor_lab.experiments.page import number, spaced

# The models that were prefilled, in words.
MODELS = {
    "smollm2": "SmolLM2, 135M, {layers} layers",
    "random": "{layers} of the 32 layers of an 8B model",
}
SHORTEST = 4096  # below it nothing is ever gained, and the host decides


def data_shares(rows: Sequence[dict]) -> dict[str, dict[int, dict[str, float]]]:
    """What attention takes of whole prefills, and what AnchorAttention leaves of them.

    Args:
        rows: of results/crossover/crossover.json.

    Returns:
        By model and length: dense, ms of a prefill; layers; share, see `data_dense`.
        Ratios of a prefill's time to dense attention's, below 1 where it is faster: free, if
        attention took no time; always, with AnchorAttention in every layer; auto, where the
        model chooses. sparse: the layers in which it then chose AnchorAttention.
    """
    found: dict[str, dict[int, dict[str, float]]] = {}
    prefills = data_prefills(rows)
    for model, by_length in data_dense(rows).items():
        for n, dense in by_length.items():
            if n < SHORTEST:
                continue
            ways = prefills[model][n]
            found.setdefault(model, {})[n] = {
                "dense": dense["ms"],
                "layers": dense["layers"],
                "share": dense["share"],
                "free": 1 - dense["share"],
                "always": over_sdpa(ways, "always"),
                "auto": over_sdpa(ways, "auto"),
                "sparse": ways["auto"]["sparse_layers"],
            }
    return found


def table(shares: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """`data_shares` as text."""
    lines = []
    for model, by_length in shares.items():
        cells = list(by_length.values())
        name = MODELS[model].format(layers=cells[0]["layers"])
        lines += [
            columns(name, *(f"N = {spaced(n)}" for n in by_length)),
            columns("  dense prefill, ms", *(number(x["dense"]) for x in cells)),
            columns("  attention's share of it", *(f"{x['share']:.0%}" for x in cells)),
            "  time over that of dense attention",
            columns("    AnchorAttention in every layer", *(f"{x['always']:.2f}" for x in cells)),
            columns('    when="auto"', *(f"{x['auto']:.2f}" for x in cells)),
            columns("    if attention were free", *(f"{x['free']:.2f}" for x in cells)),
            columns("  layers that auto made sparse", *(str(x["sparse"]) for x in cells)),
        ]
    return "\n".join(lines)
