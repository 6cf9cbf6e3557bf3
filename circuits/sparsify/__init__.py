"""Sparse post-training: a dense model in, its sparse twin out (arXiv 2512.05865)."""
