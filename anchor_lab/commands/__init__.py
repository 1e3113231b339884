"""Subcommands of `anchor-ref`, one file each; `anchor_lab.cli` names and calls them."""
