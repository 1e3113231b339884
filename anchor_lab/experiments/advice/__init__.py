"""What a model's owner should do, read from the results of other experiments."""
