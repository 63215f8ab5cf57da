"""Elementwise functions for the references, with the same bits wherever an element stands.

torch's own sigmoid, silu, softplus and rsqrt compute the last elements of a tensor, those that do
not fill a vector register, by other code with other last bits. So a row alone would differ from the
same row in a crowd. exp, log1p, sqrt and division do not do that on contiguous tensors.
"""

import torch


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1.0 / (1.0 + torch.exp(-x.contiguous()))


def silu(x: torch.Tensor) -> torch.Tensor:
    x = x.contiguous()
    return x / (1.0 + torch.exp(-x))


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + e^x); above 20 the 1 is lost in rounding anyway."""
    x = x.contiguous()
    return torch.where(x > 20.0, x, torch.log1p(torch.exp(x.clamp(max=20.0))))


def rsqrt(x: torch.Tensor) -> torch.Tensor:
    return 1.0 / x.contiguous().sqrt()
