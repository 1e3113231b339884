"""The GPU benchmark without a GPU: what it counts, plans, keeps and writes."""

import json

import pytest
import torch
import torch.nn.functional as F

import anchor_ref
from anchor_lab.experiments.attention import instruments as measuring
from anchor_lab.experiments.attention import jobs as methods
from anchor_lab.experiments.attention import measure as bench
from anchor_models import Captured, planted_stripes, save_capture
from tests.anchor_lab.experiments.attention.test_jobs import small_case

RATES = {"matrix_tflops": 790.0, "copy_tbs": 4.3}
ABOUT = {
    "date": "2026-11-23",
    "device": "a device",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "cuda": "13.0",
    "cudnn": 91000,
    "driver": "580.0",
    "kernels": "0123456789ab",
    "command": "python -m anchor_lab attention",
}


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


def fresh_results() -> dict:
    return {"runs": [ABOUT | RATES], "cells": []}


def run(cells, results, *, chosen=None, instruments=None, make_case=None, **options):
    """The real loop on small tensors and the reference; what was saved, each time it was."""
    saved = []
    make = make_case or (lambda cell: small_case(cell.n, density=cell.density))
    left = bench.run(
        [cell if isinstance(cell, tuple) else (cell, "") for cell in cells],
        make,
        chosen or methods.make_methods(),
        instruments or FakeInstruments(),
        results,
        lambda results: saved.append(json.dumps(results)),
        **options,
    )
    return left, saved


def cell(method: str, n: int = 300, density: float = 0.05) -> bench.Cell:
    return bench.Cell("planted", None, n, density, method)


# The measuring


def test_the_error_is_measured_against_dense_attention_with_the_layers_scale():
    case = small_case(scale=0.25)
    dense = F.scaled_dot_product_attention(
        case.q, case.k, case.v, is_causal=True, scale=0.25, enable_gqa=True
    )
    dense[:, 3] *= 2 / 1.1  # one head is twice too large
    wrong = methods.Job(lambda: 1.1 * dense, pairs=1, pooled=0, bytes=1)
    found = measuring.measure(wrong, case, FakeInstruments(), RATES)
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
    found = measuring.measure(job, case, instruments, RATES)
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
    assert measuring.measure(held, case, instruments, RATES)["extra_mib"] == 8


# The plan


def plan(**changed) -> list[tuple[bench.Cell, str]]:
    options = {
        "lengths": [4096, 131_072, 524_288],
        "densities": [0.01, 0.05, 0.2],
        "methods": list(methods.make_methods()),
        "captures": {},
        "dense_to": 262_144,
        "flex_to": 131_072,
    }
    return list(bench.planned(**options | changed))


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
    results = fresh_results()
    results["cells"] = [
        {**vars(planned[0][0]), "status": "ok"},
        {**vars(planned[1][0]), "status": "out of memory"},
        {**vars(planned[2][0]), "status": "skipped"},
        {**vars(planned[3][0]), "status": "ok", "density": 0.01},
    ]
    # The file is read back from JSON.
    results = json.loads(json.dumps(results))
    assert bench.missing(planned, results) == planned[2:]
    skipped_again = [(cell, "too long") for cell, _ in planned]
    assert bench.missing(skipped_again, results) == skipped_again[3:]


# The run


def test_every_cell_is_saved_as_soon_as_it_is_measured():
    results = fresh_results()
    cells = [cell("anchor"), cell("stage1"), cell("stage3"), cell("anchor", 100)]
    left, saved = run(cells, results)
    assert left == 0
    assert [len(json.loads(text)["cells"]) for text in saved] == [1, 2, 3, 4]
    assert [found["method"] for found in results["cells"]] == [c.method for c in cells]
    assert all(found["status"] == "ok" and found["run"] == 0 for found in results["cells"])
    # At θ = 12 a dropped key weighs at most e⁻¹² of a kept one.
    assert results["cells"][0]["error_mean"] < 300 * 6.2e-6


def test_methods_on_one_set_of_inputs_share_the_tensors():
    made = []

    def make_case(cell):
        made.append(cell.inputs)
        return small_case(cell.n)

    cells = [cell("anchor"), cell("stage1"), cell("anchor", 100), cell("stage2", 100)]
    run(cells, fresh_results(), make_case=make_case)
    assert made == [cells[0].inputs, cells[2].inputs]


def test_a_method_that_fails_is_recorded_with_its_message_and_the_next_one_runs():
    def no_memory(case):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB\nmore")

    def unsupported(case):
        def call():
            raise RuntimeError("No available kernel. Aborting execution.")

        return methods.Job(call, pairs=1, pooled=0, bytes=1)

    chosen = {"big": no_memory, "other": unsupported, "anchor": methods.end_to_end}
    results, instruments = fresh_results(), FakeInstruments()
    run([cell(m) for m in chosen], results, chosen=chosen, instruments=instruments)
    big, other, ours = results["cells"]
    assert (big["status"], big["message"]) == (
        "out of memory",
        "CUDA out of memory. Tried 9 GiB",
    )
    assert other["status"] == "error"
    assert other["message"] == "RuntimeError: No available kernel. Aborting execution."
    assert ours["status"] == "ok"
    assert instruments.settled == 2


def test_inputs_that_cannot_be_made_are_recorded_for_each_method():
    def make_case(cell):
        raise torch.OutOfMemoryError("no room")

    results = fresh_results()
    run([cell("anchor"), cell("stage1")], results, make_case=make_case)
    assert [found["status"] for found in results["cells"]] == ["out of memory"] * 2


def test_a_lost_device_ends_the_run_after_the_failure_is_saved():
    class Lost(FakeInstruments):
        def settle(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def broken(case):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    results = fresh_results()
    cells = [cell("broken"), cell("anchor")]
    chosen = {"broken": broken, "anchor": methods.end_to_end}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(cells, results, chosen=chosen, instruments=Lost())
    assert [found["status"] for found in results["cells"]] == ["error"]


def test_the_budget_stops_the_run_between_cells_and_says_how_many_are_left():
    now = iter([0.0, 0.0, 4.0, 8.0, 12.0])
    results = fresh_results()
    cells = [cell(f"stage{i}", 100) for i in (1, 2, 3)] + [cell("anchor", 100)]
    left, _ = run(cells, results, budget_s=8.0, clock=lambda: next(now))
    assert left == 2
    assert [found["method"] for found in results["cells"]] == ["stage1", "stage2"]


def test_a_skipped_cell_is_recorded_and_gives_way_to_its_measurement():
    results = fresh_results()
    run([(cell("anchor", 100), "measured up to N = 50")], results)
    assert results["cells"][0]["status"] == "skipped"
    assert results["cells"][0]["message"] == "measured up to N = 50"
    results["runs"].append(ABOUT | RATES)
    run([cell("anchor", 100)], results)
    assert [(found["status"], found["run"]) for found in results["cells"]] == [("ok", 1)]


def test_the_file_is_read_back_as_it_was(tmp_path):
    results = fresh_results()
    run([cell("anchor", 100)], results)
    bench.write(results, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == results
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


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
    found = bench.find_captures([tmp_path / path for path in paths])
    names = [("llama", 7), ("qwen", 7), ("both", 3), ("both", 7)]
    assert list(found) == [(*name, 100) for name in names]
    with pytest.raises(ValueError, match="activations must have different names, got qwen twice"):
        bench.find_captures([tmp_path / "qwen", tmp_path / "qwen" / "layer_0007.safetensors"])


def test_the_bundled_models_layers_are_inputs_at_both_lengths(monkeypatch):
    monkeypatch.setattr(bench, "BUNDLED_LENGTHS", [100, 300])
    found = bench.find_captures(["bundled"], device="cpu")
    assert list(found) == [("bundled", layer, n) for n in (100, 300) for layer in range(8)]
    for (_, layer, n), x in found.items():
        assert (x.q.shape, x.k.shape, x.v.shape) == ((1, 8, n, 64), *[(1, 2, n, 64)] * 2)
        assert x.q.dtype == torch.bfloat16
        assert x.layer == layer
        assert torch.equal(x.k, found["bundled", layer, 300].k[:, :, :n])
    case = bench.case_maker(found, anchor_ref, "cpu")(bench.Cell("bundled", 5, 300, None, "flex"))
    assert torch.equal(case.v, found["bundled", 5, 300].v)


def test_a_capture_is_measured_in_bf16_with_its_own_scale_and_heads():
    captures = {("llama", 7, 100): capture()}
    make_case = bench.case_maker(captures, anchor_ref, device="cpu")
    case = make_case(bench.Cell("llama", 7, 100, None, "anchor"))
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
        ({"sliding_window": 64}, "layer sees only the last 64 keys"),
        ({"softcap": 30.0}, "layer caps its scores"),
    ],
)
def test_layers_of_another_attention_are_refused(changed, message):
    make_case = bench.case_maker({("m", 7, 100): capture(**changed)}, anchor_ref, device="cpu")
    with pytest.raises(ValueError, match=message):
        make_case(bench.Cell("m", 7, 100, None, "anchor"))


def test_a_window_wider_than_the_prompt_is_no_window():
    captures = {("m", 7, 100): capture(sliding_window=4096)}
    make_case = bench.case_maker(captures, anchor_ref, device="cpu")
    assert make_case(bench.Cell("m", 7, 100, None, "anchor")).n == 100


# The command


def test_without_a_cuda_device_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--quick", "--out", str(tmp_path / "a.json")]) == 2
    printed = capsys.readouterr()
    assert (
        printed.err
        == "anchor_lab.experiments.attention.measure needs a CUDA device, and torch finds none.\n"
    )
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


def test_results_are_not_overwritten_without_a_word(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    out = tmp_path / "a.json"
    out.write_text("precious")
    assert bench.main(["--out", str(out)]) == 2
    assert "add --resume, or name another --out" in capsys.readouterr().err
    assert out.read_text() == "precious"


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command on a pretended device: the reference, small tensors, a clock that is told."""

    class Instruments(FakeInstruments):
        def __init__(self, budget_s):
            super().__init__()

        def rates(self):
            return RATES

    device = {"name": "a device"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "kernels", lambda: anchor_ref)
    monkeypatch.setattr(bench, "CudaInstruments", Instruments)
    monkeypatch.setattr(bench, "device_facts", lambda: ABOUT | {"device": device["name"]})
    monkeypatch.setattr(
        bench, "case_maker", lambda *_: lambda cell: small_case(cell.n, density=cell.density)
    )
    out = tmp_path / "a.json"

    def call(*arguments: str, device_name: str = "a device") -> tuple[int, dict]:
        device["name"] = device_name
        code = bench.main(["--out", str(out), "--densities", "0.05", *arguments])
        return code, json.loads(out.read_text())

    return call


def test_a_resumed_run_adds_what_is_missing_and_nothing_else(command, capsys):
    first = ["--lengths", "100", "--methods", "anchor", "stage1"]
    assert command(*first)[0] == 0
    longer = ["--resume", "--lengths", "100", "200", "--methods", "anchor", "sdpa-flash"]
    code, results = command(*longer, "--dense-to", "150")
    assert code == 0
    found = [(c["n"], c["method"], c["run"], c["status"]) for c in results["cells"]]
    assert found == [
        (100, "anchor", 0, "ok"),
        (100, "stage1", 0, "ok"),
        (100, "sdpa-flash", 1, found[2][3]),  # "ok" where the CPU has that backend
        (200, "anchor", 1, "ok"),
        (200, "sdpa-flash", 1, "skipped"),
    ]
    assert len(results["runs"]) == 2
    capsys.readouterr()
    assert command(*longer, "--dense-to", "150") == (0, results)
    assert capsys.readouterr().out.endswith("a.json holds all of it.\n")


def test_failed_cells_are_measured_again_only_when_asked(command, monkeypatch):
    def broken(case):
        raise RuntimeError("not today")

    once = ["--lengths", "100", "--methods", "anchor"]
    whole = methods.make_methods()
    monkeypatch.setattr(bench, "make_methods", lambda: whole | {"anchor": broken})
    assert command(*once)[1]["cells"][0]["status"] == "error"
    monkeypatch.setattr(bench, "make_methods", lambda: whole)
    assert command(*once, "--resume")[1]["cells"][0]["status"] == "error"
    assert [c["status"] for c in command(*once, "--resume", "--retry")[1]["cells"]] == ["ok"]


def test_results_of_two_devices_are_not_mixed(command, capsys):
    _, before = command("--lengths", "100", "--methods", "anchor")
    options = ["--resume", "--lengths", "200", "--methods", "anchor"]
    assert command(*options, device_name="another") == (2, before)
    assert "holds results of device a device" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["kernels", "torch", "triton"])
def test_nor_are_those_of_other_kernels_or_libraries(command, capsys, tmp_path, what):
    _, before = command("--lengths", "100", "--methods", "anchor")
    (path,) = tmp_path.glob("*.json")
    before["runs"][0][what] = "older"
    path.write_text(json.dumps(before))
    options = ["--resume", "--lengths", "200", "--methods", "anchor"]
    assert command(*options) == (2, before)
    assert f"holds results of {what} older" in capsys.readouterr().err


def test_a_used_up_budget_says_how_to_go_on(command, capsys):
    # Nothing is measured in no time, so there is no file yet either.
    with pytest.raises(FileNotFoundError):
        command("--lengths", "100", "--methods", "anchor", "stage1", "--budget-s", "0")
    expected = "Budget of 0 s used: 2 cells left, go on with --resume.\n"
    assert capsys.readouterr().out == expected


def test_the_command_is_recorded_without_the_folders_of_this_machine():
    arguments = ["--out", "/somewhere/deep/a.json", "--lengths", "4096", "--activations", "x/y z"]
    assert bench.command_line(arguments) == (
        "python -m anchor_lab attention --out a.json --lengths 4096 --activations 'x/y z'"
    )


# On a GPU


@pytest.mark.gpu
def test_every_method_runs_on_a_gpu_and_agrees_with_dense_attention(tmp_path):
    out = tmp_path / "a.json"
    assert bench.main(["--quick", "--lengths", "4096", "--cell-s", "0.1", "--out", str(out)]) == 0
    found = {c["method"]: c for c in json.loads(out.read_text())["cells"]}
    assert set(found) == set(methods.make_methods())
    for name, measured in found.items():
        assert measured["status"] == "ok", f"{name}: {measured}"
        assert measured.get("error_mean", 0) < 0.01, f"{name}: {measured}"
