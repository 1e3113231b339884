"""The GPU benchmark without a GPU: what it counts, plans, keeps and writes."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F

import anchor_ref
from anchor_lab.experiments import page
from anchor_lab.experiments.attention import instruments as measuring
from anchor_lab.experiments.attention import jobs as methods
from anchor_lab.experiments.attention import measure
from anchor_lab.experiments.attention.page import EXPERIMENT
from anchor_lab.experiments.store import Store, read
from anchor_models import Captured, planted_stripes, save_capture
from tests.anchor_lab.experiments.attention.test_jobs import small_case

RATES = {"matrix_tflops": 790.0, "copy_tbs": 4.3}
SETTINGS = {
    "device": "a device",
    "kernels": "0123456789ab",
    "torch": "2.11.0",
    "triton": "3.6.0",
}
ABOUT = {"date": "2026-11-23", "cuda": "13.0", "cudnn": 91000, "driver": "580.0"}
RUN = ABOUT | {"command": "python -m anchor_lab attention"} | RATES


class FakeInstruments:
    """Every call takes as many milliseconds as it is told, and 3 MiB."""

    def __init__(self, ms: float = 2.0):
        self.ms, self.settled = ms, 0

    def times(self, run) -> list[float]:
        run()
        return [self.ms * factor for factor in (0.9, 1.0, 1.2)]

    def peak(self, run):
        return run(), 3 * measuring.MIB

    def settle(self) -> None:
        self.settled += 1


class Watched(Store):
    """A store that remembers how many rows its file had after each that was added."""

    def __init__(self, *about, **more):
        super().__init__(*about, **more)
        self.saved: list[int] = []

    def add(self, rows) -> None:
        super().add(rows)
        self.saved.append(len(read(self.path)["rows"]))


@pytest.fixture
def store(tmp_path) -> Watched:
    return Watched(tmp_path / "a.json", measure.KEY, SETTINGS, RUN)


def run(cells, store, *, chosen=None, instruments=None, make_case=None, **options) -> int:
    """The real loop on small tensors and the reference."""
    return measure.run(
        [cell if isinstance(cell, tuple) else (cell, "") for cell in cells],
        make_case or (lambda cell: small_case(cell.n, density=cell.density)),
        chosen or methods.make_methods(),
        instruments or FakeInstruments(),
        store,
        **options,
    )


def cell(method: str, n: int = 300, density: float = 0.05) -> measure.Cell:
    return measure.Cell("planted", None, n, density, method)


# The measuring


def test_the_error_is_measured_against_dense_attention_with_the_layers_scale():
    case = small_case(scale=0.25)
    dense = F.scaled_dot_product_attention(
        case.q, case.k, case.v, is_causal=True, scale=0.25, enable_gqa=True
    )
    dense[:, 3] *= 2 / 1.1  # one head is twice too large
    wrong = methods.Job(lambda: 1.1 * dense, pairs=1, pooled=0, bytes=1)
    found = measuring.measure_job(wrong, case, FakeInstruments(), RATES)
    assert found["error_worst_head"] == pytest.approx(1.0, rel=1e-3)
    assert found["error_mean"] == pytest.approx((0.1 * 3 + 1) / 4, rel=1e-3)


@pytest.mark.parametrize(
    ("once_s", "repeats"), [(1e-5, 50), (0.04, 50), (0.1, 20), (0.9, 3), (9.0, 3), (0.0, 50)]
)
def test_the_budget_sets_the_repeats_within_3_and_50(once_s, repeats):
    assert measuring.repeats_for(once_s, 2.0) == repeats


def test_quantiles_do_not_depend_on_the_order():
    times = [float(x) for x in range(11)]
    expected = {"median": 5.0, "p10": 1.0, "p90": 9.0, "repeats": 11}
    assert measuring.quantiles(times) == measuring.quantiles(times[::-1]) == expected


def test_a_measurement_holds_the_numbers_of_its_definition():
    case, instruments = small_case(), FakeInstruments(ms=2.0)
    job = methods.end_to_end(case)
    found = measuring.measure_job(job, case, instruments, RATES)
    work = 4 * 16 * job.pairs + 2 * 16 * job.pooled
    assert found["flop"] == work
    assert found["tflops"] == pytest.approx(work / 2e-3 / 1e12, rel=1e-3)
    assert found["floor_ratio"] == pytest.approx(
        2.0 / max(work / 790e9, job.bytes / 4.3e9), rel=1e-3
    )
    assert found["kept"] == pytest.approx(job.pairs / (4 * 300 * 301 / 2), rel=1e-3)
    assert found["extra_mib"] == 3
    assert found["heads"] == [1, 4, 2, 16]
    held = methods.Job(job.run, pairs=1, pooled=0, bytes=1, held_bytes=5 * measuring.MIB)
    assert measuring.measure_job(held, case, instruments, RATES)["extra_mib"] == 8


# The plan


def plan(**changed) -> list[tuple[measure.Cell, str]]:
    options = {
        "lengths": [4096, 131_072, 524_288],
        "densities": [0.01, 0.05, 0.2],
        "methods": list(methods.make_methods()),
        "captures": {},
        "dense_to": 262_144,
        "flex_to": 131_072,
    }
    return list(measure.planned(**options | changed))


def test_the_plan_has_every_density_and_length_for_the_project_once():
    cells = [cell for cell, _ in plan()]
    assert len(set(cells)) == len(cells)
    for method in ("anchor", "stage1", "stage2", "stage3"):
        found = {(cell.n, cell.density) for cell in cells if cell.method == method}
        assert found == {(n, d) for n in (4096, 131_072, 524_288) for d in (0.01, 0.05, 0.2)}


def test_the_reference_density_comes_first_then_all_densities_at_128k():
    inputs = list(dict.fromkeys((cell.n, cell.density) for cell, _ in plan()))
    assert inputs[:5] == [
        (4096, 0.05),
        (131_072, 0.05),
        (524_288, 0.05),
        (131_072, 0.01),
        (131_072, 0.2),
    ]


def test_other_methods_are_planned_at_all_densities_of_one_length():
    cells = [cell for cell, _ in plan()]
    for method in ("sdpa-flash", "sdpa-cudnn", "flex"):
        found = {(cell.n, cell.density) for cell in cells if cell.method == method}
        assert found == {
            *((n, 0.05) for n in (4096, 131_072, 524_288)),
            *((131_072, density) for density in (0.01, 0.2)),
        }


def test_methods_beyond_their_lengths_stay_in_the_plan_with_the_reason():
    skipped = {(cell.method, cell.n): reason for cell, reason in plan() if reason}
    assert skipped == {
        ("sdpa-flash", 524_288): "measured up to N = 262144",
        ("sdpa-cudnn", 524_288): "measured up to N = 262144",
        ("flex", 524_288): "measured up to N = 131072",
    }


def test_captures_are_planned_with_their_own_length_for_all_methods():
    found = Captured(torch.zeros(1, 2, 77, 4), *[torch.zeros(1, 1, 77, 4)] * 2, 0.5)
    cells = [
        cell for cell, _ in plan(captures={("llama", 3, 77): found}) if cell.source == "llama"
    ]
    assert {cell.method for cell in cells} == set(methods.make_methods())
    assert {(cell.layer, cell.n, cell.density) for cell in cells} == {(3, 77, None)}


def test_resuming_leaves_out_what_is_there_and_only_that():
    planned = plan(lengths=[4096], densities=[0.05])
    rows = [
        {**vars(planned[0][0]), "status": "ok"},
        {**vars(planned[1][0]), "status": "out of memory"},
        {**vars(planned[2][0]), "status": "skipped"},
        {**vars(planned[3][0]), "status": "ok", "density": 0.01},
    ]
    rows = json.loads(json.dumps(rows))  # as they are read back
    assert measure.missing(planned, rows) == planned[2:]
    assert measure.missing(planned, rows, retry=True) == planned[1:]
    skipped_again = [(cell, "too long") for cell, _ in planned]
    assert measure.missing(skipped_again, rows) == skipped_again[3:]


# The run


def test_every_cell_is_saved_as_soon_as_it_is_measured(store):
    cells = [cell("anchor"), cell("stage1"), cell("stage3"), cell("anchor", 100)]
    assert run(cells, store) == 0
    assert store.saved == [1, 2, 3, 4]
    assert [found["method"] for found in store.rows] == [c.method for c in cells]
    assert all(found["status"] == "ok" and found["run"] == 0 for found in store.rows)
    # At θ = 12 a dropped key weighs at most e⁻¹² of a kept one.
    assert store.rows[0]["error_mean"] < 300 * 6.2e-6


def test_methods_on_one_set_of_inputs_share_the_tensors(store):
    made = []

    def make_case(cell):
        made.append(cell.inputs)
        return small_case(cell.n)

    cells = [cell("anchor"), cell("stage1"), cell("anchor", 100), cell("stage2", 100)]
    run(cells, store, make_case=make_case)
    assert made == [cells[0].inputs, cells[2].inputs]


def test_a_method_that_fails_is_recorded_with_its_message_and_the_next_one_runs(store):
    def no_memory(case):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB\nmore")

    def unsupported(case):
        def call():
            raise RuntimeError("No available kernel. Aborting execution.")

        return methods.Job(call, pairs=1, pooled=0, bytes=1)

    chosen = {"big": no_memory, "other": unsupported, "anchor": methods.end_to_end}
    instruments = FakeInstruments()
    run([cell(m) for m in chosen], store, chosen=chosen, instruments=instruments)
    big, other, ours = store.rows
    assert (big["status"], big["message"]) == (
        "out of memory",
        "CUDA out of memory. Tried 9 GiB",
    )
    assert other["status"] == "error"
    assert other["message"] == "RuntimeError: No available kernel. Aborting execution."
    assert ours["status"] == "ok"
    assert instruments.settled == 2


def test_inputs_that_cannot_be_made_are_recorded_for_each_method(store):
    def make_case(cell):
        raise torch.OutOfMemoryError("no room")

    run([cell("anchor"), cell("stage1")], store, make_case=make_case)
    assert [found["status"] for found in store.rows] == ["out of memory"] * 2


def test_a_lost_device_ends_the_run_after_the_failure_is_saved(store):
    class Lost(FakeInstruments):
        def settle(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def broken(case):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cells = [cell("broken"), cell("anchor")]
    chosen = {"broken": broken, "anchor": methods.end_to_end}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(cells, store, chosen=chosen, instruments=Lost())
    assert [found["status"] for found in read(store.path)["rows"]] == ["error"]


def test_the_budget_stops_the_run_between_cells_and_says_how_many_are_left(store):
    now = iter([0.0, 0.0, 4.0, 8.0, 12.0])
    cells = [cell(f"stage{i}", 100) for i in (1, 2, 3)] + [cell("anchor", 100)]
    assert run(cells, store, budget_s=8.0, clock=lambda: next(now)) == 2
    assert [found["method"] for found in store.rows] == ["stage1", "stage2"]


def test_a_skipped_cell_is_recorded_and_gives_way_to_its_measurement(store):
    run([(cell("anchor", 100), "measured up to N = 50")], store)
    assert store.rows[0]["status"] == "skipped"
    assert store.rows[0]["message"] == "measured up to N = 50"
    later = Store(store.path, measure.KEY, SETTINGS, RUN | {"date": "2026-11-24"})
    run([cell("anchor", 100)], later)
    assert [(found["status"], found["run"]) for found in later.rows] == [("ok", 1)]


def test_the_file_is_read_back_as_it_was(store):
    run([cell("anchor", 100)], store)
    assert read(store.path) == {"settings": SETTINGS, "runs": [RUN], "rows": store.rows}
    assert [path.name for path in store.path.parent.iterdir()] == ["a.json"]


# Captures


def capture(**changed) -> Captured:
    inputs = planted_stripes(100, q_heads=4, kv_heads=2, head_dim=16)
    fields = {"scaling": 0.125, "layer": 7} | changed
    return Captured(inputs.q, inputs.k, inputs.v, **fields)


def test_captures_are_named_by_file_and_layer_files_by_their_folder(tmp_path):
    for folder in ("llama", "qwen"):
        (tmp_path / folder).mkdir()
        save_capture({7: capture()}, tmp_path / folder / "layer_0007.safetensors")
    save_capture({3: capture(), 7: capture()}, tmp_path / "both.safetensors")
    paths = ["llama/layer_0007.safetensors", "qwen", "both.safetensors"]
    found = measure.find_captures([tmp_path / path for path in paths])
    names = [("llama", 7), ("qwen", 7), ("both", 3), ("both", 7)]
    assert list(found) == [(*name, 100) for name in names]
    with pytest.raises(ValueError, match="activations must have different names, got qwen twice"):
        measure.find_captures([tmp_path / "qwen", tmp_path / "qwen" / "layer_0007.safetensors"])


def test_the_bundled_models_layers_are_inputs_at_both_lengths(monkeypatch):
    monkeypatch.setattr(measure, "BUNDLED_LENGTHS", [100, 300])
    found = measure.find_captures(["bundled"], device="cpu")
    assert list(found) == [("bundled", layer, n) for n in (100, 300) for layer in range(8)]
    for (_, layer, n), x in found.items():
        assert (x.q.shape, x.k.shape, x.v.shape) == ((1, 8, n, 64), *[(1, 2, n, 64)] * 2)
        assert x.q.dtype == torch.bfloat16
        assert x.layer == layer
        assert torch.equal(x.k, found["bundled", layer, 300].k[:, :, :n])
    case = measure.case_maker(found, anchor_ref, "cpu")(
        measure.Cell("bundled", 5, 300, None, "flex")
    )
    assert torch.equal(case.v, found["bundled", 5, 300].v)


def test_a_capture_is_measured_in_bf16_with_its_own_scale_and_heads():
    captures = {("llama", 7, 100): capture()}
    make_case = measure.case_maker(captures, anchor_ref, device="cpu")
    case = make_case(measure.Cell("llama", 7, 100, None, "anchor"))
    assert case.scale == 0.125
    assert case.q.dtype == case.v.dtype == torch.bfloat16
    assert (case.q.shape, case.k.shape) == ((1, 4, 100, 16), (1, 2, 100, 16))
    assert torch.equal(case.k, captures["llama", 7, 100].k.bfloat16())
    # 21 where q·k is multiplied by 1/4, half of it by 1/8: the scale reaches the method.
    _, trace = case.backend.anchor_attention(
        case.q, case.k, case.v, case.config, case.scale, return_trace=True
    )
    assert trace.row_anchor.median() < 15


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sliding_window": 64}, "sees a window of 64 keys"),
        ({"softcap": 30.0}, "caps its scores at 30"),
    ],
)
def test_layers_of_another_attention_are_refused(changed, message):
    make_case = measure.case_maker({("m", 7, 100): capture(**changed)}, anchor_ref, device="cpu")
    with pytest.raises(ValueError, match=message):
        make_case(measure.Cell("m", 7, 100, None, "anchor"))


def test_a_window_wider_than_the_prompt_is_no_window():
    captures = {("m", 7, 100): capture(sliding_window=4096)}
    make_case = measure.case_maker(captures, anchor_ref, device="cpu")
    assert make_case(measure.Cell("m", 7, 100, None, "anchor")).n == 100


# The command


def test_without_a_cuda_device_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert EXPERIMENT.run(["--quick", "--out", str(tmp_path / "a.json")]) == 2
    printed = capsys.readouterr()
    assert printed.err == "anchor_lab attention needs a CUDA device, and torch finds none.\n"
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command on a pretended device: the reference, small tensors, a clock that is told."""

    class Instruments(FakeInstruments):
        def __init__(self, budget_s):
            super().__init__()

        def rates(self):
            return RATES

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(measure, "cuda_facts", lambda: ABOUT | SETTINGS)
    monkeypatch.setattr(measure, "kernels", lambda: anchor_ref)
    monkeypatch.setattr(measure, "kernels_version", lambda: SETTINGS["kernels"])
    monkeypatch.setattr(measure, "CudaInstruments", Instruments)
    monkeypatch.setattr(
        measure, "case_maker", lambda *_: lambda cell: small_case(cell.n, density=cell.density)
    )
    out = tmp_path / "a.json"

    def call(*arguments: str, **settings: str) -> tuple[int, dict]:
        monkeypatch.setattr(measure, "cuda_facts", lambda: ABOUT | SETTINGS | settings)
        code = EXPERIMENT.run(["--out", str(out), "--densities", "0.05", *arguments])
        return code, read(out)

    return call


def test_results_of_somebody_else_are_not_overwritten(command, capsys, tmp_path):
    out = tmp_path / "a.json"
    out.write_text("precious")
    assert EXPERIMENT.run(["--out", str(out)]) == 2
    assert "a.json holds no rows of an experiment: give another file\n" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert out.read_text() == "precious"


def test_a_resumed_run_adds_what_is_missing_and_nothing_else(command, capsys):
    assert command("--lengths", "100", "--methods", "anchor", "stage1")[0] == 0
    longer = ["--lengths", "100", "200", "--methods", "anchor", "sdpa-flash", "--dense-to", "150"]
    code, results = command(*longer)
    assert code == 0
    found = [(c["n"], c["method"], c["run"], c["status"]) for c in results["rows"]]
    assert found == [
        (100, "anchor", 0, "ok"),
        (100, "stage1", 0, "ok"),
        (100, "sdpa-flash", 1, found[2][3]),  # "ok" where the CPU has that backend
        (200, "anchor", 1, "ok"),
        (200, "sdpa-flash", 1, "skipped"),
    ]
    assert results["settings"] == SETTINGS
    command_line = (
        f"python -m anchor_lab attention --out a.json --densities 0.05 {' '.join(longer)}"
    )
    assert results["runs"][1] == ABOUT | {"command": command_line} | RATES
    capsys.readouterr()
    assert command(*longer) == (0, results)
    assert "a.json holds all of it.\n" in capsys.readouterr().out


def test_failed_cells_are_measured_again_only_when_asked(command, monkeypatch):
    def broken(case):
        raise RuntimeError("not today")

    once = ["--lengths", "100", "--methods", "anchor"]
    whole = methods.make_methods()
    monkeypatch.setattr(measure, "make_methods", lambda: whole | {"anchor": broken})
    assert command(*once)[1]["rows"][0]["status"] == "error"
    monkeypatch.setattr(measure, "make_methods", lambda: whole)
    assert command(*once)[1]["rows"][0]["status"] == "error"
    assert [c["status"] for c in command(*once, "--retry")[1]["rows"]] == ["ok"]


@pytest.mark.parametrize("what", ["device", "kernels", "torch", "triton"])
def test_results_of_two_devices_kernels_or_libraries_are_not_mixed(
    command, capsys, monkeypatch, what
):
    _, before = command("--lengths", "100", "--methods", "anchor")
    if what == "kernels":
        monkeypatch.setattr(measure, "kernels_version", lambda: "another")
    changed = {} if what == "kernels" else {what: "another"}
    assert command("--lengths", "200", "--methods", "anchor", **changed) == (2, before)
    said = f"holds results made with {what} {SETTINGS[what]!r}, this run has 'another'"
    assert said in capsys.readouterr().err


def test_a_used_up_budget_says_how_to_go_on(command, capsys):
    # Nothing is measured in no time, so there is no file yet either.
    with pytest.raises(FileNotFoundError):
        command("--lengths", "100", "--methods", "anchor", "stage1", "--budget-s", "0")
    expected = "Budget of 0 s used: 2 cells left, the same call goes on.\n"
    assert capsys.readouterr().out == expected


def test_numbers_are_there_before_the_page_and_stay_when_it_cannot_be_written(
    command, monkeypatch, tmp_path
):
    page._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError):
        command("--lengths", "100", "--methods", "anchor")
    assert [cell["status"] for cell in read(tmp_path / "a.json")["rows"]] == ["ok"]


def test_the_command_is_recorded_without_the_folders_of_this_machine():
    arguments = ["--out", "/somewhere/deep/a.json", "--lengths", "4096", "--activations", "x/y z"]
    assert EXPERIMENT.command_line(arguments) == (
        "python -m anchor_lab attention --out a.json --lengths 4096 --activations 'x/y z'"
    )


# On a GPU


@pytest.mark.gpu
def test_every_method_runs_on_a_gpu_and_agrees_with_dense_attention(tmp_path):
    out = tmp_path / "a.json"
    call = ["--quick", "--lengths", "4096", "--cell-s", "0.1", "--out", str(out)]
    options = EXPERIMENT.parser().parse_args(call)
    options.command = EXPERIMENT.command_line(call)
    assert measure.measure(options) == 0  # the page needs packages that may not be here
    found = {c["method"]: c for c in read(out)["rows"]}
    assert set(found) == set(methods.make_methods())
    for name, measured in found.items():
        assert measured["status"] == "ok", f"{name}: {measured}"
        assert measured.get("error_mean", 0) < 0.01, f"{name}: {measured}"
