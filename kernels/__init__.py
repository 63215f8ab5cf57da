"""Tensors in, tensors out: one folder per operation, each with its mathematics and a plain-torch reference.

Imports nothing from `engine` or `server`. This file stays free of side effects and imports:
transformers looks for a distribution that is also named `kernels`, and must find nothing heavy here.
"""
