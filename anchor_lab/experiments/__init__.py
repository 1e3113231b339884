"""One folder a question: what is measured, drawn and written about it."""
