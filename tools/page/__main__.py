"""Make docs/heads.html, one page that needs no kernel, no network and no other file.

python -m tools.page                  measure the bundled heads anew, minutes on two cores
python -m tools.page --keep-numbers   take them from the page that is there
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from bokeh.resources import Resources
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.colors import to_rgb

from anchor_lab.drawing.style import MAGNITUDE, STRIPE
from anchor_models import load_bundled_heads
from anchor_models.heads import BundledHeads
from anchor_ref import AnchorConfig
from anchor_ref.measure import density_floor
from tools.notebooks import ROOT
from tools.page import figures, measured

PAGE = ROOT / "docs" / "heads.html"
HERE = Path(__file__).parent
# Skipped cells run from the colour of nothing to that of a loss; of each theme the two ends.
SKIPPED = {"light": ("#FFFFFF", STRIPE), "dark": ("#2A2D33", "#FF7A1F")}
FAINTEST_KEPT = {"light": 0.0, "dark": 0.22}  # of cividis: its dark end is lost on a dark page


def palette(theme: str) -> dict[str, list[list[int]]]:
    """Colours of each level, 0 to 255: of what is computed, and of what is skipped."""
    kept, skipped = [], []
    nothing, loss = (to_rgb(end) for end in SKIPPED[theme])
    start = FAINTEST_KEPT[theme]
    for level in range(measured.LEVELS + 1):
        strength = level / measured.LEVELS
        kept.append(matplotlib.colormaps[MAGNITUDE](start + (1 - start) * strength)[:3])
        # Slowly at first: faint weights are no loss.
        mixed = zip(nothing, loss, strict=True)
        skipped.append([a + strength**2 * (b - a) for a, b in mixed])
    as_bytes = [[[round(255 * x) for x in colour] for colour in row] for row in (kept, skipped)]
    return dict(zip(("kept", "skipped"), as_bytes, strict=True))


def page_data(bundled: BundledHeads) -> dict:
    """Everything that the page knows; numbers as `anchor_ref.measure` has them."""
    config, heads = AnchorConfig(), []
    for head in measured.measured(bundled):
        heads.append(head)
        print(f"layer {head['layer']}, head {head['head']}", file=sys.stderr)
    words = json.dumps(bundled.words, ensure_ascii=False).encode()
    return {
        "tokens": len(bundled.words),
        "cell": measured.CELL,
        "group": config.group_size,
        "init": config.init_blocks * config.block_size,
        "thetas": list(measured.THETAS),
        "tails": list(measured.TAILS),
        "levels": measured.LEVELS,
        "decades": measured.DECADES,
        "named": measured.NAMED,
        "never": measured.NEVER,
        "words": measured.packed(torch.frombuffer(bytearray(words), dtype=torch.uint8)),
        "lookup": measured.lookup(heads, bundled),
        "answer": bundled.answer,
        "heads": heads,
    }


def data_of(page: str) -> dict:
    """What a page holds."""
    return json.loads(BeautifulSoup(page, "html.parser").find(id="data").string)


def rendered(data: dict) -> str:
    """The page: one file with Bokeh's script, the page's own, and the data."""
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, autoescape=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    lowest = min(row[1] for head in data["heads"] for tail in head["numbers"] for row in tail)
    plots = {
        "map": figures.map_figure(data["tokens"]),
        "curve": figures.curve_figure(int(10 * lowest) / 10),
    }
    return environment.get_template("page.html.j2").render(
        bokeh=Resources(mode="inline", components=["bokeh"]).js_raw[0],
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        data=data,
        floor=float(density_floor(AnchorConfig(), data["tokens"], data["tokens"])),
        words=json.loads(measured.unpacked(data["words"])),
        json={
            "data": json.dumps(data, separators=(",", ":")),
            "plots": json.dumps(plots, separators=(",", ":")),
            "palettes": json.dumps({t: palette(t) for t in SKIPPED}, separators=(",", ":")),
        },
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep-numbers", action="store_true", help="measure nothing anew")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    if options.keep_numbers:
        data = data_of(PAGE.read_text(encoding="utf-8"))
    else:
        data = page_data(load_bundled_heads())
    text = rendered(data)
    options.out.write_text(text, encoding="utf-8")
    print(f"{options.out}: {len(text.encode()) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
