"""Does the bundled model attend? Retrieval, loss and heads of it, and its card."""
