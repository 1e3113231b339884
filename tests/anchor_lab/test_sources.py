"""What is compared: a model on a text, a saved capture of it, planted stripes; each told apart."""

from dataclasses import replace
from math import exp

import pandas as pd
import pytest
import torch

from anchor_lab.experiments.compare import runs
from anchor_lab.experiments.compare.runs import KEY, describe, open_table, run_comparison
from anchor_lab.methods import AnchorAttention, Dense, StreamingLLM
from anchor_lab.sources import fingerprint, planted, read_by_model, saved_capture
from anchor_models import Captured, capture_qkv, load_bundled, save_capture
from anchor_models.planted import HEAVY, LOCAL, QUERY_NOISE, planted_stripes
from anchor_models.texts import read_text
from anchor_ref import AnchorConfig

N, LAYERS = 300, [1, 4]
ROW = dict.fromkeys(KEY, 0)
SWEEPS = {
    "StreamingLLM": [StreamingLLM(8, 64), StreamingLLM(8, 128)],
    "AnchorAttention": [AnchorAttention(AnchorConfig(16, 4, theta)) for theta in (2.0, 5.0)],
}


@pytest.fixture(scope="module")
def loaded():
    return load_bundled()


@pytest.fixture(scope="module")
def by_model(loaded):
    return read_by_model(loaded[0], "bundled", read_text("document", loaded[1], N))


@pytest.fixture(scope="module")
def saved(loaded, tmp_path_factory):
    """(folder, file) of the same two layers."""
    folder = tmp_path_factory.mktemp("saved") / "mine"
    tokens = read_text("document", loaded[1], N).tokens
    captured = capture_qkv(loaded[0], tokens, LAYERS, dtype=None, save_to=folder)
    save_capture(captured, folder.parent / "mine.safetensors")
    return folder, folder.parent / "mine.safetensors"


def table_in(folder, settings):
    return open_table(folder / "compare.csv", settings)


def measured(source, folder, heads=(0, 5), **more):
    frame = run_comparison(
        source, table_in(folder, describe(source, 64)), SWEEPS, heads=heads, **more
    )
    return frame.drop(columns="text").sort_values(["layer", "head", "density"], ignore_index=True)


def made_up(layer=0, heads=4, n=N, heads_there=None, **more):
    random = torch.Generator().manual_seed(layer)
    q, k, v = (torch.randn(1, h, n, 16, generator=random) for h in (heads, 2, 2))
    return Captured(2 * q, k, v, 0.25, layer=layer, heads=heads_there, **more)


def save(path, *layers):
    save_capture({x.layer: x for x in layers}, path)
    return path


# -- what is given


def test_a_saved_capture_gives_the_rows_of_its_model(by_model, saved, tmp_path):
    expected = measured(by_model, tmp_path / "model", layers=LAYERS)
    assert len(expected) == 2 * 2 * 4
    for path in saved:
        source = saved_capture(path)
        assert (list(source.layers), list(source.heads)) == (LAYERS, list(by_model.heads))
        assert (source.length, source.key_heads) == (N, by_model.key_heads)
        pd.testing.assert_frame_equal(measured(source, tmp_path / path.name), expected)


def test_a_capture_cut_short_is_that_of_a_short_prompt(loaded, saved, tmp_path):
    text = read_text("document", loaded[1], N)
    short = read_by_model(loaded[0], "bundled", replace(text, tokens=text.tokens[:, :200]))
    found = measured(saved_capture(saved[0], 200), tmp_path / "cut")
    assert set(found["length"]) == {200}
    expected = measured(short, tmp_path / "short", layers=LAYERS)
    # The model multiplies matrices of other sizes, in another order; recall is 1 less a sum.
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6)


def test_heads_of_a_capture_go_by_the_models_numbers(tmp_path):
    path = save(tmp_path / "a.safetensors", made_up(layer=7, heads=2, heads_there=(3, 6)))
    source = saved_capture(path)
    assert source.heads == (3, 6)
    assert set(measured(source, tmp_path / "out", heads=[6])["head"]) == {6}
    with pytest.raises(ValueError, match="heads must be of 3, 6, got 0"):
        measured(source, tmp_path / "out", heads=[0])
    with pytest.raises(ValueError, match=r"layers must be in 7\.\.7, got 0"):
        measured(source, tmp_path / "out", layers=[0])
    with pytest.raises(ValueError, match="layers must name at least one, got none"):
        measured(source, tmp_path / "out", layers=[])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("density", "seed"), [(0.03, 0), (0.2, 5), (0.0, 1)])
def test_of_planted_stripes_exactly_the_heavy_keys_are_kept(tmp_path, density, seed, device):
    """AnchorAttention at θ = 12 keeps its regions and each planted candidate, and no pair more."""
    n, config = 700, AnchorConfig(64, 2)
    source = planted(n, density, seed, device)
    results = table_in(tmp_path, describe(source, config.group_size))
    frame = run_comparison(source, results, {"AnchorAttention": [AnchorAttention(config)]})
    assert frame["head"].tolist() == list(range(8))
    assert set(frame["text"]) == {"planted"}
    positions = planted_stripes(n, density=density, seed=seed).positions.tolist()
    kept = 0
    for i in range(n):
        start = i // config.group_size * config.group_size
        kept += min(i + 1, 64) if start else 0
        kept += i + 1 - start
        kept += sum(64 <= j < start for j in positions)
    assert frame["density"].tolist() == pytest.approx([kept / (n * (n + 1) / 2)] * 8, rel=1e-6)
    # A dropped score has the local part at most, the sink's is heavy; noise of deviation
    # QUERY_NOISE seldom passes five times that, in either.
    bound = n * exp(LOCAL + 5 * QUERY_NOISE - (HEAVY - 5 * QUERY_NOISE))
    assert bound < 2e-4
    assert frame["recall_min"].min() >= 1 - bound


def test_planted_sizes_are_those_asked_for(tmp_path):
    source = planted(200, q_heads=6, kv_heads=3, head_dim=32)
    x = source.capture([0], tmp_path)[0]
    assert x.q.shape == (1, 6, 200, 32)
    assert x.k.shape == (1, 3, 200, 32)
    assert x.scaling == 32**-0.5
    assert (list(source.layers), list(source.heads), source.key_heads) == ([0], [*range(6)], 3)
    assert planted().length == 4096


@pytest.mark.parametrize("kind", ["model", "capture", "planted"])
def test_methods_run_on_the_device_asked_for(kind, by_model, saved, tmp_path, monkeypatch):
    if kind == "model":
        source = replace(by_model, device=torch.device("meta"))
    elif kind == "capture":
        source = saved_capture(saved[0], device="meta")
    else:
        source = planted(N, device="meta")
    seen = []

    def look(x, *_):
        seen.append({getattr(x, part).device.type for part in "qkv"})
        return [
            {
                "text": source.name,
                "method": "Dense",
                "configuration": "default",
                "layer": x.layer,
                "head": 0,
            }
        ]

    monkeypatch.setattr(runs, "compare_layer", look)
    results = table_in(tmp_path, describe(source, 64))
    run_comparison(source, results, {"Dense": [Dense()]}, source.layers[:1], [0])
    assert seen == [{"meta"}]


# -- what is told apart


def test_every_byte_of_every_tensor_counts():
    """Also the last of a large one, also a bit that no comparison of numbers shows."""
    torch.manual_seed(0)
    tensors = [torch.randn(300, 200).bfloat16(), torch.randn(200), torch.tensor(0.0)]
    prints = [fingerprint(tensors)]
    for x in tensors:
        for place in {0, x.numel() // 2, x.numel() - 1}:
            byte = x.view(-1).view(torch.uint8)[place * x.element_size() :][:1]
            byte ^= 1
            prints.append(fingerprint(tensors))
            byte ^= 1
            assert fingerprint(tensors) == prints[0]
    prints += [
        fingerprint([tensors[0].mT, *tensors[1:]]),
        fingerprint([tensors[0].view(200, 300), *tensors[1:]]),
        fingerprint([tensors[0].view(torch.float16), *tensors[1:]]),
        fingerprint([*tensors[:2], torch.tensor(-0.0)]),
        fingerprint(tensors[::-1]),
        fingerprint(tensors[:2]),
        fingerprint(tensors, "more"),
    ]
    assert len(set(prints)) == len(prints) == 1 + 3 + 3 + 1 + 7


def test_one_capture_is_one_source_as_file_and_as_folder(saved):
    folder, file = (saved_capture(path).about for path in saved)
    assert folder["capture_sha256"] == file["capture_sha256"]
    assert (folder["capture"], file["capture"]) == ("mine", "mine.safetensors")


@pytest.mark.parametrize(
    "other",
    [
        {"scaling": 0.5},
        {"softcap": 30.0},
        {"sliding_window": 5000},
        {"layer": 3},
        {"heads": (4, 5, 6, 7)},
        {"v": made_up().v.nextafter(torch.tensor(9.0))},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_capture_of_the_same_name_is_not_gone_on_with(tmp_path, other):
    path = save(tmp_path / "mine.safetensors", made_up())
    table_in(tmp_path / "out", describe(saved_capture(path), 64)).add([ROW])
    table_in(tmp_path / "out", describe(saved_capture(path), 64))
    path.unlink()  # it may be mapped
    save(path, replace(made_up(), **other))
    with pytest.raises(ValueError, match="holds results made with capture_sha256 '"):
        table_in(tmp_path / "out", describe(saved_capture(path), 64))


def test_another_source_is_not_gone_on_with(by_model, saved, tmp_path):
    sources = [
        by_model,
        *map(saved_capture, saved),
        saved_capture(saved[0], 200),
        planted(N),
        planted(N, seed=1),
        planted(N, 0.05),
        planted(N, q_heads=4),
        planted(N, kv_heads=4),
        planted(N, head_dim=32),
        planted(200),
        replace(planted(N), device=torch.device("meta")),
    ]
    for place, source in enumerate(sources):
        table_in(tmp_path / str(place), describe(source, 64)).add([ROW])
        for other in sources[:place] + sources[place + 1 :]:
            with pytest.raises(ValueError, match="holds results made with"):
                table_in(tmp_path / str(place), describe(other, 64))


def test_only_a_models_rows_depend_on_transformers(by_model, saved):
    assert "transformers" in describe(by_model, 64)["versions"]
    for source in (saved_capture(saved[0]), planted(N)):
        assert set(describe(source, 64)["versions"]) == {"anchor-attention", "torch"}


# -- what is refused


def test_a_layer_that_is_no_causal_attention_is_refused_before_any_is_measured(tmp_path):
    path = save(tmp_path / "a.safetensors", made_up(0), made_up(1, sliding_window=64))
    with pytest.raises(ValueError, match="layer 1 sees a window of 64 keys, not all 300"):
        measured(saved_capture(path), tmp_path / "out", None)
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == ["settings.json"]
    found = measured(saved_capture(path), tmp_path / "out", None, layers=[0])
    assert set(found["layer"]) == {0}
    # A window as long as the prompt hides nothing.
    assert set(measured(saved_capture(path, 64), tmp_path / "cut", None)["layer"]) == {0, 1}


def test_layers_that_differ_in_tokens_or_heads_are_no_one_prompt(tmp_path):
    for other in (made_up(1, n=200), made_up(1, heads=2), made_up(1, heads_there=(0, 1, 2, 5))):
        path = save(tmp_path / "a.safetensors", made_up(0), other)
        with pytest.raises(ValueError, match="the same tokens and heads in all layers"):
            saved_capture(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: saved_capture(path, 0), r"length must be in 1\.\.300, .*safetensors, got 0"),
        (lambda path: saved_capture(path, 301), r"length must be in 1\.\.300, .*, got 301"),
        (lambda path: saved_capture(path, device="abacus"), "PyTorch has here, got 'abacus'"),
        (lambda path: planted(0), "length must be at least 1, got 0"),
        (lambda path: planted(9, 1.5), r"density must be in \[0, 1\], got 1\.5"),
        (lambda path: planted(9, device="abacus"), "PyTorch has here, got 'abacus'"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make(save(tmp_path / "a.safetensors", made_up()))


def test_what_is_no_safetensors_or_was_cut_off_is_named(tmp_path, monkeypatch):
    whole = save(tmp_path / "a.safetensors", made_up()).read_bytes()
    for content in (b"The harbour was quiet.", whole[:-1]):
        (tmp_path / "b.safetensors").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"capture must hold whole safetensors, got .*b\.safe"
        ):
            saved_capture(tmp_path / "b.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert saved_capture("~/a.safetensors").about["capture"] == "a.safetensors"
