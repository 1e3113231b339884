"""Prompts and scores are the harness's, whatever attention reads them; on the bundled model."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from anchor_lab.experiments.benchmark import harness, measure
from anchor_lab.experiments.benchmark.harness import Task
from anchor_lab.experiments.benchmark.measure import WAYS
from anchor_lab.experiments.benchmark.page import EXPERIMENT
from anchor_lab.experiments.store import read
from anchor_models import bundled_model_path
from anchor_models.models import load_pretrained
from anchor_models.transformers import record

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install '.[lm-eval]'")
LENGTH = 2304


@pytest.fixture(scope="module")
def loaded():
    return load_pretrained("bundled")


@pytest.fixture(scope="module")
def task():
    return Task("niah_single_1", LENGTH, "bundled", 4)


def test_all_ways_are_asked_the_same_and_only_ours_runs_anchor_attention(task, loaded):
    found, ran = {}, {}
    for name, way in WAYS.items():
        with record() as stats:
            found[name] = task.ask(*loaded, 1, way)
        ran[name] = sum(call.ran == "anchor" for call in stats.calls)
    assert ran == {"dense": 0, "tail 0": 8, "tail 512": 8}
    assert len({(row["hash"], row["tokens"]) for row in found.values()}) == 1
    assert 2048 < found["dense"]["tokens"] <= LENGTH
    assert task.ask(*loaded, 0, WAYS["dense"])["hash"] != found["dense"]["hash"]


def test_prompts_are_those_of_the_harness_s_own_command(task, loaded, monkeypatch):
    import lm_eval
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    for slow in ("add_env_info", "add_tokenizer_info"):  # the dummy's would come from the hub
        monkeypatch.setattr(f"lm_eval.evaluator.{slow}", lambda *_: None)
    asked = simple_evaluate(
        model="dummy",
        tasks=["niah_single_1"],
        limit=1,
        bootstrap_iters=0,
        task_manager=TaskManager(
            include_defaults=False,
            include_path=str(Path(lm_eval.__file__).parent / "tasks" / "ruler"),
            metadata={"pretrained": str(bundled_model_path()), "max_seq_lengths": [LENGTH]},
        ),
    )
    (sample,) = asked["samples"]["niah_single_1"]
    assert task.ask(*loaded, 0, WAYS["dense"])["hash"] == sample["prompt_hash"][:12]


def test_prompts_do_not_depend_on_what_was_drawn_before():
    def words():
        (one,) = Task("ruler_cwe", LENGTH, "bundled").loaded["tasks"].values()
        return [doc["input"] for doc in list(one.test_docs())[:3]]

    first = words()
    assert len(set(first)) == 3
    assert words() == first


def test_the_score_is_the_harness_s_for_what_is_written(task, loaded, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    (one,) = task.loaded["tasks"].values()
    (answer,) = next(iter(one.test_docs()))["outputs"]
    for written, score in ((f" {answer}.", 1.0), (" 12.", 0.0)):
        monkeypatch.setattr(HFLM, "generate_until", lambda self, asked, w=written: [w])
        found = task.ask(*loaded, 0, WAYS["dense"])
        assert (found["score"], found["written"]) == (score, written)


def test_nothing_of_a_prompt_is_cut(task, loaded, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(model.config, "max_position_embeddings", 1024)
    monkeypatch.setattr(harness, "stretch", lambda model, tokens: nullcontext())
    seen = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        found = task.ask(model, tokenizer, 0, WAYS["dense"])
    finally:
        hook.remove()
    assert seen[0] == found["tokens"] > 2048


def test_a_quick_run_asks_the_bundled_model_in_every_way(tmp_path, monkeypatch, capsys):
    out = tmp_path / "quick.json"
    asked = ["--quick", "--model", "bundled", "--device", "cpu", "--out", str(out)]
    assert EXPERIMENT.run(asked) == 0
    assert "Generating" not in capsys.readouterr().err  # of the harness's bars
    found = read(out)
    assert [row["way"] for row in found["rows"]] == list(WAYS)
    assert len({row["hash"] for row in found["rows"]}) == 1
    assert found["settings"]["chat_template"] is False
    assert "kernels" not in found["runs"][0]
    assert "without a chat template" in out.with_suffix(".md").read_text(encoding="utf-8")
    monkeypatch.setattr(measure, "Task", None)  # nothing is left to ask
    assert EXPERIMENT.run(asked) == 0


def test_the_harness_is_loaded_only_where_it_is_asked():
    """Its import takes seconds, and it is an extra."""
    code = "import sys, anchor_lab.__main__; sys.exit('lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
