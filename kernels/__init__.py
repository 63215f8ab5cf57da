"""Tensors in, tensors out: one folder per operation, each with a plain-torch reference.

Imports nothing from `engine` or `server`. This file stays free of side effects and imports:
transformers looks for a distribution also named `kernels`, and must find nothing heavy here.
"""
