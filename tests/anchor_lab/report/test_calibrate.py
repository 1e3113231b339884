"""A model is calibrated layer by layer, goes on where it stopped, and is judged on other texts."""

from dataclasses import replace

import pytest
import torch

from anchor_lab.analysis import average_curves, choose_thetas
from anchor_lab.report import inspect
from anchor_lab.report.calibrate import calibrate
from anchor_models import Calibration, capture_qkv, load_bundled, make_document
from anchor_models.transformers import options
from anchor_ref import AnchorConfig
from anchor_ref.measure import measure


def test_a_model_is_calibrated_on_strings_and_tokens_alike():
    model, tokenizer = load_bundled()
    config = AnchorConfig(16, 4)
    texts = [make_document(300, seed=seed).text for seed in (1, 2)]
    tokens = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
    found = calibrate(model, iter(texts), 0.9, config, tokenizer=tokenizer)
    assert list(found.thetas) == list(range(8))
    assert all(len(heads) == 8 for heads in found.thetas.values())
    assert found == calibrate(model, [tokens[0], tokens[1][0]], 0.9, config)
    captures = [capture_qkv(model, ids, dtype=torch.float32) for ids in tokens]
    assert found == choose_thetas(average_curves(captures, config), 0.9)
    assert found.lengths == tuple(sorted(ids.shape[1] for ids in tokens))
    few = (0.0, 4.0, 9.0)
    asked = {"per": "layer", "thetas": few}
    expected = choose_thetas(average_curves(captures[:1], config, few), 0.9, "layer")
    assert calibrate(model, tokens[:1], 0.9, config, **asked) == expected
    with pytest.raises(TypeError, match="tokenizer must be given for strings, and text 1 of"):
        calibrate(model, [tokens[0], texts[1]], 0.9, config)


def test_outlier_rows_are_calibrated_with_the_means_of_their_head(tmp_path):
    model, tokenizer = load_bundled()
    text, plain = make_document(300, seed=1).text, AnchorConfig(16, 4)
    rows = AnchorConfig(16, 4, outliers=2, outlier_choice="even")
    found = calibrate(model, [text], 0.9, rows, tokenizer=tokenizer)
    without = calibrate(model, [text], 0.9, plain, tokenizer=tokenizer)
    pairs = [
        (own, other)
        for layer, heads in found.thetas.items()
        for own, other in zip(heads, without.thetas[layer], strict=True)
    ]
    # Each keeps what its means keep, and more: no head needs a larger threshold.
    assert all(own <= other for own, other in pairs)
    assert any(own < other for own, other in pairs)
    found.save(tmp_path / "rows.json")
    again = Calibration.load(tmp_path / "rows.json")
    assert again == found
    with options(theta=again) as in_force:
        assert (in_force.sizes.outliers, in_force.sizes.outlier_choice) == (2, "even")
    with (
        pytest.raises(ValueError, match=r"outliers must be 2, .* got 4"),
        options(theta=again, outliers=4),
    ):
        pass


def test_texts_are_read_one_after_the_other_and_their_captures_are_gone(tmp_path, monkeypatch):
    model, _ = load_bundled()
    read, told = [], []

    def texts():
        for seed in (1, 2):
            read.append(seed)
            yield torch.full((2, 70), seed)

    def watch(left, desc):
        assert len(read) == 1 + len(told) // 2, "a text was read too early"
        assert len(list(tmp_path.rglob("layer_*.safetensors"))) == 8, "one was left behind"
        told.append((desc, list(left)))
        return left

    config = AnchorConfig(16, 2)
    found = calibrate(model, texts(), 0.9, config, folder=tmp_path, progress=watch)
    assert told == [(f"text {n}, layers", list(range(8))) for n in range(4)]
    assert not list(tmp_path.rglob("*.safetensors"))
    assert found.lengths == (70, 70)
    # Each row is a prompt of its own; nothing is measured twice, for another target either.
    monkeypatch.setattr(inspect, "capture_qkv", None)
    told.clear()
    again = calibrate(model, texts_again(), 0.95, config, folder=tmp_path, progress=nothing)
    assert again.target_recall == 0.95
    assert again == calibrate(model, texts_again(), 0.95, config, folder=tmp_path, per="head")


def texts_again():
    return [torch.full((2, 70), seed) for seed in (1, 2)]


def nothing(left, desc):
    assert not left
    return left


def test_a_calibration_goes_on_where_it_was_interrupted(tmp_path):
    model, _ = load_bundled()
    tokens, config = torch.arange(70)[None], AnchorConfig(16, 2)

    class Stopped(Exception):
        pass

    def stop_after_three(left, desc):
        for place, layer in enumerate(left):
            if place == 3:
                raise Stopped
            yield layer

    with pytest.raises(Stopped):
        calibrate(model, [tokens], 0.9, config, folder=tmp_path, progress=stop_after_three)
    seen = []
    found = calibrate(
        model, [tokens], 0.9, config, folder=tmp_path,
        progress=lambda left, desc: seen.extend(left) or left,
    )  # fmt: skip
    assert seen == [3, 4, 5, 6, 7]
    assert found == calibrate(model, [tokens], 0.9, config)
    with pytest.raises(ValueError, match="holds results made with text_sha256"):
        calibrate(model, [tokens + 1], 0.9, config, folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds results made with sizes \[16, 2, 1, 0\]"):
        calibrate(model, [tokens], 0.9, AnchorConfig(8, 4), folder=tmp_path)


def test_what_is_no_text_is_refused(unchecked_annotations):
    with pytest.raises(TypeError, match="text 0 of texts must be a string or token"):
        calibrate(None, [7], 0.9)


def test_a_layer_of_another_attention_is_refused(monkeypatch):
    def windowed(model, tokens, layers, heads, **more):
        raise ValueError("layers must be plain causal attention, got layer 0")

    monkeypatch.setattr(inspect, "capture_qkv", windowed)
    with pytest.raises(ValueError, match="layers must be plain causal attention"):
        calibrate(load_bundled()[0], [torch.arange(150)], 0.9, AnchorConfig(8, 2))
    with pytest.raises(ValueError, match="sees a window"):
        inspect.curves_of({"skipped": "layer 3 sees a window"}, 90)


def test_what_a_calibration_reaches_elsewhere_is_what_measure_finds():
    model, tokenizer = load_bundled()
    config = AnchorConfig(16, 4, tail=40)
    texts = [
        tokenizer(make_document(750, seed=seed).text, return_tensors="pt").input_ids[:, :n]
        for seed, n in ((1, 100), (2, 150))
    ]
    found = calibrate(model, texts[:1], 0.9, config)
    check = found.check(model, texts[1])
    assert (check.length, check.lengths, check.target_recall) == (150, (100, 100), 0.9)
    captured = capture_qkv(model, texts[1], dtype=torch.float32)
    for layer, x in captured.items():
        plain = replace(config, tail=0)
        thetas = found.thetas[layer]
        seen = measure(x.q, x.k, x.v, plain, x.scaling, theta_by_head=thetas)
        assert check.recall[layer] == pytest.approx(
            seen.recall[0, :, config.group_size :].double().mean(-1).tolist(), abs=1e-5
        )
        assert check.density[layer] == pytest.approx(seen.density[0].tolist(), abs=2e-3)
    short = [
        (value, layer, head)
        for layer, heads in check.recall.items()
        for head, value in enumerate(heads)
        if value < 0.9
    ]
    assert check.short == [(layer, head) for _, layer, head in sorted(short)]
    said = str(check)
    assert f"{len(short)} of 64 heads fall short of a recall of 0.9 beyond the first group" in said
    assert "theta was calibrated on texts of at most 100 tokens, and a prompt has 150" in said
    assert "calibrated on" not in str(found.check(model, texts[0]))
    # On its own text it reaches what it says.
    same = found.check(model, texts[0])
    for layer in found.reached:
        assert same.recall[layer] == pytest.approx(found.reached[layer], abs=1e-5)


def test_a_check_refuses_what_it_cannot_judge():
    model, tokenizer = load_bundled()
    found = calibrate(model, [torch.arange(70)], 0.9, AnchorConfig(16, 2))
    for text, error, said in (
        ("words", TypeError, "tokenizer must be given for strings, and text is one"),
        (torch.arange(32), ValueError, r"longer than a group, 32 tokens, .* got one of 32"),
        (torch.zeros(2, 90, dtype=torch.int64), ValueError, "text must be one prompt, got 2"),
    ):
        with pytest.raises(error, match=said):
            found.check(model, text)
    some = {name: {0: getattr(found, name)[0][:3]} for name in ("thetas", "reached", "density")}
    with pytest.raises(ValueError, match=r"must have the 3 query heads of layer 0 .* got 8"):
        replace(found, **some).check(model, torch.arange(70))
    assert found.why_not_for(70) is None
    assert "a prompt has 71" in found.why_not_for(71)
    assert found.check(model, make_document(300, seed=1).text, tokenizer).length > 70


def test_a_target_out_of_range_is_refused_before_any_text_is_read():
    def texts():
        raise AssertionError("a text was read")
        yield

    with pytest.raises(ValueError, match="target_recall must be in"):
        calibrate(None, texts(), 1.0)
