"""The report as a notebook with parameters: cells that read a folder of results and draw it."""

from anchor_lab.report.cost import Rates

SETUP = """
from IPython.display import HTML, display
from matplotlib import pyplot as plt

from anchor_ref import AnchorConfig
from anchor_lab.explorer import Window, look, prepare_head, select
from anchor_lab.explorer import figure as explorer
from anchor_lab.report import figure as report
from anchor_lab.drawing import stages
from anchor_lab.drawing import style
from anchor_lab.report import results as found
from anchor_lab.report import tables

style.use_style()
results = found.load_results(FOLDER)
config = AnchorConfig(theta=THETA)
rows = found.heads_by_density(results, THETA)
words, where = results.about["words"], f"{results.settings['model']}, N = {results.n}"
display(HTML(tables.cards(results, THETA, TARGET, RATES)))
"""

OVERVIEW = """
for what in ("density", "recall"):
    figure, ax = plt.subplots(figsize=(4.6, 3.9))
    report.draw_overview(report.data_overview(results, THETA, what), ax)
    ax.set_title(f"Which heads need how much? {what.capitalize()}")
    style.caption(figure, f"{where}, θ = {THETA:g}; mean over all rows of a head.")
    style.show(figure, f"{what} of each head by layer at θ = {THETA:g}")
"""

THETAS = """
figure, ax = plt.subplots(figsize=(4.6, 3.9))
report.draw_thetas(report.data_thetas(results), THETA, TARGET, ax)
ax.set_title("What does θ buy, and what does it cost?")
style.caption(figure, f"{where}; means over {len(rows)} heads, exact over all rows.")
style.show(figure, "recall and density against θ")
figure, ax = plt.subplots(figsize=(4.6, 3.9))
stages.draw_heads(stages.data_heads(rows), ax)
ax.set_title("Which heads can do with less?")
style.caption(figure, f"{where}, θ = {THETA:g}; each point is a head.")
style.show(figure, f"recall against density of each head at θ = {THETA:g}")
display(HTML(tables.theta_table(results, THETA, RATES)))
"""

CALIBRATION = "display(HTML(tables.calibration_table(results, TARGET, THETA)))"

HEADS = "display(HTML(tables.heads_table(rows)))"

# `look` shows the same map as the explorer; the zoom lies where the strongest far key is read.
MAPS = """
for row in found.heads_to_draw(results, THETA, SHOWN):
    title = f"Layer {row['layer']}, head {row['head']}"
    tensors = found.head_tensors(results, row["layer"], row["head"])
    head = prepare_head(*tensors, steps=[config.step])
    selection = select(head, config)
    group = found.last_telling_group(selection.groups, config)
    far = found.strongest_far_keys(head, group)
    zoom = Window(far[0].query - 14, far[0].key - 14, 28)
    for window, note in ((None, "all tokens"), (zoom, "the strongest far key")):
        view = look(head, selection, window)
        figure, ax = plt.subplots(figsize=(4.6, 4.6))
        explorer.draw_view(explorer.data_view(view), ax, words)
        ax.set_title(f"{title}: {note}")
        style.caption(
            figure, f"Density {row['density']:.2f}, recall {row['recall']:.3f}; "
            f"{view.cell} x {view.cell} pairs to a cell."
        )
        style.show(figure, f"attention map of {title.lower()}, {note}")
    kept = set(selection.stripes.keys(0, 0, selection.groups.index(group)).tolist())
    display(HTML(tables.far_keys_table(report.data_far_keys(far, words), kept)))
"""

SCALE = """
figure, ax = plt.subplots(figsize=(4.6, 0.85))
explorer.draw_scale(ax)
style.show(figure, "computed cells run from blue to yellow, skipped ones from white to red")
"""

MADE = "display(HTML(tables.settings_table(results, RATES)))"


TITLE = """
# How sparse is this model?

AnchorAttention (arXiv 2505.23520) lets every query see the start of the prompt, its own group of
2048 tokens, and those keys in between that lie within θ of the best score found there. **Recall**
is the share of the attention mass that this keeps; **density** the share of the causal pairs
computed.
"""

ALL_HEADS = """
## All heads

Heads differ more than layers do. A head of low density and high recall is what the method is made
for; one of density 1 is diffuse, and the method says so by dropping nothing.
"""

WHICH_THETA = """
## Which θ?

*Fewer FLOP* is dense attention's operations over those of the method, choosing included;
*attention* and *prefill* are the estimate explained below. The row of this report's θ stands out.
"""

BY_HEAD = """
One θ for all heads lets some fall far short of the target while others exceed it. Chosen for each
head by the same target, θ spends the pairs where they are needed; `calibration.json` beside this
page holds the choice. It was made on this very text: judge it on another.
"""

BOTH_ENDS = "## Heads one by one: the sparsest, the least sparse, and stripes at their best"

COLOURS = """
First the head that its stripes serve best, then the two ends of the table. Blue to yellow is
computed, white to red is skipped: **white was skipped rightly, red is a loss**. Beside each map
a zoom on the key, a group's length or more away, that gets most attention from the last whole
group, with its words. The tables name the strongest of these keys: *mass* is their weight in an
average row of the group, *weight* that in the row that asks hardest.
"""

SPEED = r"""
## The estimated speed-up

An estimate, not a measurement of this model. With $F$ the floating-point operations of a stage and
$r$ the rate it reached on the device named below, one layer and the linear layers take

$$ t = t_0 + \frac{F_1}{r_1} + \frac{F_2}{r_2} + \frac{F_3}{r_3}, \qquad
   t_\text{dense} = \frac{F}{r}, \qquad t_\text{linear} = \frac{2 P N}{r_\text{matrix}} . $$

Heads that were not looked at count as if they were like those that were. Layers that could not be
measured, such as those with a sliding window, are left out of attention on both sides.

On short prompts the overhead $t_0$ of a call decides, and dense attention wins: the gain grows
with length.
"""


def report_cells(folder: str, theta: float, target: float, rates: Rates) -> list[tuple[str, str]]:
    """The cells of the report: ("markdown" or "code", source) each.

    Args:
        folder: of results, as seen from the notebook.
        theta: threshold at which heads are compared and drawn; one of those measured.
        target: recall that θ was to reach.
        rates: of the device that the estimate is for.
    """
    parameters = f"""
from anchor_lab.report.cost import Rates

FOLDER, THETA, TARGET = {folder!r}, {theta!r}, {target!r}
SHOWN = 2  # heads drawn from either end
RATES = {rates!r}
"""
    cells = (
        ("markdown", TITLE),
        ("code", parameters),
        ("code", SETUP),
        ("markdown", ALL_HEADS),
        ("code", OVERVIEW),
        ("markdown", WHICH_THETA),
        ("code", THETAS),
        ("markdown", BY_HEAD),
        ("code", CALIBRATION),
        ("markdown", BOTH_ENDS),
        ("code", HEADS),
        ("markdown", COLOURS),
        ("code", SCALE),
        ("code", MAPS),
        ("markdown", SPEED),
        ("code", MADE),
    )
    return [(kind, source.strip()) for kind, source in cells]
