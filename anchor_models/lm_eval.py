"""EleutherAI's lm-evaluation-harness on models that run AnchorAttention.

    python -m anchor_models.lm_eval run --model hf --tasks niah_single_1 --batch_size 1 \\
        --metadata '{"max_seq_lengths": [8192]}' \\
        --model_args pretrained=NAME,attn_implementation=anchor_attention

It is the harness's own command, `lm_eval`, in a process that knows the name "anchor_attention".
Three options are added, --theta, --tail and --when, see `options`; every other word goes to the
harness as it is. In --model_args the names bundled and smollm2 stand for those models' folders.
At the end a line on stderr says in how many calls of a layer AnchorAttention ran: with
attn_implementation=sdpa, the comparison, in none.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from anchor_models.backend import TAIL
from anchor_models.bundled import bundled_model_path
from anchor_models.smollm2 import smollm2_path
from anchor_ref.config import AnchorConfig

FOLDERS = {"bundled": bundled_model_path, "smollm2": smollm2_path}
NAMED = re.compile(
    r"(?<![^\s,=\"'{:])pretrained(=|\"\s*:\s*\")(" + "|".join(FOLDERS) + r")(?![^,\"])"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the harness.

    Args:
        arguments: after the command's name; None takes those of the process.

    Returns:
        0 when the harness came to its end, 2 with a line on stderr where it is not installed or
        an option of this module is wrong.

    Raises:
        SystemExit: the harness refused its arguments; or --help, which shows the harness's.
    """
    own, words = _parser().parse_known_args(sys.argv[1:] if arguments is None else arguments)
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        print("anchor_models.lm_eval needs lm-eval: pip install '.[lm-eval]'", file=sys.stderr)
        return 2
    from anchor_models.transformers import options, record

    before = sys.argv
    try:
        with options(**vars(own)), record() as stats:
            sys.argv = ["lm_eval", *map(with_folder, words)]  # the harness reads it again later
            cli_evaluate()
    except ValueError as error:
        # Of the harness and its tasks too: a traceback there tells more than a line.
        if not str(error).startswith(("theta must", "tail must", "when must")):
            raise
        print(f"anchor_models.lm_eval: error: {error}", file=sys.stderr)
        return 2
    finally:
        sys.argv = before
    sparse = sum(call.ran == "anchor" for call in stats.calls)
    sys.stdout.flush()  # into a pipe the harness's tables would come after it
    print(f"AnchorAttention ran in {sparse} of {len(stats.calls)} calls of it", file=sys.stderr)
    return 0


def with_folder(word: str) -> str:
    """A word of the command line; a model that has a name here is named by its folder."""
    return NAMED.sub(lambda found: f"pretrained{found[1]}{FOLDERS[found[2]]()}", word)


def _parser() -> argparse.ArgumentParser:
    # No --help and no abbreviations: those are the harness's.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--theta", type=float, default=AnchorConfig().theta)
    parser.add_argument("--tail", type=int, default=TAIL)
    parser.add_argument("--when", default="always")
    return parser


if __name__ == "__main__":
    sys.exit(main())
