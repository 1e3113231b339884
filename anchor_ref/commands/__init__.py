"""Subcommands of `anchor-ref`, one file each; `anchor_ref.cli` names and calls them."""
