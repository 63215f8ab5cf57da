"""Linear layers on weights [F, D] as checkpoints store them, and the SwiGLU MLP made of them.

A row's bits depend on that row alone, whatever stands beside it. On a CPU torch's own routines keep
that promise only within limits and are slow for few rows, so there is one C++ kernel for all.
"""

import torch

from kernels.linear import cpu, reference

__all__ = ["linear", "swiglu_mlp"]


def linear(x_TD: torch.Tensor, weight_FD: torch.Tensor) -> torch.Tensor:
    """y_TF = x W^T, accumulated in fp32 and cast once."""
    call = cpu.functions().get(("linear", x_TD.dtype))
    if call is None:
        return reference.linear(x_TD, weight_FD)
    return cpu.linear(call, x_TD, weight_FD)


def swiglu_mlp(x_TD: torch.Tensor, gate_up_FD: torch.Tensor, down_DF: torch.Tensor) -> torch.Tensor:
    """y_TD = down(silu(gate x) * (up x)); the first half of `gate_up_FD` is the gate."""
    call = cpu.functions().get(("swiglu_mlp", x_TD.dtype))
    if call is None:
        return reference.swiglu_mlp(x_TD, gate_up_FD, down_DF)
    return cpu.swiglu_mlp(call, x_TD, gate_up_FD, down_DF)
