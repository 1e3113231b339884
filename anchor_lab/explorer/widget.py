"""The explorer: sliders for layer, head, θ, step, tail and window over one picture."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from html import escape

from anchor_lab.explorer import figure as figures
from anchor_lab.explorer.prepare import STEPS, PreparedHead, prepare_head
from anchor_lab.explorer.view import HeadSelection, View, Window, look, select
from anchor_models.capture import Captured
from anchor_ref.config import AnchorConfig

SMALLEST_WINDOW = 32
TAILS = (0, 16, 64, 128, 512, 2048)


def prepare_heads(
    captured: Mapping[int, Captured],
    steps: Sequence[int] = STEPS,
    on_progress: Callable[[str], None] | None = None,
) -> dict[tuple[int, int], PreparedHead]:
    """The dense pass for every head of the captured layers.

    Args:
        captured: from `capture_qkv`; the first text of a batch is taken.
        steps: as in `prepare_head`.
        on_progress: called with a line of text after each head.

    Returns:
        Prepared heads by (layer, head); heads are the model's own indices.

    Raises:
        ValueError: a layer is not plain causal softmax attention, see `Captured.causal`.
    """
    prepared = {}
    total = sum(x.q.shape[1] for x in captured.values())
    for layer, x in captured.items():
        x = x.causal()
        per_key_head = x.q.shape[1] // x.k.shape[1]
        for place, head in enumerate(x.query_heads):
            prepared[layer, head] = prepare_head(
                x.q[0, place], x.k[0, place // per_key_head], x.scaling, steps
            )
            if on_progress is not None:
                on_progress(f"{len(prepared)} of {total} heads prepared")
    return prepared


class Explorer:
    """Widgets over one picture; show it by making it the last line of a cell.

    Args:
        heads: from `prepare_heads`.
        tokens: text of every token, written beside small windows.
        at: layer and head at the start; None means the first.
        theta: threshold at the start.
        name: of the model, for the picture's alternative text.

    Every control has the focus in turn by Tab and moves by the arrow keys.
    """

    def __init__(
        self,
        heads: Mapping[tuple[int, int], PreparedHead],
        tokens: Sequence[str] | None = None,
        at: tuple[int, int] | None = None,
        theta: float = 9.0,
        name: str = "model",
    ):
        self.heads, self.tokens, self.name = heads, tokens, name
        self.n = len(next(iter(self.heads.values())).q)
        self._select = lru_cache(maxsize=64)(self._select_now)
        self._picture = _Picture()
        self._make_controls(at or min(heads), theta)
        self.refresh()

    def _make_controls(self, at: tuple[int, int], theta: float) -> None:
        import ipywidgets as widgets

        sizes = [self.n]
        while sizes[-1] >= 2 * SMALLEST_WINDOW:
            # Powers of two below the whole, so that cells are whole numbers of tokens.
            sizes.append(2 ** ((sizes[-1] - 1).bit_length() - 1))
        steps = sorted(self.heads[at].anchors)
        look = {"style": {"description_width": "6.5em"}, "layout": {"width": "23em"}}
        places = {"max": max(0, self.n - SMALLEST_WINDOW), "step": SMALLEST_WINDOW} | look

        def one_of(options: Sequence[int], value: int, name: str):
            return widgets.SelectionSlider(options=options, value=value, description=name, **look)

        self.controls = {
            "layer": one_of(sorted({layer for layer, _ in self.heads}), at[0], "layer"),
            "head": one_of(self._heads_of(at[0]), at[1], "head"),
            "theta": widgets.FloatSlider(
                theta, min=0, max=24, step=0.5, description="θ", readout_format=".1f", **look
            ),
            "step": one_of(steps, steps[-1], "step"),
            "tail": one_of(TAILS, 0, "tail"),
            "size": one_of(sizes, self.n, "window"),
            "query": widgets.IntSlider(0, description="from query", **places),
            "key": widgets.IntSlider(0, description="from key", **places),
        }
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self.image = widgets.HTML()
        flow = widgets.Layout(flex_flow="row wrap", max_width="50em")
        self.box = widgets.VBox(
            [widgets.HBox(list(self.controls.values()), layout=flow), self.image]
        )

    def _heads_of(self, layer: int) -> list[int]:
        return sorted(head for of, head in self.heads if of == layer)

    def _changed(self, change) -> None:
        if change.owner is self.controls["layer"]:
            head, heads = self.controls["head"], self._heads_of(change.new)
            before = head.value
            head.unobserve(self._changed, "value")  # one picture, not one for each change
            head.options = heads
            head.value = before if before in heads else heads[0]
            head.observe(self._changed, "value")
        self.refresh()

    def _select_now(
        self, layer: int, head: int, theta: float, step: int, tail: int
    ) -> HeadSelection:
        config = AnchorConfig(theta=theta, step=step, tail=tail)
        return select(self.heads[layer, head], config)

    def view(self) -> tuple[HeadSelection, View]:
        """What the controls ask for: the selection and the window of the map."""
        at = {name: control.value for name, control in self.controls.items()}
        asked = ("layer", "head", "theta", "step", "tail")
        selection = self._select(*(at[name] for name in asked))
        window = Window(at["query"], at["key"], at["size"])
        return selection, look(self.heads[at["layer"], at["head"]], selection, window)

    def refresh(self) -> None:
        """Draw what the controls ask for."""
        selection, view = self.view()
        where = (
            f"layer {self.controls['layer'].value}, head {self.controls['head'].value}, "
            f"N = {self.n}, θ = {selection.config.theta:g}, step {selection.config.step}, "
            f"tail {selection.config.tail}"
        )
        worth = f"density {selection.density:.2f}, recall {selection.recall:.3f}"
        self._png = self._picture.draw(selection, view, self.tokens, f"{where}\n{worth}")
        source = base64.b64encode(self._png).decode()
        says = escape(f"{self.name}, {where}: {worth}")  # a name may be anything
        self.image.value = (
            f'<img src="data:image/png;base64,{source}" style="width:100%;max-width:660px" '
            f'alt="Attention map: {says}">'
        )

    def still(self) -> bytes:
        """The picture as it is now, PNG."""
        return self._png

    def _repr_mimebundle_(self, **kwargs) -> dict:
        """The controls; as text, what to do where no kernel runs, such as on GitHub."""
        says = f"{len(self.controls)} sliders and a map: run this cell in JupyterLab to move them"
        return self.box._repr_mimebundle_(**kwargs) | {"text/plain": says}


class _Picture:
    """One figure whose parts are changed rather than made anew: that is what takes the time."""

    def __init__(self):
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(6.6, 7.1), dpi=100)
        # Every part has its place, and laying out anew would take longer than drawing.
        self.figure.set_layout_engine("none")
        # In hundredths of an inch, which are the picture's pixels: the map gets 520 of them.
        place = lambda x, y, w, h: [x / 660, y / 710, w / 660, h / 710]  # noqa: E731
        self.map = self.figure.add_axes(place(72, 138, 520, 520))
        self.shares = self.figure.add_axes(place(602, 138, 40, 520))
        self.scale = self.figure.add_axes(place(72, 46, 520, 34))
        self.title = self.figure.text(72 / 660, 668 / 710, "", fontsize=10, linespacing=1.4)
        self.image = None

    def draw(self, selection: HeadSelection, view: View, tokens, title: str) -> bytes:
        data = figures.data_view(view)
        if self.image is None:
            self.image = figures.draw_view(data, self.map, tokens)
            figures.draw_scale(self.scale)
        else:
            figures.update_view(self.image, data, tokens)
        self.shares.clear()
        figures.draw_shares(figures.data_shares(selection), self.shares)
        self.shares.set_ylim(self.map.get_ylim())
        self.title.set_text(title)
        png = io.BytesIO()
        self.figure.savefig(png, format="png", pil_kwargs={"compress_level": 1})
        return png.getvalue()
