"""A public benchmark: RULER's tasks as lm-evaluation-harness asks and scores them."""
