"""Every figure of the course: a `data_*` function with its numbers, a `draw_*` function for them."""
