"""What the Makefile calls: run notebooks, write the page of the tour."""
