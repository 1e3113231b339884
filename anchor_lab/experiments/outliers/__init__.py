"""Outlier rows, an extension beyond the paper: what they save of a real model's loss."""
