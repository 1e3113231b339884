"""The triangle pair by pair, and a model whose layers take different methods."""

import pytest
import torch

from anchor_lab.methods import Dense, StreamingLLM, Triangle, TriangleMix
from anchor_lab.methods.corrections import DeltaCorrection, MeanCorrection
from anchor_lab.methods.in_a_model import method_attention
from tests.anchor_lab.methods.test_in_a_model import llama, logits


@pytest.mark.parametrize("n", [1, 7, 40, 131])
@pytest.mark.parametrize("sizes", [(2, 5, 4), (0, 1, 0), (8, 3, 50)])
def test_the_triangle_is_first_keys_near_keys_and_last_rows(n, sizes):
    init, window, last = sizes
    q = torch.zeros(1, 2, n, 4)
    selection = Triangle(*sizes).select(q, q)
    mask, kept = selection.to_mask(), 0
    for i in range(n):
        for j in range(n):
            wanted = j <= i and (j < init or i - j < window or i >= n - last)
            assert (mask[0, :, i, j] == wanted).all()
            kept += wanted
    assert (selection.executed >= kept).all()
    assert selection.scored == 0


def test_the_published_triangle():
    assert Triangle() == Triangle(init=8, window=512, last=128)


@pytest.mark.parametrize(
    ("share", "layers", "shallow"), [(0.5, 32, 16), (0.5, 5, 3), (0.0, 4, 0), (1.0, 4, 4)]
)
def test_the_first_layers_are_shallow(share, layers, shallow):
    mix = TriangleMix(share=share)
    found = [mix.in_layer(layer, layers) for layer in range(layers)]
    assert found == [Dense()] * shallow + [Triangle()] * (layers - shallow)


def test_each_layer_of_a_model_takes_its_own_method():
    model, mix = llama(num_hidden_layers=3), TriangleMix(deep=Triangle(1, 4, 2))
    with method_attention(model, mix) as densities:
        mixed = logits(model)
    n = 170
    rows = [n if i >= n - 2 else min(i + 1, 4 + (i >= 4)) for i in range(n)]
    share = sum(min(kept, i + 1) for i, kept in enumerate(rows)) / (n * (n + 1) / 2)
    assert densities == pytest.approx([1.0, 1.0, share])  # one and a half of three: two
    assert not torch.allclose(mixed, logits(model), atol=1e-2)
    with method_attention(model, TriangleMix(StreamingLLM(0, 16), Dense())) as other:
        logits(model)
    assert other[0] == other[1] < other[2] == 1.0


def test_a_tail_and_a_correction_hold_in_every_layer():
    model, mix = llama(), TriangleMix(StreamingLLM(0, 16), Triangle(1, 4, 2))
    exact = logits(model)
    with method_attention(model, mix, tail=170):
        torch.testing.assert_close(logits(model), exact)
    with method_attention(model, mix, correction=DeltaCorrection(1)) as densities:
        torch.testing.assert_close(logits(model), exact)
    assert densities == [1.0, 1.0]
    with method_attention(model, mix) as plain:
        logits(model)
    with method_attention(model, mix, correction=MeanCorrection(1)) as densities:
        means = logits(model)  # each dropped key is its own mean
    torch.testing.assert_close(means, exact, rtol=1e-3, atol=1e-3)
    assert densities == pytest.approx([1.0, 1.0])
    assert max(plain) < 0.5


@pytest.mark.usefixtures("unchecked_annotations")
def test_what_is_no_mix_is_refused():
    with pytest.raises(TypeError, match="shallow must be of type Method, got str"):
        TriangleMix("Dense")
    with pytest.raises(TypeError, match="deep must be of type Method, got NoneType"):
        TriangleMix(deep=None)
    with pytest.raises(ValueError, match=r"share must be a number in \[0, 1\], got 1.5"):
        TriangleMix(share=1.5)
    with pytest.raises(ValueError, match=r"layer must be in 0\.\.1, got 2"):
        TriangleMix().in_layer(2, 2)
    with pytest.raises(ValueError, match="window must be an integer of at least 1"):
        Triangle(window=0)
