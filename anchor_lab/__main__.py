"""Run an experiment: measure, then write its page and figure.

python -m anchor_lab                   what there is to run
python -m anchor_lab NAME              measure into results/NAME, then the page
python -m anchor_lab NAME --table      only the page, from the numbers that are there
python -m anchor_lab NAME --quick      small sizes, to see that it runs; into build/quick/NAME
"""

import sys
from collections.abc import Sequence

from anchor_lab.cli import print_anything
from anchor_lab.experiments.ablations import page as ablations
from anchor_lab.experiments.advice import page as advice
from anchor_lab.experiments.answers import page as answers
from anchor_lab.experiments.attention import page as attention
from anchor_lab.experiments.benchmark import page as benchmark
from anchor_lab.experiments.compare import page as compare
from anchor_lab.experiments.crossover import page as crossover
from anchor_lab.experiments.equal_time import page as equal_time
from anchor_lab.experiments.experiment import Experiment
from anchor_lab.experiments.lengths import page as lengths
from anchor_lab.experiments.losses import page as losses
from anchor_lab.experiments.model import page as model
from anchor_lab.experiments.outliers import page as outliers
from anchor_lab.experiments.parallel import page as parallel
from anchor_lab.experiments.questions import page as questions
from anchor_lab.experiments.reference import page as reference
from anchor_lab.experiments.retrieval import page as retrieval
from anchor_lab.experiments.retrieval import written
from anchor_lab.experiments.rivals import page as rivals
from anchor_lab.experiments.side_by_side import page as side_by_side
from anchor_lab.experiments.smollm2 import page as smollm2
from anchor_lab.experiments.verdict import page as verdict

EXPERIMENTS: dict[str, Experiment] = {
    page.EXPERIMENT.name: page.EXPERIMENT
    for page in (
        attention,
        ablations,
        compare,
        questions,
        model,
        parallel,
        reference,
        retrieval,
        written,
        smollm2,
        answers,
        benchmark,
        crossover,
        lengths,
        rivals,
        losses,
        advice,
        side_by_side,
        outliers,
        equal_time,
        verdict,
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, that of a run, or 2 for a name that is none, with a line on stderr."""
    print_anything()
    name, *more = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        width = max(map(len, EXPERIMENTS))
        print(*(f"{name:{width}}  {one.title}" for name, one in EXPERIMENTS.items()), sep="\n")
        return 0
    if name not in EXPERIMENTS:
        print(f"name must be one of {', '.join(EXPERIMENTS)}, got {name!r}", file=sys.stderr)
        return 2
    return EXPERIMENTS[name].run(more)


if __name__ == "__main__":
    sys.exit(main())
