"""The six tokens of the course and their figures: every number that the notebooks build on."""

import os
import subprocess
import sys
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib import pyplot as plt
from PIL import Image

from anchor_lab.drawing import style, tokens
from anchor_models.six_tokens import six_tokens
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.heads import causal_scores
from anchor_ref.measure import recall


@pytest.fixture(scope="module")
def example():
    found = six_tokens()
    _, trace = anchor_attention(found.q, found.k, found.v, found.config, return_trace=True)
    return found, trace


def test_scores_of_the_first_head_are_those_that_can_be_checked_by_hand(example):
    found, _ = example
    score = causal_scores(found.q, found.k, found.scale)[0, 0]
    assert score[5].tolist() == [4, 3, 0, -3, 1, 2]
    assert score[4, :5].tolist() == [4, 0, 1, 5, 2]
    assert found.scale == found.q.shape[-1] ** -0.5


def test_the_example_has_stripes_skipped_keys_and_an_anchor_that_is_too_low(example):
    found, trace = example
    stripes = [[trace.stripes.keys(0, h, g).tolist() for g in range(3)] for h in range(2)]
    assert stripes == [[[], [1], [1, 3]], [[], [], [2]]]
    score = causal_scores(found.q, found.k, found.scale)
    too_low = (score.amax(-1) - trace.row_anchor)[0, 0]
    assert too_low.tolist() == [0, 0, 0, 0, 1, 0]


def test_pooling_two_queries_loses_the_key_that_one_of_them_wants(example):
    found, trace = example
    pairs = AnchorConfig(block_size=2, step=1, theta=2.0)
    _, pooled = anchor_attention(found.q, found.k, found.v, pairs, return_trace=True)
    alone = recall(found.q, found.k, trace.stripes, found.config)[0, 0, 4]
    together = recall(found.q, found.k, pooled.stripes, pairs)[0, 0, 4]
    assert alone > 0.98
    assert together < 0.3


@pytest.mark.parametrize("head", [0, 1])
def test_kinds_follow_the_definition_of_the_regions(example, head):
    found, trace = example
    undecided = tokens.data_kinds(found.words, found.config)["kind"]
    decided = tokens.data_kinds(found.words, found.config, trace.stripes, head)["kind"]
    for i in range(6):
        group = i // 2
        kept = set(trace.stripes.keys(0, head, group).tolist())
        for j in range(6):
            if j > i:
                expected = " "
            elif j >= 2 * group:
                expected = "W"
            else:
                expected = "I" if j < 1 else "C"
            assert undecided[i][j] == expected
            assert decided[i][j] == ("S" if j in kept else "·") if expected == "C" else expected


def test_a_row_holds_scores_and_their_softmax(example):
    found, _ = example
    data = tokens.data_row(torch.tensor([0.0, torch.tensor(3.0).log()]), found.words[:2])
    torch.testing.assert_close(data["weight"], torch.tensor([0.25, 0.75]))


def test_numbers_hide_later_keys_unless_told_otherwise(example):
    found, _ = example
    hidden = tokens.data_numbers(torch.zeros(6, 6), found.words)["hidden"]
    assert hidden.sum() == 15
    assert not hidden.tril().any()


def test_every_cell_that_is_not_hidden_shows_its_number(example):
    found, trace = example
    style.use_style()
    score = causal_scores(found.q, found.k, found.scale)[0, 0]
    figure, axes = plt.subplots(2, 2)
    tokens.draw_numbers(tokens.data_numbers(score, found.words), axes[0, 0], "{:.0f}")
    tokens.draw_kinds(tokens.data_kinds(found.words, found.config, trace.stripes), axes[0, 1])
    tokens.draw_row(tokens.data_row(score[5], found.words), axes[1])
    figure.canvas.draw()
    said = [text.get_text() for text in axes[0, 0].texts]
    assert len(said) == 21
    assert said[-6:] == ["4", "3", "0", "−3", "1", "2"]
    letters = [text.get_text() for text in axes[0, 1].texts]
    assert letters[-6:] == list("IS·SWW")
    plt.close(figure)


def test_show_keeps_the_colours_of_a_map():
    InteractiveShell.instance()
    style.use_style()
    figure, ax = plt.subplots(figsize=(4, 3))
    noise = torch.randn(80, 80, generator=torch.Generator().manual_seed(5))
    figure.colorbar(ax.imshow(noise.numpy(), cmap=style.MAGNITUDE))
    drawn = BytesIO()
    fine = style.SHARPNESS * figure.dpi
    figure.savefig(BytesIO(), format="png", dpi=fine)  # the layout settles with the first drawing
    figure.savefig(drawn, format="png", dpi=fine)
    with capture_output() as captured:
        style.show(figure, "Noise.")
    shown = BytesIO(b64decode(captured.outputs[0].data["image/png"]))
    before, after = (np.asarray(Image.open(x).convert("RGB"), int) for x in (drawn, shown))
    assert abs(before - after).max() <= 8
    assert len(shown.getvalue()) < len(drawn.getvalue()) / 2


def test_show_gives_the_picture_an_alternative_text_and_its_width_and_closes_it():
    InteractiveShell.instance()
    figure = plt.figure(figsize=(3, 2), dpi=100)
    with capture_output() as captured:
        style.show(figure, "A white square.")
    (output,) = captured.outputs
    assert output.metadata == {"image/png": {"alt": "A white square.", "width": 300}}
    picture = Image.open(BytesIO(b64decode(output.data["image/png"])))
    assert picture.size == (300 * style.SHARPNESS, 200 * style.SHARPNESS)
    assert output.data["text/plain"] == "A white square."
    assert not plt.fignum_exists(figure.number)
    with pytest.raises(ValueError, match="alt must say"):
        style.show(figure, " ")


PLAIN = """
from matplotlib import pyplot as plt
from anchor_lab.drawing import style
figure, ax = style.panels()
style.finish(figure, "Asked?", "Small print.", "A square.")
print("open:", plt.get_fignums())
"""


def test_a_script_without_a_screen_prints_the_words_for_a_figure_once():
    run = subprocess.run(
        [sys.executable, "-c", PLAIN],
        env=os.environ | {"MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "A square.\nopen: []\n"
    assert run.stderr == ""


def test_in_plain_python_a_backend_with_windows_opens_one(monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    monkeypatch.setattr(plt, "show", lambda block: opened.append((block, plt.get_fignums())))
    figure = plt.figure()
    figure.canvas.required_interactive_framework = "qt"
    style.show(figure, "A square.")
    assert opened == [(True, [figure.number])]
    assert not plt.fignum_exists(figure.number)
    assert capsys.readouterr().out == ""
