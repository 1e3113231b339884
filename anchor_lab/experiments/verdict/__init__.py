"""Who is ahead where on a real language model, read from the results of other experiments."""
