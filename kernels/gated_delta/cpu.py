"""Hands tensors to `cpu.cpp`, checked, and nothing else."""

import functools
from collections.abc import Callable

import torch

from kernels import cpu_build
from kernels.dense_rows import with_dense_rows
from kernels.gated_delta.reference import snapshots
from kernels.gated_delta.weights import DeltaNetWeights, check_operands

_COMMON = "pi" * 4 + "p" * 4 + "ppp" + "p" + "i" * 6 + "f"


@functools.cache
def functions() -> cpu_build.Functions:
    return cpu_build.load(
        "gated_delta",
        {"gated_delta_decode": _COMMON + "i", "gated_delta_prefill": _COMMON + "ppippii"},
    )


def gated_delta_decode(
    call: Callable[..., None],
    mixed_BC: torch.Tensor,
    z_BNV: torch.Tensor,
    b_BN: torch.Tensor,
    a_BN: torch.Tensor,
    weights: DeltaNetWeights,
    *,
    conv_PCX: torch.Tensor,
    state_PNKV: torch.Tensor,
    slot_B: torch.Tensor,
) -> torch.Tensor:
    check_operands(mixed_BC, z_BNV, b_BN, a_BN, weights, conv_PCX, state_PNKV)
    if slot_B.shape != mixed_BC.shape[:1]:
        raise ValueError(f"{slot_B.shape=} is not one slot for each row of {mixed_BC.shape=}")
    slot_B = slot_B.long().contiguous()
    z_BNV, mixed_BC, b_BN, a_BN = (with_dense_rows(x) for x in (z_BNV, mixed_BC, b_BN, a_BN))
    B, N, V = z_BNV.shape
    o_BNV = torch.empty(B, N * V, dtype=z_BNV.dtype)
    call(
        mixed_BC.data_ptr(),
        mixed_BC.stride(0),
        z_BNV.data_ptr(),
        z_BNV.stride(0),
        b_BN.data_ptr(),
        b_BN.stride(0),
        a_BN.data_ptr(),
        a_BN.stride(0),
        weights.conv_CW.data_ptr(),
        weights.A_log_N.data_ptr(),
        weights.dt_bias_N.data_ptr(),
        weights.norm_V.data_ptr(),
        conv_PCX.data_ptr(),
        state_PNKV.data_ptr(),
        slot_B.data_ptr(),
        o_BNV.data_ptr(),
        B,
        weights.num_key_heads,
        N,
        state_PNKV.shape[2],
        V,
        weights.conv_CW.shape[1],
        weights.eps,
        torch.get_num_threads(),
    )
    return o_BNV


def gated_delta_prefill(
    call: Callable[..., None],
    mixed_TC: torch.Tensor,
    z_TNV: torch.Tensor,
    b_TN: torch.Tensor,
    a_TN: torch.Tensor,
    weights: DeltaNetWeights,
    *,
    conv_PCX: torch.Tensor,
    state_PNKV: torch.Tensor,
    slot_S: torch.Tensor,
    start_S: torch.Tensor,
    offset_S1: torch.Tensor,
    emit_row_Z: torch.Tensor | None = None,
    emit_slot_Z: torch.Tensor | None = None,
) -> torch.Tensor:
    check_operands(mixed_TC, z_TNV, b_TN, a_TN, weights, conv_PCX, state_PNKV)
    S = slot_S.shape[0]
    if start_S.shape != (S,) or offset_S1.shape != (S + 1,):
        raise ValueError(f"{slot_S.shape=}, {start_S.shape=} and {offset_S1.shape=} do not fit")
    emits = snapshots(slot_S, start_S, offset_S1, emit_row_Z, emit_slot_Z)
    emit_row_Z = torch.tensor(list(emits), dtype=torch.int64)
    emit_slot_Z = torch.tensor(list(emits.values()), dtype=torch.int64)
    slot_S = slot_S.long().contiguous()
    start_S, offset_S1 = start_S.int().contiguous(), offset_S1.int().contiguous()
    z_TNV, mixed_TC, b_TN, a_TN = (with_dense_rows(x) for x in (z_TNV, mixed_TC, b_TN, a_TN))
    T, N, V = z_TNV.shape
    o_TNV = torch.empty(T, N * V, dtype=z_TNV.dtype)
    call(
        mixed_TC.data_ptr(),
        mixed_TC.stride(0),
        z_TNV.data_ptr(),
        z_TNV.stride(0),
        b_TN.data_ptr(),
        b_TN.stride(0),
        a_TN.data_ptr(),
        a_TN.stride(0),
        weights.conv_CW.data_ptr(),
        weights.A_log_N.data_ptr(),
        weights.dt_bias_N.data_ptr(),
        weights.norm_V.data_ptr(),
        conv_PCX.data_ptr(),
        state_PNKV.data_ptr(),
        slot_S.data_ptr(),
        o_TNV.data_ptr(),
        T,
        weights.num_key_heads,
        N,
        state_PNKV.shape[2],
        V,
        weights.conv_CW.shape[1],
        weights.eps,
        start_S.data_ptr(),
        offset_S1.data_ptr(),
        S,
        emit_row_Z.data_ptr(),
        emit_slot_Z.data_ptr(),
        len(emits),
        torch.get_num_threads(),
    )
    return o_TNV
