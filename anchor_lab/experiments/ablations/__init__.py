"""One choice of the method replaced at a time."""
