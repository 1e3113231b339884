"""What an exercise is: drawn inputs, the truth, and the mistakes that are easily made."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from anchor_lab.exercises.picture import differs, draw_failure
from anchor_ref.online_softmax import SoftmaxState


@dataclass(frozen=True)
class Judgement:
    """What is said about an answer.

    Attributes:
        passed: whether it is right.
        words: what is wrong, in words.
        draw: draws the failure on a new figure; None where there is nothing to see.
    """

    passed: bool
    words: str
    draw: Callable[[], None] | None = None


def attempt(answer: Callable[[], object]) -> tuple[object, Judgement | None]:
    """What an answer returns, or what is said of one that stops."""
    try:
        return answer(), None
    except NotImplementedError:
        return None, Judgement(False, "not written yet. Replace the line that raises.")
    except Exception as error:  # an answer may raise anything: its author is told
        return None, Judgement(False, f"stops with {type(error).__name__}: {error}")


@dataclass(frozen=True)
class Exercise:
    """A function to be written, judged by what it returns.

    Attributes:
        name: of the function.
        draw: arguments of a call, drawn from a generator.
        truth: the function as it should be.
        mistakes: functions that go wrong as an answer may, each with what is to be said then.
        parts: names of what is returned.
        axes: what the rows and the columns of the picture are.
        call: how to call an answer with the arguments.
        tolerance: difference that rounding may make, see `picture.differs`.
        draws: inputs that are tried.
    """

    name: str
    draw: Callable[[torch.Generator], tuple]
    truth: Callable
    mistakes: tuple[tuple[Callable, str], ...]
    parts: tuple[str, ...] = ("result",)
    axes: tuple[str, str] = ("row", "column")
    call: Callable = lambda function, *arguments: function(*arguments)
    tolerance: float = 1e-9
    draws: int = 6

    def judge(self, function: Callable) -> Judgement:
        """Run the answer on every drawn input; the first that goes wrong is told about."""
        expected = [self._run(self.truth, seed) for seed in range(self.draws)]
        found, stopped = attempt(lambda: [self._run(function, i) for i in range(self.draws)])
        if stopped:
            return stopped
        for right, got in zip(expected, found, strict=True):
            if fault := self._fault(right, got):
                part, words = fault
                shown = self.axes, part, right[part], got.get(part), self.tolerance
                words = self._known(found) or words
                return Judgement(False, f"wrong. {words}", partial(draw_failure, *shown))
        return Judgement(True, f"right, on {self.draws} drawn inputs.")

    def _run(self, function: Callable, seed: int) -> dict:
        """What a function makes of an input, drawn anew: an answer may write on what it gets."""
        arguments = self.draw(torch.Generator().manual_seed(seed))
        return self._parts(self.call(function, *arguments))

    def _known(self, found: list[dict]) -> str | None:
        """What is to be said about an answer that is one of the mistakes, on every input."""
        for mistake, words in self.mistakes:
            wrong = [self._run(mistake, seed) for seed in range(self.draws)]
            if not any(map(self._fault, wrong, found)):
                return words
        return None

    def _fault(self, right: dict[str, Tensor], got: dict) -> tuple[str, str] | None:
        """The first part that differs, and how."""
        if list(got) != list(right):
            names = ", ".join(self.parts)
            return self.parts[0], f"{len(right)} results are asked for ({names}), not {len(got)}."
        for part, tensor in right.items():
            words = _difference(tensor, got[part], self.tolerance)
            if words:
                return part, f"{part.capitalize()}: {words}"
        return None

    def _parts(self, result: object) -> dict:
        """What was returned, by name; numbers as tensors."""
        if isinstance(result, SoftmaxState):
            result = (result.max, result.sum, result.acc)
        listed = isinstance(result, list) and len(self.parts) > 1
        many = result if isinstance(result, tuple) or listed else (result,)
        names = (*self.parts, *(f"result {i}" for i in range(len(self.parts), len(many))))
        return {name: _as_tensor(x) for name, x in zip(names, many, strict=False)}


def _as_tensor(x: object) -> object:
    """A Python number as a tensor that holds all of it; anything else as it is."""
    if isinstance(x, float):
        return torch.tensor(x, dtype=torch.float64)
    return torch.tensor(x) if isinstance(x, bool | int) else x


def _difference(right: Tensor, got: object, tolerance: float) -> str | None:
    if not isinstance(got, Tensor):
        return f"{type(got).__name__} is returned, a tensor or a number is asked for."
    if got.shape != right.shape:
        return f"shape {tuple(got.shape)}, not {tuple(right.shape)}."
    if (got.dtype == torch.bool) != (right.dtype == torch.bool):
        return f"dtype {got.dtype}, not {right.dtype}."
    wrong = differs(right, got, tolerance)
    if not wrong.any():
        return None
    at = tuple(wrong.nonzero()[0].tolist())
    place = f" at {list(at)}" if at else ""
    return (
        f"{int(wrong.sum())} of {wrong.numel()} numbers differ, the first{place}: "
        f"{got[at].item():.6g} instead of {right[at].item():.6g}."
    )
