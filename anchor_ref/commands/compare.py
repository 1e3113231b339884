"""Run any methods on any model's activations and text, and compare what they keep and cost."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""


def run(options: argparse.Namespace) -> int:
    """Not reached from a shell yet."""
    return 0
