"""What the report says is what the measures say; a run goes on where it stopped."""

import copy
import json
import shutil
import weakref

import pytest
import torch

from anchor_lab.analysis import average_curves, choose_thetas
from anchor_lab.explorer import prepare_head, select
from anchor_lab.report import far_keys, inspect, inspected
from anchor_models import Captured, load_bundled
from anchor_models.texts import read_text
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.measure import density, density_floor, recall

N, LAYERS, HEADS, THETAS = 2304, [4, 7], [1, 5], [0.0, 6.0, 9.0, 12.0]


@pytest.fixture(scope="module")
def bundled():
    return load_bundled()


@pytest.fixture(scope="module")
def text(bundled):
    return read_text("document", bundled[1], N)


def run(bundled, text, folder, **changes):
    settings = {"layers": LAYERS, "heads": HEADS, "thetas": THETAS} | changes
    inspect.inspect_layers(*bundled, "bundled", text, folder, **settings)


@pytest.fixture(scope="module")
def folder(bundled, text, tmp_path_factory):
    path = tmp_path_factory.mktemp("inspect") / "results"
    run(bundled, text, path)
    return path


@pytest.fixture(scope="module")
def found(folder):
    return inspected.load_inspected(folder)


@pytest.mark.parametrize("theta", THETAS)
def test_tables_hold_the_measures_of_each_head(found, theta):
    config, at = AnchorConfig(theta=theta), THETAS.index(theta)
    for i, layer in enumerate(found.layers):
        x = found.captured[layer]
        _, trace = anchor_attention(x.q, x.k, x.v, config, x.scaling, return_trace=True)
        rows = recall(x.q, x.k, trace.stripes, config, x.scaling)[0].double()
        rows = rows[:, config.group_size :]  # the first group keeps everything
        kept = density(trace.stripes, config, N, N)[0]
        for table, expected in (
            (found.recall, rows.mean(-1)),
            (found.p10, rows.quantile(0.1, -1)),
            (found.least, rows.amin(-1)),
            (found.density, kept),
        ):
            torch.testing.assert_close(table[at, i], expected, atol=2e-5, rtol=0)
        share = trace.stripes.counts.double().mean((0, 1))[1] / (2048 - 128)
        torch.testing.assert_close(found.shares[at, i], torch.stack([share * 0, share]))
    assert (found.floor <= found.density[at]).all()
    assert found.floor == pytest.approx(float(density_floor(config, N, N)))


def test_words_and_sizes_of_the_model_are_kept(found, bundled, text):
    model, tokenizer = bundled
    assert "".join(found.model["words"]) == tokenizer.decode(text.tokens[0])
    assert (found.model["layers"], found.model["heads"], found.head_dim) == (8, 8, 64)
    embeddings = model.get_input_embeddings().weight.numel()
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert found.model["linear_parameters"] == found.model["parameters"] - embeddings - norms


def test_recommended_theta_is_the_first_that_reaches_the_target(found):
    means = found.recall.mean((1, 2)).tolist()
    assert inspected.recommended_theta(found, (means[1] + means[2]) / 2) == THETAS[2]
    assert inspected.recommended_theta(found, means[0]) == THETAS[0]
    assert inspected.recommended_theta(found, 0.999999999) == THETAS[-1], "none reaches it"
    with pytest.raises(ValueError, match=r"target_recall must be in \(0, 1\), got 1"):
        inspected.recommended_theta(found, 1.0)


def test_thresholds_by_head_are_those_of_the_lab(found):
    ours = inspected.calibration(found, 0.9)
    lab = choose_thetas(average_curves([found.captured], thetas=THETAS), 0.9)
    assert ours.thetas == lab.thetas
    for layer in LAYERS:
        assert ours.reached[layer] == pytest.approx(lab.reached[layer], abs=2e-5)
        assert ours.density[layer] == pytest.approx(lab.density[layer])


def test_heads_are_ordered_and_drawn_from_both_ends(found):
    rows = inspected.heads_by_density(found, 9.0)
    assert [row["density"] for row in rows] == sorted(found.density[2].flatten().tolist())
    for row in rows:
        at = 2, found.layers.index(row["layer"]), found.heads.index(row["head"])
        assert row["recall"] == float(found.recall[at])
    drawn = inspected.heads_to_draw(found, 9.0, 1)
    assert rows[0] in drawn
    assert rows[-1] in drawn
    assert len({(row["layer"], row["head"]) for row in drawn}) == len(drawn)
    assert len(inspected.heads_to_draw(found, 9.0, 9)) == len(rows), "each head once"


def test_strongest_far_keys_are_those_of_dense_attention():
    torch.manual_seed(0)
    config = AnchorConfig(step=1)
    q, k = torch.randn(2, 640, 8)
    head = prepare_head(q, k, 0.5, steps=[1])
    groups = select(head, config).groups
    group = far_keys.last_telling_group(groups, config)
    assert (group.rows.start, group.rows.stop) == (512, 640)
    far = far_keys.strongest_far_keys(head, group, most=5)
    scores = (q @ k.T * 0.5).masked_fill(~torch.ones(640, 640).tril().bool(), -torch.inf)
    weights = scores.softmax(-1)[512:640, 128:384]  # a group's length away
    mass, key = weights.mean(0).topk(5)
    assert [x.key for x in far] == (key + 128).tolist()
    torch.testing.assert_close(torch.tensor([x.mass for x in far]), mass)
    for x in far:
        column = weights[:, x.key - 128]
        assert (x.query, x.weight) == (512 + int(column.argmax()), pytest.approx(column.max()))
    assert far_keys.strongest_far_keys(head, groups[0]) == []
    assert len(far_keys.strongest_far_keys(head, groups[2], most=999)) == 128, "nothing is far"


def rewrite(folder, change) -> None:
    """Change the file of results by hand."""
    path = folder / "layers.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


class Unused:
    """A model that must not be run, only asked."""

    def __init__(self, model):
        self.config, self.dtype, self.device = model.config, model.dtype, model.device
        self.parameters = model.parameters


def test_a_run_goes_on_where_it_stopped(bundled, text, folder, tmp_path):
    again = tmp_path / "results"
    shutil.copytree(folder, again)
    before = (again / "layers.json").read_text()
    rewrite(again, lambda found: found["rows"].pop())
    left = []
    run(
        (Unused(bundled[0]), bundled[1]),
        text,
        again,
        progress=lambda todo: left.extend(todo) or todo,
    )
    assert left == [7], "layer 4 was there"
    assert (again / "layers.json").read_text() == before


def test_an_interrupted_capture_is_made_again(bundled, text, folder, tmp_path):
    part = tmp_path / "results"
    shutil.copytree(folder, part)
    for path in (part / "layers.json", part / "capture" / "layer_0007.safetensors"):
        path.unlink()
    (part / "capture" / "layer_0004.safetensors").write_bytes(b"half a file")
    run(bundled, text, part)
    assert sorted(inspected.load_inspected(part).captured) == LAYERS


def test_other_settings_are_refused_by_name(bundled, text, folder):
    shorter = read_text("document", bundled[1], N - 1)
    for other, changes, said in (
        (shorter, {}, f"text_sha256 .*, this run has '{shorter.sha256}'"),
        (text, {"heads": [0, 4]}, r"heads \[1, 5\], this run has \[0, 4\]"),
        (text, {"thetas": [1.0]}, "thetas"),
        (text, {"layers": [4]}, "layers"),
    ):
        with pytest.raises(ValueError, match=rf"holds results made with {said}"):
            run(bundled, other, folder, **changes)


def test_other_weights_and_another_precision_are_refused_by_name(bundled, text, folder):
    """A model's name says little: it may have been trained further in the same folder."""
    model, weight = bundled[0], bundled[0].model.norm.weight
    half = Unused(model)
    half.dtype = torch.bfloat16
    with pytest.raises(ValueError, match="made with dtype 'float32', this run has 'bfloat16'"):
        run((half, bundled[1]), text, folder)
    old = weight[0].item()
    try:
        with torch.no_grad():
            weight[0] = old + 1
        with pytest.raises(ValueError, match="holds results made with weights '"):
            run(bundled, text, folder)
    finally:
        with torch.no_grad():
            weight[0] = old


@pytest.mark.parametrize("lost", [False, True])
def test_results_of_other_weights_are_not_gone_on_with(bundled, text, folder, tmp_path, lost):
    """Under the same name: a model that was trained on since, or another revision."""
    again, model = tmp_path / "results", copy.deepcopy(bundled[0])
    shutil.copytree(folder, again)
    if lost:
        rewrite(again, lambda found: found["rows"].pop())
    before = (again / "layers.json").read_text()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.5
    with pytest.raises(ValueError, match="holds results made with weights"):
        run((model, bundled[1]), text, again)
    assert (again / "layers.json").read_text() == before, "measured from the old capture"


@pytest.mark.parametrize("what", ["versions", "code"])
def test_results_of_other_code_are_not_gone_on_with(bundled, text, folder, tmp_path, what):
    again = tmp_path / "results"
    shutil.copytree(folder, again)
    rewrite(again, lambda found: found["settings"].update({what: "before"}))
    with pytest.raises(ValueError, match=f"holds results made with {what} 'before'"):
        run(bundled, text, again)


def test_a_text_of_one_group_is_too_short_one_beyond_the_positions_too_long(
    bundled, text, tmp_path
):
    with pytest.raises(ValueError, match=r"longer than a group of 2048 tokens.* has 2048"):
        run(bundled, read_text("document", bundled[1], 2048), tmp_path)
    short = Unused(bundled[0])
    short.config = copy.deepcopy(short.config)
    short.config.max_position_embeddings = N - 1
    with pytest.raises(ValueError, match=f"at most the model's {N - 1} positions, got {N}"):
        run((short, bundled[1]), text, tmp_path)
    assert not list(tmp_path.iterdir())


def test_layers_that_are_not_causal_softmax_are_named_not_measured(folder, tmp_path):
    x = torch.randn(1, 2, 300, 8)
    window = inspect.measure_layer(Captured(x, x, x, 0.3, sliding_window=64, layer=4), THETAS)
    assert list(window) == ["skipped"]
    assert "window of 64 keys" in window["skipped"]
    some = tmp_path / "results"
    shutil.copytree(folder, some)
    rewrite(some, lambda found: found["rows"].__setitem__(0, {"layer": 4, **window}))
    found = inspected.load_inspected(some)
    assert (found.layers, list(found.skipped)) == ([7], [4])
    rewrite(some, lambda found: found["rows"].__setitem__(1, {"layer": 7, **window}))
    with pytest.raises(ValueError, match="layers must be causal attention, none was: layer 4"):
        inspected.load_inspected(some)


@pytest.mark.parametrize("n", [2304, 4608])
def test_memory_stays_below_what_is_printed(n):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Living(TorchDispatchMode):
        """Bytes of the storages alive, each counted once."""

        def __init__(self):
            super().__init__()
            self.now = self.most = 0
            self.known = weakref.WeakSet()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    if storage not in self.known:
                        self.known.add(storage)
                        self.now += storage.nbytes()
                        weakref.finalize(storage, self.gone, storage.nbytes())
                        self.most = max(self.most, self.now)
            return result

        def gone(self, size: int) -> None:
            self.now -= size

    torch.manual_seed(0)
    q, k = torch.randn(1, 4, n, 64), torch.randn(1, 2, n, 64)
    with Living() as seen:
        inspect.measure_layer(Captured(q, k, k, 0.125, layer=0), THETAS)
    bound = inspect.working_bytes(n, 64, len(THETAS))
    assert bound / 4 < seen.most < bound
