"""Import this before anything that may import triton: transformers does, by way of torch.

Whether Triton compiles or interprets is settled once per process, at its import.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
