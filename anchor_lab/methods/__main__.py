"""What methods there are, and each of them in a sentence, a claim and a picture."""

import sys
from collections.abc import Sequence

from anchor_lab.methods import METHODS, picture


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 for a name that is none, with a line on stderr."""
    names = sys.argv[1:] if arguments is None else arguments
    if not names:
        width = max(map(len, METHODS))
        print(*(f"{n:{width}}  {picture.sentence(x)}" for n, x in METHODS.items()), sep="\n")
        return 0
    if unknown := [name for name in names if name not in METHODS]:
        print(f"name must be one of {', '.join(METHODS)}, got {unknown[0]!r}", file=sys.stderr)
        return 2
    print(*(picture.describe(METHODS[name]) for name in names), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
