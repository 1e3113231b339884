"""Which methods still answer? Facts read in the prompt, and answers written after it."""
