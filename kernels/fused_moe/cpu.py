"""Hands tensors to `cpu.cpp`: checks what a raw pointer cannot, and nothing else."""

import functools
from collections.abc import Callable

import torch

from kernels import cpu_build
from kernels.fused_moe.weights import MoeWeights


@functools.cache
def functions() -> cpu_build.Functions:
    return cpu_build.load("fused_moe", {"fused_moe": "pi" + "p" * 7 + "i" * 7})


def fused_moe(call: Callable[..., None], x_TD: torch.Tensor, weights: MoeWeights) -> torch.Tensor:
    T, D = x_TD.shape
    if weights.router_JD.shape[1] != D or weights.router_JD.dtype != x_TD.dtype:
        raise ValueError(f"{x_TD.shape=} {x_TD.dtype=} do not fit {weights.router_JD.shape=}")
    if x_TD.stride(1) != 1:
        x_TD = x_TD.contiguous()
    y_TD = torch.empty(T, D, dtype=x_TD.dtype)
    call(
        x_TD.data_ptr(),
        x_TD.stride(0),
        weights.router_JD.data_ptr(),
        weights.gate_up_JFD.data_ptr(),
        weights.down_JDF.data_ptr(),
        weights.shared_gate_up_FD.data_ptr(),
        weights.shared_down_DF.data_ptr(),
        weights.shared_gate_1D.data_ptr(),
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
