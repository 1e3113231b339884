"""Options reach the layers and heads that they name, and nothing else is taken."""

import contextvars
import json
import math
import os
import sys
import threading
import warnings
from dataclasses import fields, replace
from inspect import signature

import pytest
import torch

from anchor_models import anchor_attention
from anchor_models.calibration import Calibration
from anchor_models.integration import options as options_file
from anchor_models.integration.options import FIELDS, current_options
from anchor_models.integration.options import SIZES as SIZE_FIELDS
from anchor_models.transformers import options, record
from anchor_ref import AnchorConfig
from tests.anchor_models.integration.tiny import ROUNDING, SIZES, THETA, build, far, logits, tokens

IN_MODELS = AnchorConfig(tail=512)


def densities(model, ids=None, **named):
    """By layer, the density of each head."""
    with options(**(SIZES | named)), record() as stats:
        logits(model, tokens() if ids is None else ids)
    return [layer.density for layer in stats.layers.values()]


def test_one_threshold_for_each_layer():
    model = build()
    found = densities(model, theta=[-math.inf, THETA])
    assert (found[0] == found[0].min()).all()
    assert found[0].min() == densities(model, theta=-math.inf)[0].min()
    assert (found[1] > found[0]).any()
    same = densities(model, theta={1: THETA, 0: -math.inf})
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))


def by_head(backend, thetas, n=70):
    generator = torch.Generator().manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (torch.randn(1, h, n, 16, generator=generator).to(device) for h in (4, 2, 2))
    more = {"scale": 0.5, "backend": backend, "return_trace": True}
    if len(thetas) == 1:
        return anchor_attention(q, k, v, AnchorConfig(theta=thetas[0], **SIZES), **more)
    return anchor_attention(q, k, v, AnchorConfig(**SIZES), theta_by_head=thetas, **more)


def test_each_head_has_its_own_threshold():
    """As one call for each threshold, of which that head's rows are taken."""
    thetas = (math.inf, 5.0, -math.inf, 6.0)
    out, trace = by_head("torch", thetas)
    kept = trace.stripes.to_mask(70)
    for head, theta in enumerate(thetas):
        one, one_trace = by_head("torch", (theta,))
        assert torch.equal(kept[:, head], one_trace.stripes.to_mask(70)[:, head])
        assert torch.equal(out[:, head], one[:, head])
        assert torch.equal(trace.row_anchor, one_trace.row_anchor)
    assert 0 < kept[:, 1].sum() < kept[:, 3].sum() < kept[:, 0].sum()
    assert kept[:, 2].sum() == 0


def test_the_kernels_take_thresholds_by_head_too():
    pytest.importorskip("triton", reason="Triton has wheels for Linux only")
    thetas = (math.inf, 5.0, -math.inf, 6.0)
    (out, trace), (same, same_trace) = (by_head(b, thetas, 50) for b in ("triton", "torch"))
    assert torch.equal(trace.stripes.to_mask(50), same_trace.stripes.to_mask(50))
    torch.testing.assert_close(out, same, atol=1e-5, rtol=1e-5)


def test_as_many_thresholds_as_heads():
    with pytest.raises(ValueError, match="one value for each of q's 4 heads, got 3"):
        by_head("torch", (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="theta must be a real number"):
        by_head("torch", (1.0, 2.0, 3.0, math.nan))


def test_nan_anchors_keep_every_candidate_at_any_threshold():
    q, k, v = (torch.randn(1, 2, 70, 16, generator=torch.Generator()) for _ in range(3))
    q[0, 0, 40] = math.nan
    given = {"backend": "torch", "return_trace": True}
    _, trace = anchor_attention(
        q, k, v, AnchorConfig(**SIZES), theta_by_head=(-math.inf, -math.inf), **given
    )
    assert trace.stripes.counts[0].tolist() == [[0, 16, 0], [0, 0, 0]]


def test_thresholds_by_head_reach_the_heads_of_their_layer():
    model = build()
    found = densities(model, theta=[[math.inf, -math.inf, THETA, THETA], THETA])
    plain = densities(model, theta=THETA)
    assert found[0][0] == 1
    assert found[0][1] == densities(model, theta=-math.inf)[0][1]
    assert torch.equal(found[0][2:], plain[0][2:])


def test_dense_layers_stay_as_sdpa_has_them():
    model, ids = build(), tokens()
    with options(theta=-math.inf, dense_layers=range(2), **SIZES), record() as stats:
        found = logits(model, ids)
    assert torch.equal(found, logits(model, ids, "sdpa"))
    assert [call.why for call in stats.calls] == ["dense_layers names the layer"] * 2
    model.set_attn_implementation("anchor_attention")
    with options(dense_layers=[1], **SIZES), record() as stats:
        logits(model, ids)
    assert [call.ran for call in stats.calls] == ["anchor", "dense"]


def test_the_configuration_speaks_where_no_context_does(tmp_path):
    model, ids = build(), tokens()
    with options(theta=THETA, dense_layers=[0], **SIZES):
        expected = logits(model, ids)
    model.config.anchor_attention = {"theta": {"1": THETA}, "dense_layers": [0], **SIZES}
    assert torch.equal(logits(model, ids), expected)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(
        tmp_path, attn_implementation="anchor_attention", dtype=torch.float64
    )
    assert far(logits(again.eval(), ids), expected) <= ROUNDING
    with options(theta=math.inf):  # the rest stays as configured
        assert far(logits(again, ids), logits(again, ids, "sdpa")) <= ROUNDING


def test_a_configuration_that_is_written_into_is_read_anew():
    model, ids = build(), tokens()
    own = model.config.anchor_attention = {"theta": [THETA, [math.inf] * 4], **SIZES}
    assert [x.ran for x in ran(model, ids)] == ["anchor", "anchor"]
    assert current_options(model.config) is current_options(model.config)
    own["dense_layers"] = [0]
    assert [x.ran for x in ran(model, ids)] == ["dense", "anchor"]
    own["dense_layers"].append(1)
    assert [x.ran for x in ran(model, ids)] == ["dense", "dense"]
    own["dense_layers"].clear()
    own["theta"][1][0] = -math.inf
    density = ran(model, ids)[1].density
    assert density[0] < density[1] == 1
    model.config.anchor_attention = None
    with options(dense_layers=[0], **SIZES):
        assert [x.ran for x in ran(model, ids)] == ["dense", "anchor"]
        with options(dense_layers=[1]):
            assert [x.ran for x in ran(model, ids)] == ["anchor", "dense"]
        assert [x.ran for x in ran(model, ids)] == ["dense", "anchor"]


def ran(model, ids):
    with record() as stats:
        logits(model, ids)
    return stats.calls


def test_a_calibration_that_a_configuration_names_is_read_again_when_it_has_changed(tmp_path):
    model, file = build(), tmp_path / "thetas.json"
    model.config.anchor_attention = {"theta": str(file)}
    for n, theta in enumerate((math.inf, -math.inf)):
        calibration(thetas={0: (theta,) * 4, 1: (theta,) * 4}).save(file)
        os.utime(file, ns=(n, n))  # a clock may be too coarse to tell them apart
        assert current_options(model.config).thetas[0] == (theta,) * 4


def test_the_options_of_a_pass_are_made_once_for_all_its_layers(monkeypatch):
    made, original = [], options_file._made_anew
    monkeypatch.setattr(
        options_file, "_made_anew", lambda *args: made.append(args) or original(*args)
    )
    model, ids = build(num_hidden_layers=4), tokens()
    with options(theta=THETA, **SIZES):
        logits(model, ids)
        logits(model, ids)
    assert len(made) == 1


def test_rows_that_stage_2_asks_by_themselves_are_evenly_spaced_unless_told_otherwise():
    """An extension beyond the paper, that models use where they are told to."""
    model = build()
    plain, rows = densities(model, theta=THETA), densities(model, theta=THETA, outliers=2)
    assert any((more > few).any() for more, few in zip(rows, plain, strict=True))
    even = densities(model, theta=THETA, outliers=2, outlier_choice="even")
    assert all(torch.equal(a, b) for a, b in zip(rows, even, strict=True))
    cosine = densities(model, theta=THETA, outliers=2, outlier_choice="cosine")
    assert any((a != b).any() for a, b in zip(rows, cosine, strict=True))
    none = densities(model, theta=THETA, outliers=2, outlier_theta=-math.inf)
    assert all(torch.equal(a, b) for a, b in zip(none, plain, strict=True))
    by_head = densities(model, theta=[[THETA] * 4] * 2, outliers=2)
    assert all(torch.equal(a, b) for a, b in zip(rows, by_head, strict=True))
    with options() as without:
        assert without.sizes == IN_MODELS


def test_a_configuration_names_what_the_function_takes():
    assert tuple(signature(options).parameters) == FIELDS
    sizes = {field.name for field in fields(AnchorConfig)} - {"theta", "tail"}
    assert set(SIZE_FIELDS) == sizes


def test_contexts_nest_and_end():
    with options(theta=1.0, block_size=32) as outer:
        with options(theta=2.0) as inner:
            assert (inner.thetas, inner.sizes.block_size) == (2.0, 32)
        with pytest.raises(RuntimeError), options(theta=3.0):
            raise RuntimeError
        with options() as same:
            assert same == outer
    with options() as after:
        assert (after.thetas, after.sizes, after.backend) == (12.0, IN_MODELS, "auto")


def test_the_tail_of_a_model_is_named_as_all_else_is(tmp_path):
    model, ids = build(), tokens()
    model.set_attn_implementation("sdpa")
    dense = logits(model, ids)
    model.set_attn_implementation("anchor_attention")
    sizes = {"block_size": 16, "step": 2, "theta": -math.inf}
    with options(**sizes), record() as stats:  # 100 tokens: the tail is all of them
        far_off = (logits(model, ids) - dense).abs().max()
    assert far_off < 1e-6
    assert [layer.tail for layer in stats.layers.values()] == [100, 100]
    assert stats.density == 1
    with options(**sizes, tail=0):
        without = logits(model, ids)
    assert (without - dense).abs().max() > 1e-3
    model.config.anchor_attention = {"tail": 0}
    with options(**sizes):
        assert torch.equal(logits(model, ids), without)
        with options(tail=7), record() as stats:
            some = logits(model, ids)
    assert [layer.tail for layer in stats.layers.values()] == [7, 7]
    # The first layer's other rows are as they were; the second layer hears of the tail from none.
    assert torch.equal(some[:, :-7], without[:, :-7])
    model.config.anchor_attention = None
    for config, tail in ((AnchorConfig(16, 2), 0), (AnchorConfig(16, 2, tail=9), 9)):
        calibration(config=config).save(tmp_path / "thetas.json")
        with options(theta=tmp_path / "thetas.json") as chosen:
            assert chosen.sizes.tail == tail
            with options(tail=3) as inner:
                assert inner.sizes.tail == 3
    with options(theta=tmp_path / "thetas.json", tail=4) as chosen:
        assert chosen.sizes.tail == 4
    with pytest.raises(ValueError, match="tail must be an integer of at least 0, got -1"):
        options(tail=-1).__enter__()


def test_a_calibration_that_names_no_tail_has_that_of_models(tmp_path):
    file = tmp_path / "thetas.json"
    calibration().save(file)
    text = json.loads(file.read_text())
    del text["config"]["tail"]
    file.write_text(json.dumps(text))
    with options(theta=file) as chosen:
        assert chosen.sizes.tail == 512


@pytest.mark.parametrize("tail", [0, 5, 30])
def test_thresholds_by_head_leave_the_tail_dense(tail):
    q, k, v = (torch.randn(1, heads, 100, 8) for heads in (4, 2, 2))
    config = AnchorConfig(**SIZES | {"tail": tail})
    out = anchor_attention(q, k, v, config, theta_by_head=(-math.inf,) * 4)
    same = anchor_attention(q, k, v, replace(config, theta=-math.inf))
    torch.testing.assert_close(out, same)


def calibration(**changes):
    given = {
        "thetas": {0: (math.inf, THETA, THETA, THETA), 1: (THETA,) * 4},
        "target_recall": 0.9,
        "reached": {0: (1.0, 0.9, 0.9, 0.9), 1: (0.9,) * 4},
        "density": {0: (1.0, 0.5, 0.5, 0.5), 1: (0.5,) * 4},
        "config": AnchorConfig(**SIZES),
        "lengths": (100, 400),
    }
    return Calibration(**(given | changes))


def test_a_calibration_brings_its_thresholds_and_sizes(tmp_path):
    model, ids = build(), tokens()
    with options(theta=[list(row) for row in calibration().thetas.values()], **SIZES):
        expected = logits(model, ids)
    file = tmp_path / "thetas.json"
    calibration().save(file)
    for theta in (calibration(), file, str(file)):
        with options(theta=theta) as chosen:
            assert torch.equal(logits(model, ids), expected)
            assert chosen.sizes == AnchorConfig(**SIZES)
    calibration(thetas={0: (THETA,) * 4, 1: (THETA,) * 4}).save(file)
    with options(theta=file) as chosen:  # a file that has changed is read again
        assert chosen.thetas[0] == (THETA,) * 4
    with pytest.raises(ValueError, match="step must be 2, as the thresholds were calibrated for"):
        options(theta=calibration(), step=4).__enter__()


def test_sizes_of_a_calibration_stay_when_theta_alone_is_named_further_in():
    with options(theta=calibration(), backend="torch"):
        with options(theta=5.0) as inner:
            assert (inner.thetas, inner.sizes) == (5.0, AnchorConfig(**SIZES))
        with options(theta=5.0), options(step=4) as inner:  # nothing calibrated is left
            assert inner.sizes.step == 4
        with pytest.raises(ValueError, match="step must be 2, as the thresholds were calibrated"):
            options(step=4).__enter__()
    with options() as after:
        assert after.sizes == IN_MODELS


def test_sizes_around_make_way_for_those_of_a_calibration(tmp_path):
    with options(block_size=64, step=8, dense_layers=[1]):
        with options(theta=calibration()) as inner:
            assert (inner.sizes, inner.dense_layers) == (AnchorConfig(**SIZES), {1})
        with options() as outer:
            assert outer.sizes == replace(IN_MODELS, block_size=64, step=8)
    file = tmp_path / "thetas.json"
    calibration().save(file)
    model = build()
    model.config.anchor_attention = {"theta": str(file)}
    with options(theta=5.0), record() as stats:  # 40 keys are more than a group of 32
        logits(model, tokens(n=40))
    assert [call.ran for call in stats.calls] == ["anchor", "anchor"]
    model.config.anchor_attention = {"block_size": 64}
    with options(theta=file), record() as stats:
        logits(model, tokens(n=40))
    assert [call.ran for call in stats.calls] == ["anchor", "anchor"]


def test_a_prompt_longer_than_the_calibration_texts_gets_a_warning():
    model = build()
    with options(theta=calibration(lengths=(40, 60))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits(model, tokens(n=60))
        said = "calibrated on texts of at most 60 tokens, and a prompt has 61: .*Calibration.check"
        with pytest.warns(UserWarning, match=said):
            logits(model, tokens(n=61))
        with options(theta=THETA), warnings.catch_warnings():  # of no calibration
            warnings.simplefilter("error")
            logits(model, tokens(n=61))


def test_equal_thresholds_of_a_layer_count_as_one_for_a_rank_with_some_of_its_heads():
    thetas = {0: (math.inf, 1.0, 1.0, 1.0), 1: (THETA,) * 4}
    with options(theta=calibration(thetas=thetas)) as chosen:
        assert chosen.theta(0, 4) == thetas[0]
        assert [chosen.theta(1, n) for n in (4, 3, 2, 1)] == [THETA] * 4
        with pytest.raises(ValueError, match="2 query heads of layer 0, got 4; where ranks share"):
            chosen.theta(0, 2)
        with pytest.raises(ValueError, match="5 query heads of layer 1, got 4"):
            chosen.theta(1, 5)
    # A model with half of the heads is what a rank of two holds.
    half = {"num_attention_heads": 2, "num_key_value_heads": 1}
    with options(theta=calibration(thetas={0: (1.0,) * 4, 1: (THETA,) * 4})):
        found = logits(build(**half), tokens())
    with options(theta=[1.0, THETA], **SIZES):
        assert torch.equal(found, logits(build(**half), tokens()))


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


def test_another_thread_is_told_by_the_configuration_or_by_a_copied_context():
    model, ids, seen = build(), tokens(), []

    def run():
        with options() as chosen:
            seen.append(chosen.thetas)
        logits(model, ids)

    with options(theta=THETA, **SIZES), record() as stats:
        in_thread(run)
        if not getattr(sys.flags, "thread_inherit_context", 0):  # as a free-threaded Python does
            assert (seen, stats.calls) == ([12.0], [])
        in_thread(contextvars.copy_context().run, run)
    assert seen[-1] == THETA
    assert [call.ran for call in stats.calls][-2:] == ["anchor", "anchor"]
    model.config.anchor_attention = {"theta": THETA, "dense_layers": [0], **SIZES}
    here, there = logits(model, ids), []
    in_thread(lambda: there.append(logits(model, ids)))
    assert torch.equal(there[0], here)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"theta": math.nan}, "theta must be a real number"),
        ({"theta": True}, "theta must be a number, a sequence or mapping of them .* got True"),
        ({"theta": object()}, "theta must be a number, a sequence or mapping of them by layer"),
        ({"theta": [1.0, [1.0, math.nan]]}, "theta must be a real number"),
        ({"theta": {-1: 2.0}}, "theta must name layers by integers of at least 0, got -1"),
        ({"dense_layers": [1.5]}, r"dense_layers must name layers by integers .* got 1\.5"),
        ({"dense_layers": "12"}, r"dense_layers must be a list of layers, .* got '12'"),
        ({"dense_layers": 12}, r"dense_layers must be a list of layers, .* got 12"),
        ({"backend": "cuda"}, "backend must be one of 'auto', 'triton', 'torch', got 'cuda'"),
        ({"when": "never"}, "when must be one of 'auto', 'always', got 'never'"),
        ({"when": True}, "when must be one of 'auto', 'always', got True"),
        ({"block_size": 0}, "block_size must be an integer of at least 1, got 0"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_bad_options_are_refused_at_once(named, message):
    with pytest.raises(ValueError, match=message):
        options(**named).__enter__()


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        options(theta="nowhere.json").__enter__()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"theta": [1.0]}, "theta must have an entry for each layer .* got none for layer 1"),
        ({"theta": [1.0] * 3}, r"theta must name layers in 0\.\.1, got \[0, 1, 2\]"),
        ({"theta": [[1.0] * 3] * 2}, "each of the 4 query heads of layer 0, got 3"),
        ({"dense_layers": [2]}, r"dense_layers must name layers in 0\.\.1, got \[2\]"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_by_it(named, message):
    model = build()
    with options(**named, **SIZES), pytest.raises(ValueError, match=message):
        logits(model, tokens())


@pytest.mark.parametrize("value", [{"thetas": 1.0}, "dense"])
def test_a_configuration_with_other_names_is_refused(value):
    model = build()
    model.config.anchor_attention = value
    with pytest.raises(ValueError, match=r"config\.anchor_attention must be a dict with names"):
        logits(model, tokens())


def test_the_backend_that_is_named_runs():
    model, ids = build(num_hidden_layers=1), tokens(n=50)
    with options(theta=THETA, backend="triton", **SIZES):
        with pytest.raises(RuntimeError, match=r"backend='triton' cannot run: q must be float16"):
            logits(model, ids)  # float64
        if torch.cuda.is_available():
            model, ids = model.cuda(), ids.cuda()
        with record() as stats:
            found = logits(model.float(), ids)
        assert stats.calls[0].why.startswith("triton: ")
    with options(theta=THETA, backend="torch", **SIZES), record() as stats:
        assert far(found, logits(model, ids)) <= 1e-4  # float32, sums in another order
    assert stats.calls[0].why.startswith("torch: ")
