"""What the notebooks show: each figure with its question, its small print and its words.

A notebook calls `show_*` with what it computed; how a figure looks, and what it says to somebody
who cannot see it, stands here. The words are made from the numbers that are drawn, so that they
stay true when a reader changes something.
"""
