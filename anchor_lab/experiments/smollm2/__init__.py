"""What a real language model says: sparsity by head, time by length, and answers."""
