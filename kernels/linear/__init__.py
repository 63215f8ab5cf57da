"""Linear layers on weights [F, D] as checkpoints store them, with what stands around them.

The residual stream of a decoder is normed before a projection and added to after one; doing both
inside the projection saves a launch and a trip through memory each:

    norm_linear       y = W norm(residual)                       norm: zero-centred RMSNorm, cast
    linear_add        residual + W x                             summed in fp32, cast once
    norm_swiglu_add   residual + down(silu(gate x) * (up x))     x = norm(residual)

A row's bits depend on that row alone, whatever stands beside it. On a CPU torch's own routines keep
that promise only within limits and are slow for few rows, so there is one C++ kernel for all. On a
GPU the way a sum is cut depends on which of four ranges the number of rows is in; see `gpu`.
"""

from functools import partial

import torch

from kernels.backend import uses_triton
from kernels.linear import cpu, reference

__all__ = ["linear", "linear_add", "linear_fp32", "norm_linear", "norm_swiglu_add"]


def linear(x_TD: torch.Tensor, weight_FD: torch.Tensor) -> torch.Tensor:
    """y_TF = x W^T, accumulated in fp32 and cast once."""
    if uses_triton(x_TD):
        from kernels.linear import gpu

        return gpu.linear(x_TD, weight_FD)
    call = cpu.functions().get(("linear", x_TD.dtype))
    if call is None:
        return reference.linear(x_TD, weight_FD)
    return cpu.linear(call, x_TD, weight_FD)


def linear_fp32(x_TD: torch.Tensor, weight_FD: torch.Tensor) -> torch.Tensor:
    """y_TF = x W^T in fp32 whatever the operands are: for logits."""
    if uses_triton(x_TD):
        from kernels.linear import gpu

        return gpu.linear_fp32(x_TD, weight_FD)
    call = cpu.functions().get(("linear_fp32", x_TD.dtype))
    if call is None:
        return reference.linear_fp32(x_TD, weight_FD)
    return cpu.linear_fp32(call, x_TD, weight_FD)


def norm_linear(
    residual_TD: torch.Tensor, norm_D: torch.Tensor, eps: float, weight_FD: torch.Tensor
) -> torch.Tensor:
    """y_TF = norm(residual) W^T; the normed rows are rounded to their dtype first."""
    if uses_triton(residual_TD):
        from kernels.linear import gpu

        return gpu.norm_linear(residual_TD, norm_D, eps, weight_FD)
    call = cpu.functions().get(("norm_linear", residual_TD.dtype))
    if call is None:
        return reference.norm_linear(residual_TD, norm_D, eps, weight_FD)
    return cpu.norm_linear(call, residual_TD, norm_D, eps, weight_FD)


def linear_add(
    x_TF: torch.Tensor, weight_DF: torch.Tensor, residual_TD: torch.Tensor
) -> torch.Tensor:
    """residual + x W^T as a new tensor."""
    if uses_triton(x_TF):
        from kernels.linear import gpu

        return gpu.linear_add(x_TF, weight_DF, residual_TD)
    call = cpu.functions().get(("linear", x_TF.dtype))
    if call is None:
        return reference.linear_add(x_TF, weight_DF, residual_TD)
    return cpu.linear(call, x_TF, weight_DF, residual_TD)


def norm_swiglu_add(
    residual_TD: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    gate_up_FD: torch.Tensor,
    down_DF: torch.Tensor,
    *,
    adds_residual: bool = True,
) -> torch.Tensor:
    """The MLP of a dense layer; the first half of `gate_up_FD` is the gate.

    Without `adds_residual` only what the layer adds: where several ranks hold a share of F each,
    one of them brings the residual into their sum.
    """
    if uses_triton(residual_TD):
        from kernels.linear import gpu

        run = gpu.norm_swiglu_add
    else:
        call = cpu.functions().get(("norm_swiglu_add", residual_TD.dtype))
        run = reference.norm_swiglu_add if call is None else partial(cpu.norm_swiglu_add, call)
    return run(residual_TD, norm_D, eps, gate_up_FD, down_DF, adds_residual=adds_residual)
