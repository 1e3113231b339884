"""What the subcommands share: which model, which text, on what, and what must be installed."""

import argparse
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from anchor_models.models import BUNDLED
from anchor_models.texts import DOCUMENT, RETRIEVAL

DTYPES = ("float32", "bfloat16", "float16")
MADE_UP = (DOCUMENT, RETRIEVAL)


def add_input(
    parser: argparse.ArgumentParser, text: str, length: str, dtypes: Sequence[str] = DTYPES
) -> None:
    """The options that `load_input` reads, and --layers.

    Args:
        parser: of the subcommand.
        text: which made-up text is the default.
        length: help of --length.
        dtypes: of the weights; the first is the default.
    """
    add = parser.add_argument
    add(
        "--model",
        default=BUNDLED,
        help="a folder, smollm2, or a name on the hub (default: bundled)",
    )
    add(
        "--dtype", choices=dtypes, default=dtypes[0], help=f"of the weights (default: {dtypes[0]})"
    )
    add("--device", default="cpu", help="as PyTorch names it (default: cpu)")
    made_up = " or ".join(name + " (default)" * (name == text) for name in MADE_UP)
    add(
        "--text",
        default=text,
        metavar="FILE",
        help=f"a text file, - for standard input, or made up: {made_up}",
    )
    add("--length", type=int, help=length)
    add("--seed", type=int, default=0, help="of what is made up (default: 0)")
    add("--layers", nargs="+", type=int, metavar="L", help="default: all that compute attention")


def load_input(options: argparse.Namespace) -> tuple:
    """Model, tokenizer and text, by the options of `add_input`.

    Raises:
        ValueError, OSError: see `load_pretrained` and `read_text`; or the text asked for is longer
            than the model's positions.
    """
    from anchor_lab.sources import check_length
    from anchor_models.models import load_pretrained
    from anchor_models.texts import read_text

    if options.text not in (*MADE_UP, "-"):  # before a model is loaded
        check_file("text", options.text, f"{', '.join(MADE_UP)}, - or a text file")
    model, tokenizer = load_pretrained(options.model, dtype_of(options.dtype), options.device)
    check_length(model, options.length or 1)  # before that much is made up
    text = read_text(options.text, tokenizer, options.length, options.seed)
    return model, tokenizer, text


def dtype_of(name: str) -> torch.dtype:
    """What --dtype names."""
    return getattr(torch, name)


def check_file(option: str, path: str | Path, allowed: str) -> None:
    """Refuse, with an OSError that says what is allowed, what is no file; a pipe will do."""
    found = Path(path).expanduser()
    if not found.exists() or found.is_dir():
        wrong = "a folder" if found.is_dir() else "no such file"
        raise FileNotFoundError(f"{option} must be {allowed}, got {str(path)!r}, {wrong}")


def refuse_unused(unused: set[str], beside: str) -> None:
    """Refuse, with a ValueError, options that were given and would not be used.

    Args:
        unused: their names, without dashes.
        beside: the option that makes no use of them, with its value.
    """
    if unused:
        names = ", ".join(f"--{name}" for name in sorted(unused))
        raise ValueError(f"{beside} makes no use of {names}: leave out the one or the other")


def check_folder(option: str, path: Path) -> None:
    """Refuse, with an OSError, a folder to write to that is a file."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{option} must be a folder, got {str(path)!r}, a file")


def need(command: str, packages: Iterable[str]) -> None:
    """Refuse, with an ImportError, to begin what a missing package would stop later."""
    for package in packages:
        if find_spec(package) is None:
            raise ImportError(f"{command} needs {package}: pip install '.[models,lab,notebooks]'")
