# pyright: basic, reportArgumentType=false
"""Gated DeltaNet in Triton: checks, workspaces and launches; the kernels are next door.

One launch for a decode step, four for a prefill. The host never learns how long slices are or how
many pieces of the 64-token grid they have: it launches as many programs as there might be pieces,
and those without one return at once. A prefill needs a workspace of (2 H K + N V + 2 * 64 N)
activations and 4 N + 4 bytes per row; it is allocated here and dropped on return.

Snapshots named in int64 or not at all are the same compiled kernel; int32 rows would be another.
"""

import torch
import triton

from kernels.dense_rows import with_dense_rows
from kernels.gated_delta.gpu_decode import decode_kernel
from kernels.gated_delta.gpu_prefill import (
    convolve_kernel,
    norm_kernel,
    recur_kernel,
    transform_kernel,
)
from kernels.gated_delta.weights import DeltaNetWeights, check_operands
from kernels.launch import Cost, launch

CHUNK_TOKENS = 64
NORM_HEADS = 16


def gated_delta_decode(
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
    _check(state_PNKV)
    check_operands(mixed_BC, z_BNV, b_BN, a_BN, weights, conv_PCX, state_PNKV)
    if slot_B.shape != mixed_BC.shape[:1]:
        raise ValueError(f"{slot_B.shape=} is not one slot for each row of {mixed_BC.shape=}")
    mixed_BC, z_BNV, b_BN, a_BN = (with_dense_rows(x) for x in (mixed_BC, z_BNV, b_BN, a_BN))
    B, N, V = z_BNV.shape
    H, K, C = weights.num_key_heads, state_PNKV.shape[2], mixed_BC.shape[1]
    W = weights.conv_CW.shape[1]
    o_BNV = torch.empty(B, N * V, dtype=z_BNV.dtype, device=z_BNV.device)

    def cost() -> Cost:
        size = mixed_BC.element_size()
        activations = B * (C + 2 * N * V + 2 * N) * size + B * slot_B.element_size()
        pools = 2 * B * (N * K * V * 4 + C * (W - 1) * size)
        shared = C * W * size + (2 * N + V) * 4
        moved = activations + pools + shared
        return Cost(moved, moved, flops=B * (N * K * V * 7 + C * 2 * W + N * V * 8))

    block_v = min(V, 64)
    launch(
        decode_kernel,
        (B, H),
        mixed_BC,
        z_BNV,
        b_BN,
        a_BN,
        weights.conv_CW,
        weights.A_log_N,
        weights.dt_bias_N,
        weights.norm_V,
        conv_PCX,
        state_PNKV,
        slot_B,
        o_BNV,
        cost=cost,
        num_warps=8 if K * block_v >= 8192 else 4,
        MIXED_ROW=mixed_BC.stride(0),
        Z_ROW=z_BNV.stride(0),
        B_ROW=b_BN.stride(0),
        A_ROW=a_BN.stride(0),
        H=H,
        N=N,
        K=K,
        V=V,
        W=W,
        QUERY_SCALE=K**-0.5,
        EPS=weights.eps,
        BLOCK_V=block_v,
    )
    return o_BNV


def gated_delta_prefill(
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
    _check(state_PNKV)
    check_operands(mixed_TC, z_TNV, b_TN, a_TN, weights, conv_PCX, state_PNKV)
    S = slot_S.shape[0]
    if start_S.shape != (S,) or offset_S1.shape != (S + 1,):
        raise ValueError(f"{slot_S.shape=}, {start_S.shape=} and {offset_S1.shape=} do not fit")
    if emit_row_Z is None or emit_slot_Z is None:
        if emit_row_Z is not emit_slot_Z:
            raise ValueError("snapshots need rows and slots")
        emit_row_Z = emit_slot_Z = slot_S[:0]
    Z = emit_row_Z.shape[0]
    if emit_row_Z.shape != (Z,) or emit_slot_Z.shape != (Z,):
        raise ValueError(f"{emit_row_Z.shape=} and {emit_slot_Z.shape=} do not fit")
    mixed_TC, z_TNV, b_TN, a_TN = (with_dense_rows(x) for x in (mixed_TC, z_TNV, b_TN, a_TN))
    T, N, V = z_TNV.shape
    H, K, C = weights.num_key_heads, state_PNKV.shape[2], mixed_TC.shape[1]
    W = weights.conv_CW.shape[1]
    num_pieces = min(T, T // CHUNK_TOKENS + 2 * S)
    dtype, device = z_TNV.dtype, z_TNV.device
    size = mixed_TC.element_size()
    precision = "bf16x3" if dtype == torch.bfloat16 else "tf32x3"
    block_v = min(V, 32)
    tiles = V // block_v

    qk_HTK = torch.empty(2 * H, T, K, dtype=dtype, device=device)
    v_NTV = torch.empty(N, T, V, dtype=dtype, device=device)
    M_NTC, P_NTC = (torch.empty(N, T, CHUNK_TOKENS, dtype=dtype, device=device) for _ in range(2))
    G_NT = torch.empty(N, T, dtype=torch.float32, device=device)
    emit_T = torch.empty(T, dtype=torch.int32, device=device)
    o_TNV = torch.empty(T, N * V, dtype=dtype, device=device)
    columns_bytes, state_bytes = C * (W - 1) * size, N * K * V * 4
    bounds_bytes = (2 * S + 1) * 4

    def convolve_cost() -> Cost:
        moved = 2 * T * C * size + C * W * size + S * columns_bytes + bounds_bytes
        moved += Z * 2 * emit_row_Z.element_size() + num_pieces * 4
        return Cost(moved, moved, flops=T * C * (2 * W + 4))

    launch(
        convolve_kernel,
        (num_pieces, 2 * H + N),
        mixed_TC,
        weights.conv_CW,
        conv_PCX,
        slot_S,
        start_S,
        offset_S1,
        emit_row_Z,
        emit_slot_Z,
        qk_HTK,
        v_NTV,
        emit_T,
        S,
        Z,
        T,
        cost=convolve_cost,
        num_warps=4,
        MIXED_ROW=mixed_TC.stride(0),
        H=H,
        N=N,
        K=K,
        V=V,
        W=W,
        QUERY_SCALE=K**-0.5,
    )

    def transform_cost() -> Cost:
        scalars = T * 2 * N * size + 2 * N * 4 + T * N * 4 + bounds_bytes
        written = 2 * T * N * CHUNK_TOKENS * size
        necessary = T * 2 * H * K * size + scalars + written
        moved = T * 2 * N * K * size + scalars + written
        flops = T * N * CHUNK_TOKENS * (3 * K + 3 * 11 * CHUNK_TOKENS // 4)
        return Cost(necessary, moved, flops)

    launch(
        transform_kernel,
        (num_pieces, N),
        qk_HTK,
        b_TN,
        a_TN,
        weights.A_log_N,
        weights.dt_bias_N,
        start_S,
        offset_S1,
        M_NTC,
        P_NTC,
        G_NT,
        S,
        T,
        cost=transform_cost,
        num_warps=2,
        num_stages=1,
        B_ROW=b_TN.stride(0),
        A_ROW=a_TN.stride(0),
        H=H,
        N=N,
        K=K,
        PRECISION=precision,
    )

    def recur_cost() -> Cost:
        once = T * N * (2 * V * size + 4) + S * 2 * (state_bytes + columns_bytes) + bounds_bytes
        once += Z * (state_bytes + columns_bytes)
        triangles = 2 * T * N * CHUNK_TOKENS * size
        necessary = once + triangles + T * 2 * H * K * size
        moved = once + tiles * (triangles + T * 2 * N * K * size)
        return Cost(necessary, moved, flops=T * N * V * (6 * K + 4 * CHUNK_TOKENS))

    launch(
        recur_kernel,
        (S, N, tiles),
        qk_HTK,
        v_NTV,
        M_NTC,
        P_NTC,
        G_NT,
        emit_T,
        mixed_TC,
        slot_S,
        start_S,
        offset_S1,
        conv_PCX,
        state_PNKV,
        o_TNV,
        T,
        cost=recur_cost,
        num_warps=8 if K * block_v >= 4096 else 4,
        MIXED_ROW=mixed_TC.stride(0),
        H=H,
        N=N,
        K=K,
        V=V,
        W=W,
        BLOCK_V=block_v,
        BLOCK_C=triton.next_power_of_2(triton.cdiv(C, N * tiles)),
        PRECISION=precision,
    )

    def norm_cost() -> Cost:
        moved = 3 * T * N * V * size + V * 4
        return Cost(moved, moved, flops=T * N * V * 10)

    launch(
        norm_kernel,
        (triton.cdiv(T * N, NORM_HEADS),),
        o_TNV,
        z_TNV,
        weights.norm_V,
        T * N,
        cost=norm_cost,
        num_warps=4,
        Z_ROW=z_TNV.stride(0),
        N=N,
        V=V,
        HEADS=NORM_HEADS,
        EPS=weights.eps,
    )
    return o_TNV


def _check(state_PNKV: torch.Tensor) -> None:
    K, V = state_PNKV.shape[2:]
    if any(size < 16 or size & (size - 1) for size in (K, V)):
        raise ValueError(f"{K=} and {V=} are not powers of two from 16 up")
