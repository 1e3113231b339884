"""Answers are counted as greedy decoding would say them."""

import pytest
import torch

from anchor_lab.analysis.intervals import wilson
from anchor_lab.experiments.retrieval.prompts import Prompt, make_retrieval
from anchor_lab.experiments.retrieval.score import retrieval_accuracy, run_prompts, score
from anchor_lab.methods import Dense, StreamingLLM
from anchor_models import load_bundled


@pytest.fixture(scope="module")
def bundled():
    return load_bundled()


def prompts(tokenizer, task, length=260, count=2):
    return [make_retrieval(tokenizer, task, length, seed) for seed in range(count)]


def test_an_answer_counts_when_all_its_digits_are_foretold():
    prompt = Prompt(torch.arange(20), (range(5, 8), range(12, 14)), (range(1, 2), range(2, 3)))
    foretold = torch.arange(1, 21)
    assert score(prompt, foretold) == (True, True)
    for position, expected in ((3, (True, True)), (4, (False, True)), (6, (False, True))):
        wrong = foretold.clone()
        wrong[position] = 0
        assert score(prompt, wrong) == expected
    wrong = foretold.clone()
    wrong[[7, 12]] = 0
    assert score(prompt, wrong) == (True, False)


def test_greedy_decoding_says_what_is_counted(bundled):
    model, tokenizer = bundled
    for prompt in prompts(tokenizer, "multi-key"):
        (answer,), ((right,), *_) = prompt.answers, run_prompts(model, [prompt])[0]
        start = prompt.tokens[None, : answer.start]
        said = model.generate(start, max_new_tokens=len(answer), do_sample=False)[0]
        assert right == torch.equal(
            said[answer.start :], prompt.tokens[answer.start : answer.stop]
        )


def test_a_batch_of_prompts_is_the_prompts_one_by_one(bundled):
    model, tokenizer = bundled
    drawn = prompts(tokenizer, "multi-query", count=3)
    method = StreamingLLM(16, 130)
    together, density = run_prompts(model, drawn, method)
    alone = [run_prompts(model, [prompt], method) for prompt in drawn]
    assert together == [found[0] for found, _ in alone]
    assert density == pytest.approx(sum(density for _, density in alone) / 3)
    one, three = (retrieval_accuracy(model, drawn, method, batch=size) for size in (2, 3))
    assert (one.right, one.asked, one.prompts) == (three.right, 12, 3)
    assert one.density == pytest.approx(three.density)


def test_the_model_answers_what_it_can_see_and_nothing_else(bundled):
    model, tokenizer = bundled
    drawn = prompts(tokenizer, "key-value", count=3)
    own = retrieval_accuracy(model, drawn)
    assert (own.right, own.asked, own.density) == (12, 12, None)
    assert (own.low, own.high) == wilson(1.0, 3)
    same = retrieval_accuracy(model, drawn, Dense())
    assert (same.right, same.density) == (12, 1.0)
    blind = retrieval_accuracy(model, drawn, StreamingLLM(4, 30))
    out_of_sight = sum(
        source.stop < answer.start - 60
        for prompt in drawn
        for source, answer in zip(prompt.sources, prompt.answers, strict=True)
    )
    assert out_of_sight >= 6
    assert blind.right <= 12 - out_of_sight
    assert 0 < blind.density < 0.3


def test_bad_arguments_are_named(bundled):
    model, tokenizer = bundled
    short, long = (prompts(tokenizer, "single", length, 1)[0] for length in (300, 400))
    cases = [
        (lambda: retrieval_accuracy(model, []), "prompts must be at least one, got none"),
        (lambda: retrieval_accuracy(model, [short], batch=0), "batch must be at least 1, got 0"),
        (lambda: run_prompts(model, [short, long]), r"prompts must have one length, got \[300,"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
