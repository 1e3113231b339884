"""What grows with the length of a prompt: sparsity, loss, time."""
