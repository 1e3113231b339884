"""Every figure of the course: `data_*` makes its numbers, `draw_*` the picture."""
