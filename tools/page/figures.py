"""The page's two pictures as Bokeh models, still empty: the page's script fills them."""

import numpy
from bokeh.embed import json_item
from bokeh.models import CustomJS, Range1d, Span
from bokeh.plotting import figure


def map_figure(tokens: int) -> dict:
    """The attention map: queries downwards, keys to the right, a cross at the cursor."""
    plot = _figure(
        name="map",
        x_range=Range1d(0, tokens),
        y_range=Range1d(tokens, 0),
        x_axis_location="above",
        x_axis_label="key: what is looked at (position in the text)",
        y_axis_label="query: who looks (position in the text)",
        sizing_mode="scale_width",
        aspect_ratio=1,
    )
    # A single pixel: the page's script puts the map in its place, in an array of the same class.
    pixel = numpy.zeros((1, 1), dtype=numpy.uint32)
    # On an axis that runs downwards Bokeh's bottom is the top.
    plot.image_rgba(
        image=[pixel], x=0, y=0, dw=tokens, dh=tokens, origin="bottom_left", anchor="bottom_left",
        name="pixels",
    )  # fmt: skip
    for name, dimension in (("at query", "width"), ("at key", "height")):
        plot.add_layout(Span(location=-1, dimension=dimension, line_width=2, name=name))
    point = CustomJS(code="window.pointAt(cb_obj.x, cb_obj.y)")
    plot.js_on_event("mousemove", point)
    plot.js_on_event("tap", point)
    for axis in (plot.xaxis, plot.yaxis):
        axis.ticker = list(range(0, tokens + 1, tokens // 4))
    return json_item(plot)


def curve_figure(lowest: float) -> dict:
    """Recall beyond the first group against the pairs kept, a dot for each θ."""
    plot = _figure(
        name="curve",
        x_range=Range1d(0, 1.02),
        y_range=Range1d(lowest, 1.06),
        x_axis_label="pairs kept, share of all causal pairs",
        y_axis_label="recall beyond first group",
        sizing_mode="stretch_width",
        height=230,
    )
    empty = {"x": [], "y": []}
    plot.line("x", "y", source=empty, line_width=2, line_dash="4 3", name="other")
    plot.line("x", "y", source=empty, line_width=2, name="line")
    plot.scatter("x", "y", source=empty, size=5, name="dots", line_color=None)
    plot.scatter("x", "y", source=empty, size=13, name="here", line_width=2)
    plot.text(
        "x", "y", "text", source={**empty, "text": [], "align": [], "shift": []}, name="labels",
        x_offset="shift", y_offset=20, text_align="align", text_font_size="12px",
    )  # fmt: skip
    return json_item(plot)


def _figure(**options):
    plot = figure(
        tools="", toolbar_location=None, background_fill_color=None, border_fill_color=None,
        outline_line_color=None, min_border=12, **options,
    )  # fmt: skip
    plot.grid.visible = False
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_font_size = "13px"
    plot.axis.major_label_text_font_size = "12px"
    plot.axis.minor_tick_line_color = None
    return plot
