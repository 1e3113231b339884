"""Exercises of the course, and what looks at the answers: `check(function)` in a notebook.

what an exercise is, and how an answer is judged   exercise.py; its picture: picture.py
softmax states and gathered keys                   softmax.py
regions, pooling, the difference test              selection.py
recall and density                                 measures.py
loops to be written in Triton                      kernels.py
rows that are asked by themselves, an extension    asked.py
an input to be found                               needle.py
"""

from collections.abc import Callable

from anchor_lab.exercises.asked import ASKED
from anchor_lab.exercises.exercise import Exercise, Judgement
from anchor_lab.exercises.kernels import KERNELS
from anchor_lab.exercises.measures import MEASURES
from anchor_lab.exercises.needle import Needle
from anchor_lab.exercises.selection import SELECTION
from anchor_lab.exercises.softmax import SOFTMAX

EXERCISES: dict[str, Exercise | Needle] = {
    exercise.name: exercise
    for exercise in (*SOFTMAX, *SELECTION, *MEASURES, *ASKED, *KERNELS, Needle())
}


def judge(function: Callable) -> Judgement:
    """Run an answer on drawn inputs and say what is wrong with it.

    Args:
        function: the answer; its name tells which exercise it belongs to.

    Raises:
        ValueError: no exercise has that name.
    """
    name = getattr(function, "__name__", repr(function))
    if name not in EXERCISES:
        raise ValueError(f"function must be named as an exercise ({', '.join(EXERCISES)}): {name}")
    return EXERCISES[name].judge(function)


def check(function: Callable) -> None:
    """`judge` for notebooks: prints the words, and draws what went wrong.

    Args:
        function: as in `judge`.

    Raises:
        ValueError: as in `judge`.
    """
    judgement = judge(function)
    print(f"{function.__name__}: {judgement.words}")
    if judgement.draw is not None:
        from matplotlib import pyplot as plt

        from anchor_lab.drawing.style import show

        judgement.draw()
        show(plt.gcf(), f"Picture of the answer to {function.__name__}: {judgement.words}")


__all__ = ["EXERCISES", "Judgement", "check", "judge"]
