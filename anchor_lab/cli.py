"""The command `anchor-ref`: one subcommand for each file of anchor_lab/commands."""

import argparse
import io
import sys
from collections.abc import Sequence
from importlib.metadata import version

import torch

from anchor_lab.commands import answers, compare, inspect

# The first line of each module's docstring is its help, the rest is shown below the options.
COMMANDS = {"answers": answers, "compare": compare, "inspect": inspect}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: arguments after the command's name; None takes those of the process.

    Returns:
        The exit status: 0, or 2 after bad input or a lack of memory, with one line on stderr, or
        130 after Ctrl-C. Without a subcommand the help is printed.

    Raises:
        SystemExit: from argparse, after --help, --version and arguments that it cannot read.
    """
    print_anything()
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return COMMANDS[options.command].run(options)
    except KeyboardInterrupt:
        return _refuse("interrupted", 130)
    except (ValueError, OSError, ImportError) as error:
        # transformers writes paragraphs; a line is what a shell shows well.
        return _refuse(" ".join(str(error).split()) or type(error).__name__)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _refuse(
            "out of memory: take a shorter text, fewer layers or heads, a smaller model or "
            "another device"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="anchor-ref",
        description="AnchorAttention and its peers on the activations of any transformers model.",
    )
    parser.add_argument(
        "--version", action="version", version=f"anchor-ref {version('anchor-attention')}"
    )
    subcommands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        about, _, more = command.__doc__.partition("\n")
        part = subcommands.add_parser(
            name,
            help=about,
            description=about,
            epilog=more.strip() or None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(part)
    return parser


def print_anything() -> None:
    """From now on a character that the output cannot show, as θ in a pipe of Windows, is a `?`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out; on the CPU torch says so in words alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate" in str(
        error
    )


def _refuse(message: str, status: int = 2) -> int:
    print(f"anchor-ref: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
