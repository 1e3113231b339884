"""lm-evaluation-harness on a model that is loaded: its tasks, prompt by prompt, with scores.

Nothing of a task is ours: the harness's generators draw the prompts from the harness's seeds, it
puts them into the model's chat template, lets the model write and scores what is written.
"""

import io
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from anchor_lab.experiments.answers.ask import Way, reading
from anchor_models.lm_eval import FOLDERS
from anchor_models.smollm2 import stretch

# RULER's tasks that make their prompts without a network; docs/how-to/run_benchmarks.md has all.
TASKS = (
    "niah_single_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "ruler_vt",
    "ruler_cwe",
    "ruler_fwe",
)
SEEDS = 0, 1234  # of Python's and NumPy's generators, as the harness's own command sets them
OWN_GENERATOR = "lm_eval.tasks.ruler.cwe_utils"
ROOM = 128  # tokens: chat template, beginning of the answer, and where it is not counted the rest


class Task:
    """A task of RULER's at one length, with the prompts that `anchor_models.lm_eval` would ask.

    They are those of the command with this task and length alone: the harness draws all tasks of
    a command from one generator, one after the other.

    Args:
        name: one of `TASKS`.
        length: tokens of a prompt and its answer at most, as RULER counts: without the words that
            begin the answer, and without a chat template.
        model: its name for `load_pretrained`; RULER measures prompts by its tokenizer.
        new_tokens: that the model may write; None for RULER's own number.
    """

    def __init__(self, name: str, length: int, model: str, new_tokens: int | None = None):
        import numpy as np
        from lm_eval.tasks import TaskManager

        self.name, self.length = name, length
        folder = str(FOLDERS.get(model, lambda: model)())
        with _quiet():
            import lm_eval

            manager = TaskManager(
                include_defaults=False,  # thousands, read for seconds
                include_path=str(Path(lm_eval.__file__).parent / "tasks" / "ruler"),
                metadata={"pretrained": folder, "max_seq_lengths": [length]},
            )
            # It shuffles by a generator of its own, which would go on where the last task left it.
            sys.modules.pop(OWN_GENERATOR, None)
            python, numpy = SEEDS
            random.seed(python)
            np.random.seed(numpy)  # noqa: NPY002, the harness draws from it
            self.loaded = manager.load([name])
        (task,) = self.loaded["tasks"].values()
        task.set_config("num_fewshot", 0)
        if new_tokens is not None:
            task.set_config("generation_kwargs", {"max_gen_toks": new_tokens}, update=True)

    def ask(self, model, tokenizer, prompt: int, way: Way) -> dict:
        """What the model writes after a prompt that is read in this way, and its score.

        Args:
            model, tokenizer: from `load_pretrained`; a chat template is used where there is one.
            prompt: its number, from 0 on.
            way: how it is read.

        Returns:
            "score" in [0, 1], the share of the answers that were found; "written"; "tokens" of the
            prompt; "hash" of its words, by the harness; "seconds".
        """
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        started = time.perf_counter()
        # What is longer than the model's positions the harness would cut, without a word.
        long = 2 * self.length
        with _quiet():
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=long)
        with stretch(model, self.length + ROOM), reading(model, way), _quiet():
            found = evaluate(
                lm,
                self.loaded,
                samples={self.name: [prompt]},
                bootstrap_iters=0,
                apply_chat_template=has_template(tokenizer),
                fewshot_as_multiturn=True,
            )
        (sample,) = found["samples"][self.name]
        ((words, _),) = sample["arguments"]
        return {
            "score": sample[str(self.length)],
            "tokens": len(lm.tok_encode(words)),
            "hash": sample["prompt_hash"][:12],
            "written": sample["resps"][0][0],
            "seconds": round(time.perf_counter() - started, 1),
        }


def has_template(tokenizer) -> bool:
    """Whether prompts are put into a chat."""
    return getattr(tokenizer, "chat_template", None) is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside the `with`, nothing of the harness's bars and notes; faults are exceptions."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
