"""lm-evaluation-harness on the bundled model with AnchorAttention, without a network."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from anchor_models import bundled_model_path, make_document
from anchor_models import lm_eval as wrapper
from anchor_models.documents import make_prompt
from anchor_models.transformers import options, record

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install '.[lm-eval]'")


@pytest.fixture
def local(tmp_path):
    """A task of one's own: a document that is longer than a group, and the number in it."""
    document = make_document(9000, seed=0)
    (tmp_path / "needle.jsonl").write_text(
        json.dumps({"text": document.text, "answer": document.answer}) + "\n"
    )
    task = {
        "task": "local_needle",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "needle.jsonl")}},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "generation_kwargs": {"do_sample": False, "max_gen_toks": 5, "until": ["."]},
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
        ],
    }
    (tmp_path / "needle.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


# The harness reads the 13 000 tasks that it brings, for seconds, to find one of somebody's own.
WITHOUT_ITS_TASKS = """
import sys
from functools import partialmethod
from lm_eval.tasks import TaskManager
TaskManager.__init__ = partialmethod(TaskManager.__init__, include_defaults=False)
from anchor_models.lm_eval import main
sys.exit(main())
"""


def harness(folder, tasks):
    """(results by task, what was said on stderr)."""
    out = folder / "out"
    command = [sys.executable, "-c", WITHOUT_ITS_TASKS, "run", "--model", "hf"]
    model = "pretrained=bundled,attn_implementation=anchor_attention,dtype=float32"
    command += ["--model_args", model, "--device", "cpu", "--batch_size", "1", "--limit", "1"]
    command += ["--include_path", str(folder), "--output_path", str(out), "--tasks", tasks]
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    (found,) = out.rglob("results_*.json")
    return json.loads(found.read_text())["results"], done.stderr


def test_the_harness_asks_a_model_that_runs_anchor_attention(local):
    found, said = harness(local, "local_needle")
    assert found["local_needle"]["exact_match,none"] == 1.0
    assert "AnchorAttention ran in 8 of 8 calls" in said


@pytest.fixture
def run(monkeypatch):
    """The harness replaced by what it was given, and a prefill of the bundled model."""
    import lm_eval.__main__ as command

    from anchor_models.integration.options import current_options
    from anchor_models.models import load_pretrained

    seen = {}

    def evaluate():
        seen["words"] = sys.argv
        model, tokenizer = load_pretrained("bundled")
        seen["options"] = current_options(model.config)
        model.set_attn_implementation(seen.get("attention", "anchor_attention"))
        import torch

        ids, _ = make_prompt(tokenizer, 2100)
        with torch.no_grad():
            model(torch.tensor([ids]), logits_to_keep=1)

    monkeypatch.setattr(command, "cli_evaluate", evaluate)
    return seen


def test_options_are_taken_and_all_else_is_handed_on(run, capsys):
    before = list(sys.argv)
    words = ["run", "--tasks", "a,b", "--model_args", "pretrained=x", "--the", "1"]
    assert wrapper.main(["--tail", "7", *words, "--theta", "3.5"]) == 0
    assert run["words"] == ["lm_eval", *words]
    assert sys.argv == before
    chosen = run["options"]
    assert (chosen.thetas, chosen.sizes.tail, chosen.when) == (3.5, 7, "always")
    assert "AnchorAttention ran in 8 of 8 calls of it" in capsys.readouterr().err


def test_without_options_it_is_what_models_have(run):
    assert wrapper.main(["ls", "tasks"]) == 0
    with options(when="always") as expected:
        assert run["options"] == expected


def test_calls_of_another_attention_are_none_of_its_own(run, capsys):
    run["attention"] = "sdpa"
    assert wrapper.main(["run"]) == 0
    assert "AnchorAttention ran in 0 of 0 calls" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--tail", "-1"], "tail must be"),
        (["--theta", "nan"], "theta must"),
        (["--when", "often"], "when must be one of 'auto', 'always', got 'often'"),
    ],
)
def test_wrong_options_are_one_line(run, capsys, wrong, message):
    assert wrapper.main([*wrong, "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("anchor_models.lm_eval: error: ")
    assert message in line
    assert not run


def test_faults_of_the_harness_keep_their_traceback(monkeypatch):
    import lm_eval.__main__ as command

    def fail():
        raise ValueError("Tasks not found: x")

    monkeypatch.setattr(command, "cli_evaluate", fail)
    with record(), pytest.raises(ValueError, match="Tasks not found: x"):
        wrapper.main(["run"])


def test_without_the_harness_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    assert wrapper.main(["run"]) == 2
    assert "needs lm-eval: pip install '.[lm-eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("pretrained=bundled", "pretrained={}"),
        ("dtype=float32,pretrained=bundled,x=1", "dtype=float32,pretrained={},x=1"),
        ('{"pretrained": "bundled"}', '{{"pretrained": "{}"}}'),
        ("pretrained=bundled/mine", "pretrained=bundled/mine"),
        ("pretrained=bundled2", "pretrained=bundled2"),
        ("unpretrained=bundled", "unpretrained=bundled"),
        ("bundled", "bundled"),
    ],
)
def test_models_with_a_name_here_are_named_by_their_folder(word, expected):
    assert wrapper.with_folder(word) == expected.format(bundled_model_path())
