"""Our kernels and those of others in one run, also at equal recall and at equal loss."""
