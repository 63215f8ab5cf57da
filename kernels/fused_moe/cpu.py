"""Hands tensors to `cpu.cpp`: checks what a raw pointer cannot, and nothing else."""

import functools
from collections.abc import Callable

import torch

from kernels import cpu_build
from kernels.dense_rows import with_dense_rows
from kernels.fused_moe.weights import MoeWeights, check_operands


@functools.cache
def functions() -> cpu_build.Functions:
    return cpu_build.load("fused_moe", {"fused_moe_add": "pipf" + "p" * 6 + "ip" + "i" * 7})


def fused_moe_add(
    call: Callable[..., None],
    residual_TD: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    weights: MoeWeights,
    *,
    adds_residual: bool,
) -> torch.Tensor:
    T, D = residual_TD.shape
    check_operands(residual_TD, norm_D, weights)
    residual_TD = with_dense_rows(residual_TD)
    norm_D = norm_D.contiguous()
    y_TD = torch.empty(T, D, dtype=residual_TD.dtype)
    call(
        residual_TD.data_ptr(),
        residual_TD.stride(0),
        norm_D.data_ptr(),
        eps,
        weights.router_JD.data_ptr(),
        weights.gate_up_JFD.data_ptr(),
        weights.down_JDF.data_ptr(),
        weights.shared_gate_up_FD.data_ptr(),
        weights.shared_down_DF.data_ptr(),
        weights.shared_gate_1D.data_ptr(),
        int(adds_residual),
        y_TD.data_ptr(),
        T,
        D,
        weights.router_JD.shape[0],
        weights.down_JDF.shape[2],
        weights.shared_down_DF.shape[1],
        weights.top_k,
        torch.get_num_threads(),
    )
    return y_TD
