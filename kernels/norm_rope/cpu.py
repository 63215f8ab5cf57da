"""Hands tensors to `cpu.cpp`: checks what a raw pointer cannot, and nothing else."""

import functools
from collections.abc import Callable

import torch

from kernels import cpu_build
from kernels.dense_rows import with_dense_rows


@functools.cache
def functions() -> cpu_build.Functions:
    return cpu_build.load(
        "norm_rope",
        {
            "rms_norm": "pippiifi",
            "add_rms_norm": "pipipppiifi",
            "qk_norm_rope_write": "pipipippppppp" + "iiiiii" + "fi",
        },
    )


def rms_norm(
    call: Callable[..., None], x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> torch.Tensor:
    T, D = x_TD.shape
    _check_weight(weight_D, D, x_TD.dtype)
    x_TD = with_dense_rows(x_TD)
    y_TD = torch.empty(T, D, dtype=x_TD.dtype)
    call(
        x_TD.data_ptr(),
        x_TD.stride(0),
        weight_D.data_ptr(),
        y_TD.data_ptr(),
        T,
        D,
        eps,
        torch.get_num_threads(),
    )
    return y_TD


def add_rms_norm(
    call: Callable[..., None],
    x_TD: torch.Tensor,
    residual_TD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    T, D = x_TD.shape
    _check_weight(weight_D, D, x_TD.dtype)
    if residual_TD.shape != x_TD.shape or residual_TD.dtype != x_TD.dtype:
        raise ValueError(f"{residual_TD.shape=} {residual_TD.dtype=} is not like {x_TD.shape=}")
    x_TD, residual_TD = with_dense_rows(x_TD), with_dense_rows(residual_TD)
    y_TD = torch.empty(T, D, dtype=x_TD.dtype)
    sum_TD = torch.empty(T, D, dtype=x_TD.dtype)
    call(
        x_TD.data_ptr(),
        x_TD.stride(0),
        residual_TD.data_ptr(),
        residual_TD.stride(0),
        weight_D.data_ptr(),
        y_TD.data_ptr(),
        sum_TD.data_ptr(),
        T,
        D,
        eps,
        torch.get_num_threads(),
    )
    return y_TD, sum_TD


def qk_norm_rope_write(
    call: Callable[..., None],
    qg_TH2E: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    q_weight_E: torch.Tensor,
    k_weight_E: torch.Tensor,
    cos_TR: torch.Tensor,
    sin_TR: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    location_T: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    T, H, _ = qg_TH2E.shape
    _, G, E = k_TGE.shape
    R = cos_TR.shape[1]
    dtype = qg_TH2E.dtype
    if qg_TH2E.shape[2] != 2 * E or v_TGE.shape != k_TGE.shape or k_TGE.shape[0] != T:
        raise ValueError(f"{qg_TH2E.shape=}, {k_TGE.shape=} and {v_TGE.shape=} do not fit")
    if kv_P2GOE.shape[1:3] != (2, G) or kv_P2GOE.shape[4] != E or not kv_P2GOE.is_contiguous():
        raise ValueError(f"{kv_P2GOE.shape=} does not fit {k_TGE.shape=} or is not contiguous")
    if {k_TGE.dtype, v_TGE.dtype, kv_P2GOE.dtype} != {dtype}:
        raise ValueError(f"{k_TGE.dtype=}, {v_TGE.dtype=}, {kv_P2GOE.dtype=} are not all {dtype}")
    if cos_TR.shape != (T, R) or sin_TR.shape != (T, R) or R % 2 or R > E:
        raise ValueError(f"{cos_TR.shape=} and {sin_TR.shape=} do not fit {k_TGE.shape=}")
    if location_T.shape != (T,):
        raise ValueError(f"{location_T.shape=} is not one location for each of {T} rows")
    _check_weight(q_weight_E, E, dtype)
    _check_weight(k_weight_E, E, dtype)
    qg_TH2E, k_TGE, v_TGE = (with_dense_rows(x) for x in (qg_TH2E, k_TGE, v_TGE))
    cos_TR, sin_TR = cos_TR.float().contiguous(), sin_TR.float().contiguous()
    location_T = location_T.long().contiguous()
    q_THE = torch.empty(T, H, E, dtype=dtype)
    call(
        qg_TH2E.data_ptr(),
        qg_TH2E.stride(0),
        k_TGE.data_ptr(),
        k_TGE.stride(0),
        v_TGE.data_ptr(),
        v_TGE.stride(0),
        q_weight_E.data_ptr(),
        k_weight_E.data_ptr(),
        cos_TR.data_ptr(),
        sin_TR.data_ptr(),
        kv_P2GOE.data_ptr(),
        location_T.data_ptr(),
        q_THE.data_ptr(),
        T,
        H,
        G,
        E,
        R,
        kv_P2GOE.shape[3],
        eps,
        torch.get_num_threads(),
    )
    return q_THE


def _check_weight(weight: torch.Tensor, size: int, dtype: torch.dtype) -> None:
    if weight.shape != (size,) or weight.dtype != dtype or not weight.is_contiguous():
        raise ValueError(f"{weight.shape=} {weight.dtype=} is not a norm weight of {size} {dtype}")
