"""How the bundled model is made: tokenizer, tasks, training, export."""
