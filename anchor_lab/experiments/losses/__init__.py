"""What the loss of a whole model tells of every method, and which tokens it is of."""
