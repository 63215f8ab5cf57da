"""The dtypes in which every case of kernels with products is tried."""

import torch

# A GPU tries all of bf16; the interpreter one case of each operation, in `test_bf16.py`.
DTYPES = (torch.float32, torch.float16) + (torch.bfloat16,) * torch.cuda.is_available()
