"""Methods by the names that people know them by."""

from collections.abc import Iterable, Mapping

# Other words for a method, those of the README among them.
ALIASES = {
    "MInference": "VerticalSlash",
    "vertical-slash": "VerticalSlash",
    "SpargeAttn": "SpargeAttention",
    "PBS-Attn": "PBSAttention",
    "one list": "HeadAveragedTopK",
    "BLASST": "SkipSoftmax",
}


def resolve(asked: Iterable[str], there: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """What names mean, whatever their case and punctuation.

    Args:
        asked: keys of `there`, or of `ALIASES`.
        there: by name.

    Returns:
        (keys of `there`, each once and in the order asked; what is unknown).
    """
    known = {_plain(alias): name for alias, name in ALIASES.items() if name in there}
    known |= {_plain(name): name for name in there}
    found = {name: known.get(_plain(name)) for name in asked}
    unknown = [name for name, meant in found.items() if meant is None]
    return list(dict.fromkeys(filter(None, found.values()))), unknown


def also(there: Mapping[str, object]) -> str:
    """The aliases of what is there, in words."""
    return ", ".join(f"{alias} for {name}" for alias, name in ALIASES.items() if name in there)


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()
