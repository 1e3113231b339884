"""Where maxima lie, what each approximation costs, what can be promised."""
