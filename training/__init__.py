"""How the bundled model is made: tokenizer, corpus, tasks, training, export, evaluation."""
