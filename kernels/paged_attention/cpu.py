"""Hands tensors to `cpu.cpp`: checks what a raw pointer cannot, and nothing else."""

import functools
from collections.abc import Callable

import torch

from kernels import cpu_build
from kernels.dense_rows import with_dense_rows


@functools.cache
def functions() -> cpu_build.Functions:
    return cpu_build.load(
        "paged_attention",
        {
            "attention_decode": "pipip" + "pipp" + "iiiii" + "fi",
            "attention_prefill": "pipip" + "pippp" + "iiiii" + "fi",
        },
    )


def attention_decode(
    call: Callable[..., None],
    q_BHE: torch.Tensor,
    qg_BH2E: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    page_BM: torch.Tensor,
    length_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    _check(q_BHE, qg_BH2E, kv_P2GOE)
    B, H, E = q_BHE.shape
    if page_BM.shape[0] != B or length_B.shape != (B,):
        raise ValueError(f"{page_BM.shape=} and {length_B.shape=} do not fit {q_BHE.shape=}")
    q_BHE, qg_BH2E = with_dense_rows(q_BHE), with_dense_rows(qg_BH2E)
    page_BM = with_dense_rows(page_BM.int())
    length_B = length_B.int().contiguous()
    o_BHE = torch.empty(B, H * E, dtype=q_BHE.dtype)
    call(
        q_BHE.data_ptr(),
        q_BHE.stride(0),
        qg_BH2E.data_ptr(),
        qg_BH2E.stride(0),
        kv_P2GOE.data_ptr(),
        page_BM.data_ptr(),
        page_BM.stride(0),
        length_B.data_ptr(),
        o_BHE.data_ptr(),
        B,
        H,
        kv_P2GOE.shape[2],
        kv_P2GOE.shape[3],
        E,
        scale,
        torch.get_num_threads(),
    )
    return o_BHE


def attention_prefill(
    call: Callable[..., None],
    q_THE: torch.Tensor,
    qg_TH2E: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    page_SM: torch.Tensor,
    start_S: torch.Tensor,
    offset_S1: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    _check(q_THE, qg_TH2E, kv_P2GOE)
    T, H, E = q_THE.shape
    S = start_S.shape[0]
    if page_SM.shape[0] != S or offset_S1.shape != (S + 1,):
        raise ValueError(f"{page_SM.shape=}, {start_S.shape=} and {offset_S1.shape=} do not fit")
    q_THE, qg_TH2E = with_dense_rows(q_THE), with_dense_rows(qg_TH2E)
    page_SM = with_dense_rows(page_SM.int())
    start_S, offset_S1 = start_S.int().contiguous(), offset_S1.int().contiguous()
    o_THE = torch.empty(T, H * E, dtype=q_THE.dtype)
    call(
        q_THE.data_ptr(),
        q_THE.stride(0),
        qg_TH2E.data_ptr(),
        qg_TH2E.stride(0),
        kv_P2GOE.data_ptr(),
        page_SM.data_ptr(),
        page_SM.stride(0),
        start_S.data_ptr(),
        offset_S1.data_ptr(),
        o_THE.data_ptr(),
        S,
        H,
        kv_P2GOE.shape[2],
        kv_P2GOE.shape[3],
        E,
        scale,
        torch.get_num_threads(),
    )
    return o_THE


def _check(q_xHE: torch.Tensor, qg_xH2E: torch.Tensor, kv_P2GOE: torch.Tensor) -> None:
    rows, H, E = q_xHE.shape
    if qg_xH2E.shape != (rows, H, 2 * E):
        raise ValueError(f"{q_xHE.shape=} does not fit {qg_xH2E.shape=}")
    if kv_P2GOE.shape[1] != 2 or kv_P2GOE.shape[4] != E or H % kv_P2GOE.shape[2]:
        raise ValueError(f"{q_xHE.shape=} does not fit {kv_P2GOE.shape=}")
    if not kv_P2GOE.is_contiguous():
        raise ValueError("the pages must be contiguous")
    if qg_xH2E.dtype != q_xHE.dtype or kv_P2GOE.dtype != q_xHE.dtype:
        raise ValueError(f"{q_xHE.dtype=}, {qg_xH2E.dtype=} and {kv_P2GOE.dtype=} differ")
