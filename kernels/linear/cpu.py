"""Hands tensors to `cpu.cpp`: checks what a raw pointer cannot, and nothing else."""

import functools
from collections.abc import Callable

import torch

from kernels import cpu_build


@functools.cache
def functions() -> cpu_build.Functions:
    return cpu_build.load("linear", {"linear": "pippiiii", "swiglu_mlp": "pipppiiii"})


def linear(call: Callable[..., None], x_TD: torch.Tensor, weight_FD: torch.Tensor) -> torch.Tensor:
    T, D = x_TD.shape
    F = weight_FD.shape[0]
    if weight_FD.shape != (F, D) or weight_FD.dtype != x_TD.dtype:
        raise ValueError(f"{x_TD.shape=} {x_TD.dtype=} do not fit {weight_FD.shape=}")
    if x_TD.stride(1) != 1:
        x_TD = x_TD.contiguous()
    if not weight_FD.is_contiguous():
        weight_FD = weight_FD.contiguous()
    y_TF = torch.empty(T, F, dtype=x_TD.dtype)
    call(
        x_TD.data_ptr(),
        x_TD.stride(0),
        weight_FD.data_ptr(),
        y_TF.data_ptr(),
        T,
        D,
        F,
        torch.get_num_threads(),
    )
    return y_TF


def swiglu_mlp(
    call: Callable[..., None],
    x_TD: torch.Tensor,
    gate_up_FD: torch.Tensor,
    down_DF: torch.Tensor,
) -> torch.Tensor:
    T, D = x_TD.shape
    F = down_DF.shape[1]
    if gate_up_FD.shape != (2 * F, D) or down_DF.shape != (D, F):
        raise ValueError(f"{x_TD.shape=} do not fit {gate_up_FD.shape=} {down_DF.shape=}")
    if gate_up_FD.dtype != x_TD.dtype or down_DF.dtype != x_TD.dtype:
        raise ValueError(f"{x_TD.dtype=} is not that of the weights")
    if x_TD.stride(1) != 1:
        x_TD = x_TD.contiguous()
    gate_up_FD, down_DF = gate_up_FD.contiguous(), down_DF.contiguous()
    y_TD = torch.empty(T, D, dtype=x_TD.dtype)
    call(
        x_TD.data_ptr(),
        x_TD.stride(0),
        gate_up_FD.data_ptr(),
        down_DF.data_ptr(),
        y_TD.data_ptr(),
        T,
        D,
        F,
        torch.get_num_threads(),
    )
    return y_TD
