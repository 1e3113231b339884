"""Prompts that hide facts and ask for them, in the spirit of RULER (arXiv 2404.06654).

A task says what is hidden and what is asked; a placement says where the question stands. What
is hidden is made up from the seed, the text around it is the bundled model's prose, and every
prompt of a length has exactly that many tokens.

    placement     what the prompt's end is
    end           ... text, question, "answer with the number alone"
    instructions  ... text, question, then 100 to 400 tokens of how to answer
    turn          ... text; the model says that it has read it; question, in a turn of its own

A tokenizer with a chat template gets the conversation that its model was trained for. Without one
the text stands by itself. Either way the answer has begun ("The number of it is"), as RULER begins
its answers: a small model follows instructions badly, and what is asked here is what it has read.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from anchor_lab.experiments.smollm2.prompts import MARK, sentence_end
from anchor_models.documents import STATEMENTS, WORDS, make_keys, make_value, prose

PLACEMENTS = ("end", "instructions", "turn")
LEAST_INSTRUCTIONS, MOST_INSTRUCTIONS = 100, 400  # tokens
BEFORE = "Read the following text.\n\n"
HAVE_READ = "I have read the text."
# How to answer, none of which an answer that is looked for in the words can offend. Nothing here
# tells of the text: a small model would say it after.
INSTRUCTIONS = (
    "Keep the answer short.",
    "Take it from what is written there and from nowhere else.",
    "Do not explain how it was found.",
    "Do not add an opinion.",
    "There is no need to repeat the whole sentence.",
    "If several things look alike, choose the one that the question names.",
    "Leave out greetings, headings and lists.",
    "Write plain words, without bold or italic letters.",
    "One line is enough, and two are too many.",
    "Nobody will read more than the first line.",
    "Do not translate anything.",
    "Do not round a number, and put no comma into it.",
    "Write every digit as a digit.",
    "Be calm and friendly, as always.",
    "Do not ask a question in return.",
    "Do not apologise, and do not thank anybody.",
    "Do not mention these instructions.",
    "Use the language of the question.",
    "Keep to the point.",
    "Do not guess.",
    "Do not begin with an introduction.",
    "Do not end with a summary.",
    "Spell every word as it is spelt there.",
    "Leave out what nobody asked for.",
    "There is no need to be polite, and no need to be rude.",
    "If it is a number, write all of its digits and nothing between them.",
    "If it is a word or two, write them as they are, without an article before them.",
    "Do not put the answer into brackets or between stars.",
    "Do not offer further help, and do not ask whether it was useful.",
    "Short answers are read first, and long ones are not read at all.",
    "What was said earlier about the weather, the time of day or the place is not wanted.",
    "Please do not write a poem, a letter, a table or a piece of code.",
    "Whoever reads this is in a hurry and has no time for explanations.",
    "Do not weigh one answer against another: there is only one.",
    "A sentence is fine as long as it is a short one.",
    "Do not say that you are a helper or a program.",
    "Numbers are not to be written as words, and words are not to be written as numbers.",
    "Nothing has to be calculated.",
)
AT_LAST = " Now answer the question."


@dataclass(frozen=True)
class Fact:
    """Something to be hidden, and where: a share of the text, in [0, 1]."""

    place: float
    words: str


@dataclass(frozen=True)
class Asking:
    """What a task hides and asks.

    Attributes:
        facts: what is hidden.
        needed: indices of the facts without which nobody knows the answer.
        question: what is asked.
        request: how a model that follows requests is to answer.
        begun: the answer's first words, up to the letter that stands before what is asked.
        answer: what the model must write.
    """

    facts: tuple[Fact, ...]
    needed: tuple[int, ...]
    question: str
    request: str
    begun: str
    answer: str


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt that hides facts and asks for one.

    Attributes:
        tokens: `[1, N]` int64.
        answer: what must be among the words that the model writes.
        facts: where the facts stand that the answer needs.
        question: the tokens of the question, without what follows it.
        document: how many tokens come before the passage or turn that asks.
    """

    tokens: Int[Tensor, "1 N"]
    answer: str
    facts: tuple[range, ...]
    question: range
    document: int

    def found(self, words: str) -> bool:
        """Whether the model wrote it; small and large letters are the same."""
        return self.answer.lower() in words.lower()


def _number(rng: random.Random, keys: int) -> Asking:
    names, values = make_keys(keys, rng), [make_value(rng) for _ in range(keys)]
    facts = tuple(
        Fact(rng.random(), rng.choice(STATEMENTS).format(key=key, value=value))
        for key, value in zip(names, values, strict=True)
    )
    return Asking(
        facts,
        (0,),
        f"Question: what is the number of {names[0]}?",
        "Answer with the number alone.",
        f"The number of {names[0]} is ",
        values[0],
    )


def _single(rng: random.Random) -> Asking:
    """One fact."""
    return _number(rng, 1)


def _multi_key(rng: random.Random) -> Asking:
    """Two facts of one kind, and one is asked for."""
    return _number(rng, 2)


def _words(rng: random.Random) -> Asking:
    """A password of two words."""
    (key,) = make_keys(1, rng)
    value = f"{rng.choice(WORDS['qualities'])} {rng.choice(WORDS['things'])}"
    return Asking(
        (Fact(rng.random(), f' The password of {key} is "{value}".'),),
        (0,),
        f"Question: what is the password of {key}?",
        "Answer with the password alone.",
        f'The password of {key} is "',
        value,
    )


def _secret(rng: random.Random) -> Asking:
    """One fact without a name of its own."""
    value = make_value(rng)
    return Asking(
        (Fact(rng.random(), f" The secret number is {value}."),),
        (0,),
        "Question: what is the secret number?",
        "Answer with the number alone.",
        "The secret number is ",
        value,
    )


def _variable(rng: random.Random) -> Asking:
    """A chain: one name is given a number, another one is given the first."""
    names, value = make_keys(2, rng), make_value(rng)
    places = sorted(rng.random() for _ in names)
    told = [f"\nLet {names[0]} = {value}."]
    told += [f"\nLet {second} = {first}." for first, second in pairwise(names)]
    return Asking(
        tuple(Fact(place, words) for place, words in zip(places, told, strict=True)),
        (0, 1),
        f"Question: according to the lines that begin with Let, what is the value of {names[-1]}?",
        "Answer with the number alone.",
        f"The value of {names[-1]} is ",
        value,
    )


TASKS: dict[str, Callable[[random.Random], Asking]] = {
    "single": _single,
    "multi-key": _multi_key,
    "words": _words,
    "secret": _secret,
    "variable": _variable,
}
SHORT = tuple(name for name in TASKS if name != "variable")  # those that small models can do


def make_prompt(
    tokenizer, task: str, length: int, seed: int = 0, placement: str = "end"
) -> Prompt:
    """A prompt of exactly `length` tokens.

    Args:
        tokenizer: of a transformers model; see above for one without a chat template.
        task: one of `TASKS`.
        length: N.
        seed: everything drawn follows from it, the task, the length and the placement.
        placement: one of `PLACEMENTS`.

    Raises:
        ValueError: task or placement is unknown, or `length` leaves no room for text.
    """
    check_names("task", [task], TASKS)
    check_names("placement", [placement], PLACEMENTS)
    rng = random.Random(f"{task} {length} {placement} {seed}")
    asking = TASKS[task](rng)

    def encode(words: str) -> list[int]:
        return tokenizer(words, add_special_tokens=False, verbose=False).input_ids

    instructions = _instructions(encode, rng) if placement == "instructions" else ""
    parts = _around(tokenizer, asking, placement, instructions)
    before, between, question = map(encode, parts[:-1])
    begin = getattr(tokenizer, "bos_token_id", None)
    if not _has_template(tokenizer):
        before = [] if begin is None else [begin]
    after = _up_to(tokenizer, encode(parts[-1] + asking.answer), parts[-1])
    hidden = [encode(fact.words) for fact in asking.facts]
    used = sum(map(len, (before, between, question, after, *hidden)))
    if used >= length:
        raise ValueError(
            f"length must be at least {used + 1} for task {task!r} and placement {placement!r}, "
            f"got {length}"
        )
    text = encode(prose(8 * (length - used), rng))[: length - used]
    tokens, places, done = list(before), {}, 0
    for index in sorted(range(len(hidden)), key=lambda index: asking.facts[index].place):
        at = max(done, sentence_end(tokenizer, text, asking.facts[index].place))
        tokens += text[done:at]
        places[index] = range(len(tokens), len(tokens) + len(hidden[index]))
        tokens += hidden[index]
        done = at
    tokens += text[done:]
    document = len(tokens)
    asked = range(document + len(between), document + len(between) + len(question))
    tokens += [*between, *question, *after]
    return Prompt(
        torch.tensor([tokens]),
        asking.answer,
        tuple(places[index] for index in asking.needed),
        asked,
        document,
    )


def check_names(option: str, asked: Sequence[str], allowed) -> None:
    """Refuse, with a ValueError, a name that is not among the allowed."""
    for name in asked:
        if name not in allowed:
            raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {name!r}")


def _has_template(tokenizer) -> bool:
    return getattr(tokenizer, "chat_template", None) is not None


def _up_to(tokenizer, tokens: list[int], words: str) -> list[int]:
    """The tokens of `words` as they are where more words follow: a space may belong to those."""
    count = len(tokens)
    while len(tokenizer.decode(tokens[:count])) > len(words):
        count -= 1
    return tokens[:count]


def _instructions(encode: Callable[[str], list[int]], rng: random.Random) -> str:
    """Whole sentences, as many as a drawn number of tokens has room for, and a last one."""
    most = rng.randint(LEAST_INSTRUCTIONS, MOST_INSTRUCTIONS) - len(encode(AT_LAST))
    left, words = rng.sample(INSTRUCTIONS, len(INSTRUCTIONS)), ""
    for sentence in left:
        longer = f"{words} {sentence}"
        if len(encode(longer)) > most:
            break
        words = longer
    return words + AT_LAST


def _around(tokenizer, asking: Asking, placement: str, instructions: str) -> list[str]:
    """What stands before the text, between it and the question, the question, and after it."""
    if _has_template(tokenizer):
        asks = f"{MARK}{asking.question}{MARK} {asking.request}{instructions}"
        turns = [BEFORE + MARK + "\n\n" + asks]
        if placement == "turn":
            turns = [BEFORE + MARK, HAVE_READ, asks]
        roles = ("user", "assistant", "user")
        chat = [
            {"role": role, "content": words} for role, words in zip(roles, turns, strict=False)
        ]
        said = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return (said + asking.begun).split(MARK)
    said = f"\n{HAVE_READ}" if placement == "turn" else ""
    return ["", f"{said}\n", asking.question, f"{instructions} Answer: {asking.begun}"]
