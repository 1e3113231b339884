"""What methods there are, and each of them in a sentence, a claim and a picture."""

import sys
from collections.abc import Sequence

from anchor_lab.methods import METHODS, TriangleMix, picture
from anchor_lab.methods.names import also, resolve

KINDS = METHODS | {TriangleMix.__name__: TriangleMix}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 for a name that is none, with a line on stderr."""
    names = sys.argv[1:] if arguments is None else arguments
    if not names:
        width = max(map(len, KINDS))
        print(*(f"{n:{width}}  {picture.sentence(x)}" for n, x in KINDS.items()), sep="\n")
        return 0
    found, unknown = resolve(names, KINDS)
    if unknown:
        told = f"{', '.join(KINDS)} (also {also(KINDS)})"
        print(f"name must be one of {told}, got {unknown[0]!r}", file=sys.stderr)
        return 2
    print(*(picture.describe(KINDS[name]) for name in found), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
