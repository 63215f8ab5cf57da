"""Hands tensors to `cpu.cpp`: checks what a raw pointer cannot, and nothing else."""

import functools
from collections.abc import Callable

import torch

from kernels import cpu_build
from kernels.dense_rows import with_dense_rows

Call = Callable[..., None]


@functools.cache
def functions() -> cpu_build.Functions:
    return cpu_build.load(
        "linear",
        {
            "linear": "pip" + "pi" + "piiii",
            "linear_fp32": "pip" + "piiii",
            "norm_linear": "pipf" + "p" + "piiii",
            "norm_swiglu_add": "pipf" + "ppi" + "piiii",
        },
    )


def linear(
    call: Call,
    x_TD: torch.Tensor,
    weight_FD: torch.Tensor,
    residual_TF: torch.Tensor | None = None,
) -> torch.Tensor:
    x_TD, weight_FD, sizes = _fitting(x_TD, weight_FD)
    T, _, F, _ = sizes
    if residual_TF is not None:
        if residual_TF.shape != (T, F) or residual_TF.dtype != x_TD.dtype:
            raise ValueError(f"{x_TD.shape=} {x_TD.dtype=} do not fit {residual_TF.shape=}")
        residual_TF = with_dense_rows(residual_TF)
    y_TF = torch.empty(T, F, dtype=x_TD.dtype)
    call(
        x_TD.data_ptr(),
        x_TD.stride(0),
        weight_FD.data_ptr(),
        None if residual_TF is None else residual_TF.data_ptr(),
        0 if residual_TF is None else residual_TF.stride(0),
        y_TF.data_ptr(),
        *sizes,
    )
    return y_TF


def linear_fp32(call: Call, x_TD: torch.Tensor, weight_FD: torch.Tensor) -> torch.Tensor:
    x_TD, weight_FD, sizes = _fitting(x_TD, weight_FD)
    y_TF = torch.empty(sizes[0], sizes[2], dtype=torch.float32)
    call(x_TD.data_ptr(), x_TD.stride(0), weight_FD.data_ptr(), y_TF.data_ptr(), *sizes)
    return y_TF


def norm_linear(
    call: Call,
    residual_TD: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    weight_FD: torch.Tensor,
) -> torch.Tensor:
    residual_TD, weight_FD, sizes = _fitting(residual_TD, weight_FD)
    _check_norm(norm_D, residual_TD)
    y_TF = torch.empty(sizes[0], sizes[2], dtype=residual_TD.dtype)
    call(
        residual_TD.data_ptr(),
        residual_TD.stride(0),
        norm_D.data_ptr(),
        eps,
        weight_FD.data_ptr(),
        y_TF.data_ptr(),
        *sizes,
    )
    return y_TF


def norm_swiglu_add(
    call: Call,
    residual_TD: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    gate_up_FD: torch.Tensor,
    down_DF: torch.Tensor,
    *,
    adds_residual: bool,
) -> torch.Tensor:
    residual_TD, gate_up_FD, (T, D, twice_F, threads) = _fitting(residual_TD, gate_up_FD)
    _check_norm(norm_D, residual_TD)
    if down_DF.shape != (D, twice_F // 2) or twice_F % 2 or down_DF.dtype != residual_TD.dtype:
        raise ValueError(f"{residual_TD.shape=} {gate_up_FD.shape=} do not fit {down_DF.shape=}")
    down_DF = down_DF.contiguous()
    y_TD = torch.empty(T, D, dtype=residual_TD.dtype)
    call(
        residual_TD.data_ptr(),
        residual_TD.stride(0),
        norm_D.data_ptr(),
        eps,
        gate_up_FD.data_ptr(),
        down_DF.data_ptr(),
        int(adds_residual),
        y_TD.data_ptr(),
        T,
        D,
        twice_F // 2,
        threads,
    )
    return y_TD


def _fitting(
    x_TD: torch.Tensor, weight_FD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int, int, int]]:
    """Both operands as the kernels want them, and T, D, F and the number of threads."""
    T, D = x_TD.shape
    F = weight_FD.shape[0]
    if weight_FD.shape != (F, D) or weight_FD.dtype != x_TD.dtype:
        raise ValueError(f"{x_TD.shape=} {x_TD.dtype=} do not fit {weight_FD.shape=}")
    sizes = (T, D, F, torch.get_num_threads())
    return with_dense_rows(x_TD), weight_FD.contiguous(), sizes


def _check_norm(norm_D: torch.Tensor, x_TD: torch.Tensor) -> None:
    if norm_D.shape != x_TD.shape[1:] or norm_D.dtype != x_TD.dtype or not norm_D.is_contiguous():
        raise ValueError(f"{x_TD.shape=} {x_TD.dtype=} do not fit {norm_D.shape=}")
