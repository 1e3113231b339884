"""One interactive page of the bundled heads, to send around: `python -m tools.page`."""
