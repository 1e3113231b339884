"""The explorer's controls change its picture, and say in words what it shows."""

import io
from html.parser import HTMLParser

import pytest
import torch

from anchor_lab.explorer import Explorer, Window, look, prepare_heads, select
from anchor_lab.explorer import figure as figures
from anchor_models import Captured
from anchor_ref import AnchorConfig

N = 400


def captured(layer: int, heads: tuple[int, ...], kv_heads: int) -> Captured:
    torch.manual_seed(layer)
    q = torch.randn(1, len(heads), N, 8)
    k, v = (torch.randn(1, kv_heads, N, 8) for _ in range(2))
    return Captured(q, k, v, 0.5, layer=layer, heads=heads)


@pytest.fixture(scope="module")
def heads():
    lines = []
    texts = {2: captured(2, (0, 1, 4, 5), 2), 5: captured(5, (3,), 1)}
    prepared = prepare_heads(texts, steps=[1, 16], on_progress=lines.append)
    assert lines[-1] == "5 of 5 heads prepared"
    return texts, prepared


@pytest.fixture
def explorer(heads):
    return Explorer(heads[1], [f"word{i}" for i in range(N)], theta=1.0, name="toy")


def test_each_query_head_is_paired_with_the_key_head_it_reads(heads):
    texts, prepared = heads
    assert sorted(prepared) == [(2, 0), (2, 1), (2, 4), (2, 5), (5, 3)]
    for head, place, key_head in ((0, 0, 0), (1, 1, 0), (4, 2, 1), (5, 3, 1)):
        assert prepared[2, head].q.equal(texts[2].q[0, place])
        assert prepared[2, head].k.equal(texts[2].k[0, key_head])


def test_every_control_changes_the_picture(explorer):
    explorer.controls["step"].value = 1
    explorer.controls["size"].value = 256
    seen = {explorer.still()}
    for name, value in (
        ("theta", 0.5), ("tail", 64), ("query", 128), ("key", 64), ("size", 32),
        ("head", 4), ("layer", 5), ("step", 16), ("size", N),
    ):  # fmt: skip
        explorer.controls[name].value = value
        picture = explorer.still()
        assert picture not in seen, f"{name} changes nothing"
        seen.add(picture)


def test_the_heads_on_offer_are_those_of_the_layer(explorer):
    layer, head = explorer.controls["layer"], explorer.controls["head"]
    assert (layer.value, head.options, head.value) == (2, (0, 1, 4, 5), 0)
    head.value = 4
    layer.value = 5
    assert (head.options, head.value) == ((3,), 3)
    layer.value = 2
    assert (head.options, head.value) == ((0, 1, 4, 5), 0)


def test_a_head_that_the_next_layer_has_too_stays_chosen(heads):
    head = heads[1][2, 0]
    explorer = Explorer({(layer, number): head for layer in (1, 3) for number in (0, 2)})
    explorer.controls["head"].value = 2
    explorer.controls["layer"].value = 3
    assert explorer.controls["head"].value == 2


def test_the_picture_is_described_in_words(explorer):
    from PIL import Image

    says = explorer.image.value.split('alt="')[1]
    assert says.startswith(
        "Attention map: toy, layer 2, head 0, N = 400, θ = 1, step 16, tail 0: density"
    )
    assert Image.open(io.BytesIO(explorer.still())).size == (660, 710)
    assert explorer.controls["size"].options == (N, 256, 128, 64, 32)


def test_without_a_kernel_a_sentence_stands_for_the_controls(explorer):
    shown = explorer._repr_mimebundle_()
    assert shown["text/plain"] == "8 sliders and a map: run this cell in JupyterLab to move them"
    model = shown["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert model == explorer.box.model_id


@pytest.mark.parametrize("name", ['a "b" <i>, c: d', "org/model, revision: 2", "x' onload='y"])
def test_a_name_may_hold_anything(heads, name):
    explorer = Explorer(heads[1], theta=1.0, name=name)
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    Reader().feed(explorer.image.value)
    ((tag, attributes),) = found
    assert (tag, set(attributes)) == ("img", {"src", "style", "alt"})
    assert attributes["alt"].startswith(f"Attention map: {name}, layer 2, head 0, N = 400, θ = 1")
    title = explorer._picture.title.get_text().splitlines()
    assert title[0] == "layer 2, head 0, N = 400, θ = 1, step 16, tail 0"
    assert title[1] == attributes["alt"].rpartition(": ")[2]


def test_colours_tell_kept_from_skipped_and_faint_from_strong(heads):
    head = heads[1][2, 0]
    for theta, skipped in ((-torch.inf, True), (torch.inf, False)):
        view = look(head, select(head, AnchorConfig(step=1, theta=theta)), Window(300, 140, 32))
        image = figures.data_view(view)["image"]
        red_over_blue = image[..., 0] - image[..., 2]
        strength = (view.log_weight + 5).clamp(0, 5) / 5
        if skipped:
            assert torch.equal(image, figures.skipped_colour(strength))
            strongest = divmod(int(strength.argmax()), 32)
            assert red_over_blue[strongest] == red_over_blue.max() > 0
        else:
            assert image[strength < 0.05].mean() < 0.4, "a kept cell of no weight is dark"
    assert figures.skipped_colour(torch.tensor(0.0)).tolist() == [1, 1, 1]


def test_a_lone_stripe_in_a_wide_cell_is_seen(heads):
    head = heads[1][2, 0]
    view = look(head, select(head, AnchorConfig(step=1, theta=-torch.inf)), Window(300, 140, 32))
    white = figures.data_view(view)["image"]
    view.kept[:, 7] = 1 / 32
    striped = figures.data_view(view)["image"]
    assert (white - striped)[:, 7].mean() > 0.2
    assert torch.equal(white[:, 6], striped[:, 6])
