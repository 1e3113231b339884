"""Run an experiment: measure, then write its page and figure.

python -m anchor_lab                   what there is to run
python -m anchor_lab NAME              measure into results/NAME, then the page
python -m anchor_lab NAME --table      only the page, from the numbers that are there
python -m anchor_lab NAME --quick      small sizes, to see that it runs
"""

import sys
from collections.abc import Sequence

from anchor_lab.experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 for bad input, with one line on stderr."""
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
