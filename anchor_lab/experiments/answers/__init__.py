"""Which answers are found: facts hidden in a long prompt, asked for, written by the model."""
