"""The page to send around: true numbers, true pictures, one small file, and keys move it."""

import base64
import io
import json
import math
import re

import pytest
import torch
from PIL import Image

from anchor_models import load_bundled_heads
from anchor_ref import AnchorConfig
from anchor_ref.heads import attention_scores
from anchor_ref.measure import measure, rows_beyond
from anchor_ref.regions import groups
from tests.browser import CHROMIUM, FLAGS, in_browser
from tools import book
from tools.page import measured
from tools.page.__main__ import PAGE, data_of, palette, rendered

N = 8192
LAYOUT = groups(AnchorConfig(), N, N)


@pytest.fixture(scope="module")
def text():
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(text):
    return data_of(text)


@pytest.fixture(scope="module")
def bundled():
    return load_bundled_heads()


def least(head: dict) -> torch.Tensor:
    """From which θ on each group keeps each key, `[G, N]`; 0 where that is no question."""
    found, packed = torch.zeros(len(LAYOUT), N, dtype=torch.int), measured.unpacked(head["least"])
    packed = torch.frombuffer(bytearray(packed), dtype=torch.uint8).int()
    for g, group in enumerate(LAYOUT):
        keys = group.candidates
        found[g, keys.start : keys.stop], packed = packed.tensor_split([len(keys)])
    assert not len(packed)
    return found


def cells(head: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels, and largest pairs where they are named, else -1, as squares of cells."""
    side = N // measured.CELL
    below = torch.ones(side, side, dtype=torch.bool).tril()
    levels, pairs = torch.zeros(2, side, side, dtype=torch.int)
    packed = bytearray(measured.unpacked(head["levels"]))
    levels[below] = torch.frombuffer(packed, dtype=torch.uint8).int()
    pairs[:] = -1
    packed = bytearray(measured.unpacked(head["pairs"]))
    named = below & (levels >= measured.NAMED)
    pairs[named] = torch.frombuffer(packed, dtype=torch.uint8).int()
    return levels, pairs


# What it holds


@pytest.mark.parametrize(
    ("layer", "theta", "tail"), [(3, 9, 0), (7, 12, measured.TAILS[1]), (20, 0, measured.TAILS[1])]
)
def test_numbers_and_stripes_are_those_of_measure(data, bundled, layer, theta, tail):
    x, config = bundled.captured[layer], AnchorConfig(theta=float(theta), tail=tail)
    found = measure(x.q, x.k, x.v, config, x.scaling)
    beyond = found.recall_summary(rows_beyond(config, N, N))
    everywhere = found.recall_summary()
    kept = found.trace.stripes.to_mask(N)[0]
    heads = [head for head in data["heads"] if head["layer"] == layer]
    assert [head["head"] for head in heads] == list(x.query_heads)
    for place, head in enumerate(heads):
        row = head["numbers"][data["tails"].index(tail)][data["thetas"].index(theta)]
        said = dict(zip(measured.NUMBERS, row, strict=True))
        assert said == pytest.approx(
            {
                "density": found.density[0, place].item(),
                "beyond": beyond["mean"][0, place].item(),
                "all": everywhere["mean"][0, place].item(),
                "worst": beyond["min"][0, place].item(),
            },
            abs=2e-5,
        )
        first = least(head)
        for g, group in enumerate(LAYOUT):
            keys = slice(group.candidates.start, group.candidates.stop)
            assert torch.equal(first[g, keys] <= theta, kept[place, g, keys])


@pytest.mark.parametrize(("layer", "place"), [(3, 2), (7, 1), (20, 0)])
def test_cells_hold_the_largest_weight_and_name_its_pair(data, bundled, layer, place):
    x, size = bundled.captured[layer], measured.CELL
    (head,) = [
        h for h in data["heads"] if (h["layer"], h["head"]) == (layer, x.query_heads[place])
    ]
    levels, pairs = cells(head)
    for row in (0, 1, 137, 300, 511):
        start, stop = size * row, size * (row + 1)
        q, k = x.q[:, place : place + 1, start:stop].double(), x.k[:, :, :stop].double()
        scores = attention_scores(q, k, x.scaling)[0, 0]
        later = torch.arange(stop) > torch.arange(start, stop)[:, None]
        weight = scores.masked_fill(later, -torch.inf).softmax(-1)
        weight = weight.unflatten(1, (-1, size)).transpose(0, 1).flatten(1)  # [cells, 256]
        largest = weight.amax(-1)
        strength = (1 + largest.log10() / measured.DECADES).clamp(0, 1) * measured.LEVELS
        assert (levels[row, : row + 1] - strength).abs().max() < 0.51
        named = pairs[row, : row + 1] >= 0
        assert torch.equal(named, levels[row, : row + 1] >= measured.NAMED)
        pair = weight[named].gather(1, pairs[row, : row + 1][named, None].long())
        torch.testing.assert_close(pair[:, 0], largest[named], rtol=1e-3, atol=0)
    assert levels.max() <= measured.LEVELS


def test_the_pair_that_is_lost_is_the_heaviest_look_at_the_fact(data, bundled):
    look, n = data["lookup"], N
    head = data["heads"][look["head"]]
    x = bundled.captured[head["layer"]]
    place = x.query_heads.index(head["head"])
    query, key = look["query"], look["key"]
    assert key in bundled.fact
    assert n - measured.CELL <= query < n
    assert bundled.words[query] == bundled.words[key], "the page says that it is the same word"
    weights = attention_scores(x.q[:, :, query : query + 1], x.k[:, :, : query + 1], x.scaling)
    weights = weights[0, :, 0].softmax(-1)
    assert weights[place, key].item() == pytest.approx(look["weight"], abs=1e-4)
    fact = weights[:, bundled.fact.start : bundled.fact.stop]
    assert fact.max() == weights[place, key]
    assert least(head)[-1, key] == look["theta"]


def test_more_pairs_are_kept_with_a_larger_theta_and_a_tail(data):
    for head in data["heads"]:
        numbers = torch.tensor(head["numbers"])  # [tails, thetas, numbers]
        assert (numbers.diff(dim=1) >= -1e-5).all()
        assert (numbers[1] >= numbers[0]).all()
        assert ((numbers >= 0) & (numbers <= 1)).all()


# The file


def test_it_is_one_small_file_that_loads_nothing(text):
    assert len(text.encode()) <= 3_000_000
    assert book.remote(text) == set()
    assert not re.findall(r"<(?:link|script|img|iframe)[^>]+(?:src|href)=[\"'](?!data:)", text)


def rest(page: str) -> str:
    """The page without what another version of Bokeh would write."""
    page = re.sub(r"/\* BEGIN bokeh.min.js \*/.*?</script>", "", page, flags=re.DOTALL)
    return re.sub(r'(?<=id="plots">).*?</script>', "", page, flags=re.DOTALL)


def test_it_is_what_the_command_makes_of_its_numbers(text, data):
    assert rest(rendered(data)) == rest(text), "run python -m tools.page --keep-numbers"
    assert len(rest(text)) > 1_000_000


def test_its_one_measured_sentence_follows_the_numbers(data):
    look = data["lookup"] | {"weight": 0.5, "theta": 3}
    page = " ".join(rendered(data | {"lookup": look}).split())
    assert "gives about 50 % of its attention" in page
    assert "no θ below 3 keeps" in page


# In a browser


def opened(playwright, **context):
    """The page from its file in a browser without a network; faults are collected."""
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    page = browser.new_context(offline=True, **context).new_page()
    page.set_default_timeout(60_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("file:", "data:")) or page.faults.append(request.url)
        ),
    )
    page.goto(PAGE.as_uri())
    page.locator("body[data-shown]").wait_for()
    return page


@pytest.fixture(scope="module")
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as found:
        yield found


def shown(page, head: int, theta: int, tail: int) -> list[float]:
    """The numbers that the page shows, once it shows what is asked for."""
    page.locator(f"body[data-shown='{head} {theta} {tail}']").wait_for()
    density, *recalls = (page.locator(f"#{name}").inner_text() for name in measured.NUMBERS)
    return [float(density.removesuffix(" %")) / 100, *map(float, recalls)]


@in_browser
def test_keys_alone_move_it_and_it_shows_what_was_measured(playwright, data):
    page = opened(playwright, viewport={"width": 1280, "height": 900})
    number, theta, tail = (
        int(x) for x in page.locator("body").get_attribute("data-shown").split()
    )

    def is_right():
        found = shown(page, number, theta, tail)
        expected = data["heads"][number]["numbers"][tail][data["thetas"].index(theta)]
        assert found == pytest.approx(expected, abs=5.1e-4)
        return found

    before = is_right()
    page.locator("#lookup").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "head"
    page.keyboard.press("ArrowDown")
    number += 1
    is_right()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "theta"
    for key, moved in (("ArrowRight", 1), ("ArrowRight", 1), ("ArrowLeft", -1), ("End", 99)):
        page.keyboard.press(key)
        theta = min(theta + moved, data["thetas"][-1])
        is_right()
    page.keyboard.press("Home")
    theta = data["thetas"][0]
    assert is_right() != before
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    tail = 1
    is_right()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "map"
    assert "θ = 0, tail 512" in page.locator("#map").get_attribute("aria-label")
    said = page.locator("#where").inner_text()
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("said => document.getElementById('where').innerText != said", arg=said)
    for name in ("dropped", "zoom"):  # no stop between that shows no focus
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
    assert page.faults == []


PIXELS = """() => {
  const found = Bokeh.documents.map((d) => d.get_model_by_name("pixels")).find((model) => model);
  const bytes = new Uint8Array(found.data_source.data.image[0].buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768)
    text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}"""


def pixels(page) -> torch.Tensor:
    """The map that the page holds, `[rows, columns, 4]`: as text, since a list takes seconds."""
    side = N // measured.CELL
    held = bytearray(base64.b64decode(page.evaluate(PIXELS)))
    return torch.frombuffer(held, dtype=torch.uint8).view(side, side, 4).int()


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_say_what_is_computed(playwright, data, scheme):
    page = opened(playwright, color_scheme=scheme)
    number = data["lookup"]["head"]
    page.get_by_role("combobox", name="Head").select_option(str(number))
    page.get_by_role("checkbox", name="Tail").check()
    shown(page, number, 9, 1)
    side = N // measured.CELL
    image = pixels(page)
    colours = {name: torch.tensor(rows) for name, rows in palette(scheme).items()}
    levels, pairs = cells(data["heads"][number])
    first = least(data["heads"][number])
    keys, kept = torch.arange(N), torch.empty(side, side)
    read = torch.empty(side, N, dtype=torch.bool)  # by the rows of a cell
    for g, group in enumerate(LAYOUT):
        always = (keys < len(group.init)) | (keys >= group.window_start)
        counts = (always | (first[g] <= 9)).float()
        rows = slice(group.rows.start // measured.CELL, group.rows.stop // measured.CELL)
        read[rows], kept[rows] = counts > 0, counts.unflatten(0, (side, -1)).mean(-1)
    tail = slice(-data["tails"][1] // measured.CELL, None)
    read[tail], kept[tail] = True, 1
    share = torch.where(kept > 0, 0.45 + 0.55 * kept, 0)
    rows, columns = (pairs >= 0).nonzero(as_tuple=True)
    key = columns * measured.CELL + pairs[rows, columns] % measured.CELL
    share[rows, columns] = read[rows, key].float()  # of cells that name a pair: is it computed?
    share = share[..., None]
    expected = share * colours["kept"][levels] + (1 - share) * colours["skipped"][levels]
    below = torch.ones(side, side, dtype=torch.bool).tril()
    assert (image[..., :3] - expected)[below].abs().max() <= 1
    assert (image[..., 3] == 255 * below).all()
    assert ((kept > 0) & (kept < 1) & below).any()
    assert ((kept == 0) & below).any()
    assert page.faults == []


@in_browser
def test_the_words_of_a_pair_that_is_lost_are_shown_and_a_tail_brings_it_back(playwright, data):
    page = opened(playwright)
    look = data["lookup"]
    page.locator("#lookup").click()
    shown(page, look["head"], 9, 0)
    for name, token in (("query", look["query"]), ("key", look["key"])):
        found = page.locator(f"#{name}-words")
        assert found.locator("b").inner_text() == "observatory"
        assert f"(token {token})" in found.inner_text()
    said = page.locator("#verdict").inner_text()
    weight = float(re.match(r"weight ≈ ([\d.]+), skipped", said)[1])
    assert math.isclose(weight, look["weight"], rel_tol=0.07)
    assert f"from θ = {look['theta']} on" in said
    page.get_by_role("checkbox", name="Tail").check()
    shown(page, look["head"], 9, 1)
    assert "computed: the query is in the tail" in page.locator("#verdict").inner_text()
    page.get_by_role("checkbox", name="Tail").uncheck()
    page.locator("#theta").focus()
    for theta in range(10, look["theta"] + 1):
        page.keyboard.press("ArrowRight")
        shown(page, look["head"], theta, 0)
        kept = "computed as a stripe" in page.locator("#verdict").inner_text()
        assert kept == (theta >= look["theta"])
    assert page.faults == []


def drawn_as_held(page, frame) -> bool:
    """Is the map on the screen the one in memory, not turned, not moved? Large areas tell."""
    left, top, width, height = frame
    screen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    side = N // measured.CELL
    image = pixels(page)
    spots = [(120, 40), (250, 200), (380, 300), (500, 450)]  # dark windows
    spots += [(40, 120), (200, 250), (300, 380)]  # later keys
    different = 0
    for row, column in spots:
        x, y = left + (column + 0.5) / side * width, top + (row + 0.5) / side * height
        near = [
            screen.getpixel((round(x) + i, round(y) + j)) for i in (-1, 0, 1) for j in (-1, 0, 1)
        ]
        *colour, opaque = image[row, column].tolist()
        colour = colour if opaque else [255, 255, 255]
        distance = min(max(abs(a - b) for a, b in zip(colour, c, strict=True)) for c in near)
        different += distance > 40
    return different == 0


@in_browser
def test_the_pointer_reads_the_cell_under_it(playwright, data):
    page = opened(playwright, viewport={"width": 1280, "height": 900})
    frame = page.evaluate(
        """() => {
          const view = Bokeh.index.roots.find((view) => view.model.name == "map");
          const { left, top, width, height } = view.frame.bbox;
          const box = view.el.getBoundingClientRect();
          return [box.left + left, box.top + top, width, height];
        }"""
    )
    left, top, width, height = frame
    assert abs(width - height) < 0.1 * width
    row, column = 400, 60
    side = N // measured.CELL
    assert drawn_as_held(page, frame)
    page.mouse.move(left + (column + 0.5) / side * width, top + (row + 0.5) / side * height)
    wanted = rf"\(token ({'|'.join(str(row * measured.CELL + i) for i in range(16))})\)"
    page.locator("#query-words", has_text=re.compile(wanted)).wait_for()
    wanted = rf"\(token ({'|'.join(str(column * measured.CELL + i) for i in range(16))})\)"
    page.locator("#key-words", has_text=re.compile(wanted)).wait_for()
    page.mouse.move(left + 0.9 * width, top + 0.1 * height)
    page.locator("#verdict", has_text="later than the query").wait_for()
    assert page.faults == []


@in_browser
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(playwright, width):
    page = opened(playwright, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#map").bounding_box()
    assert box["width"] > 0.45 * width
    assert box["height"] > 0.8 * box["width"], "the map is a square"
    for role, name in (("combobox", "Head"), ("slider", "Threshold θ"), ("checkbox", "Tail")):
        assert page.get_by_role(role, name=name).is_visible()
    assert page.faults == []


@in_browser
def test_it_follows_the_colour_scheme_of_the_system(playwright):
    page = opened(playwright, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"{background} != {json.dumps(dark)}")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.wait_for_timeout(500)
    assert page.faults == []


@in_browser
def test_on_paper_it_is_dark_on_white_and_a_dark_figure_keeps_its_ground(playwright):
    page = opened(playwright, color_scheme="dark")
    page.emulate_media(media="print")

    def style(selector: str, name: str) -> str:
        return page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{name}")

    assert style("body", "backgroundColor") == "rgb(255, 255, 255)"
    assert style(".words b", "color") == style("body", "color") == "rgb(26, 26, 26)"
    for figure in ("#map", "#curve"):
        assert style(figure, "backgroundColor") == "rgb(21, 23, 26)"
        assert style(figure, "printColorAdjust") == "exact"
    page.emulate_media(color_scheme="light")
    page.wait_for_function(
        "getComputedStyle(document.querySelector('#map')).backgroundColor == 'rgba(0, 0, 0, 0)'"
    )
    assert page.faults == []
