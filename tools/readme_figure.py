"""Draw README's figure: where a head of the bundled model looks, and what AnchorAttention keeps.

python -m tools.readme_figure
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt

from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.activations import capture_qkv, load_bundled, make_document
from anchor_ref.figures import maps, style
from anchor_ref.measure import density, recall

OUT = Path(__file__).parent.parent / "docs" / "images" / "method.png"
N, LAYER, HEAD, THETA = 8192, 7, 1, 9.0  # as in notebook 00


def main() -> None:
    matplotlib.use("Agg")
    style.use_style()
    model, tokenizer = load_bundled()
    document = make_document(36_000, seed=7, depths=(0.1, 0.3, 0.55))
    tokens = tokenizer(document.text, return_tensors="pt").input_ids[:, :N]
    layer = capture_qkv(model, tokens, layers=[LAYER], dtype=torch.float32)[LAYER]
    config = AnchorConfig(theta=THETA)
    _, trace = anchor_attention(layer.q, layer.k, layer.v, config, return_trace=True)
    kept = recall(layer.q, layer.k, trace.stripes, config)[0, HEAD].mean()
    share = density(trace.stripes, config, N, N)[0, HEAD]

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.9), width_ratios=[1.16, 1])
    q, k = layer.q[0, HEAD], layer.k[0, HEAD // 4]
    maps.draw_attention_map(maps.data_attention_map(q, k, layer.scaling, pixels=256), left)
    left.set_title("Where does this head look?")
    maps.draw_kept_map(maps.data_kept_map(trace.stripes, HEAD, config, N), right)
    right.set_aspect("auto")
    right.set_title(f"Kept: {share:.0%} of the pairs, {kept:.0%} of the attention")
    style.caption(
        figure,
        f"Bundled model, layer {LAYER}, head {HEAD}, N = {N}, θ = {THETA:g}. Left: largest weight "
        "in each 32 x 32 cell. Right: every line is one selected key.",
    )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT)


if __name__ == "__main__":
    main()
