"""What asking single rows costs on a GPU, and what it saves at equal time."""
