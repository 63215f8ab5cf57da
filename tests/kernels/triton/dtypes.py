"""The dtypes in which kernels with products are tried."""

import torch

# The interpreter's `tl.dot` takes the bits of bf16 for integers, so only a GPU runs it.
DTYPES = (torch.float32, torch.float16) + (torch.bfloat16,) * torch.cuda.is_available()
