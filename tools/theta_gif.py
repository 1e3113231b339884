"""Draw README's animation: θ sweeps from −∞ to +∞ over a head of a real language model.

python -m tools.theta_gif
"""

from io import BytesIO
from math import inf
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from PIL import Image

from anchor_lab.drawing import style, sweep
from anchor_models import load_bundled_heads
from anchor_ref import AnchorConfig

OUT = Path(__file__).parent.parent / "docs" / "images" / "theta.gif"
LAYER, HEAD = 3, 2  # as in the course
THETAS = [-inf, *(step / 2 for step in range(6, 31)), inf]
A_SECOND = 5  # frames


def main() -> None:
    matplotlib.use("Agg")
    style.use_style()
    layer = load_bundled_heads().captured[LAYER]  # of key head 0: its query heads are 0, 1, 2
    q, k = layer.q[:, HEAD : HEAD + 1], layer.k[:, :1]
    steps = sweep.data_sweep(q, k, AnchorConfig(), THETAS, layer.scaling)

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 4.1), width_ratios=[1.1, 1])
    style.caption(
        figure,
        f"SmolLM2, layer {LAYER}, head {HEAD}, N = {q.shape[2]}; grey pairs are never computed. "
        "Attention: of the rows beyond the first group, which keeps everything.",
    )
    # The layout is found once: titles of changing length would make the frames jump.
    sweep.draw_step(steps, len(steps) // 2, left, right)
    figure.canvas.draw()
    figure.set_layout_engine("none")
    still = [0] * A_SECOND + list(range(len(steps))) + [len(steps) - 1] * 2 * A_SECOND
    animation = FuncAnimation(
        figure, lambda i: sweep.draw_step(steps, i, left, right), still, init_func=lambda: None
    )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    animation.save(OUT, writer=PillowWriter(fps=A_SECOND))
    # Three times, then it rests on its last frame: what never stops draws the eye from the text.
    endless = Image.open(BytesIO(OUT.read_bytes()))
    endless.save(OUT, save_all=True, loop=2)


if __name__ == "__main__":
    main()
