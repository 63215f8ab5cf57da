# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""The experts of a handful of rows: every row goes through its own experts, by plain products.

The shared expert is one more expert of each row, in the last slot. So few rows rarely meet in an
expert, and nothing has to be sorted: two launches after the router's.
"""

import torch
import triton
import triton.language as tl

from kernels.fused_moe.gpu_route import Routes
from kernels.fused_moe.weights import MoeWeights
from kernels.launch import Cost, launch


def experts_of_few(
    residual_TD: torch.Tensor, routes: Routes, weights: MoeWeights, *, adds_residual: bool
) -> torch.Tensor:
    (T, D), top_k = routes.x_TD.shape, weights.top_k
    J, _, F = weights.down_JDF.shape
    shared_F = weights.shared_down_DF.shape[1]
    widest = max(F, shared_F)
    x_TD = routes.x_TD
    size = x_TD.element_size()
    hidden_TKF = torch.empty(T, top_k + 1, widest, dtype=x_TD.dtype, device=x_TD.device)
    y_TD = torch.empty_like(x_TD)

    def cost(matrices: int) -> Cost:
        """Experts may differ for all rows; the shared one stays in the cache."""
        num_experts = min(T * top_k, J)
        hidden = T * (top_k * F + shared_F) * size
        rows = T * D * size * (1 if matrices == 2 else 2) + T * (2 * top_k + 1) * 4
        necessary = matrices * D * (num_experts * F + shared_F) * size + hidden + rows
        moved = matrices * D * (T * top_k * F + shared_F) * size + hidden + rows
        return Cost(necessary, moved, flops=2 * matrices * D * T * (top_k * F + shared_F))

    block_f = 4
    launch(
        gate_up_of_few_kernel,
        (T * (top_k + 1), triton.cdiv(widest, block_f)),
        x_TD,
        routes.expert_TK,
        weights.gate_up_JFD,
        weights.shared_gate_up_FD,
        hidden_TKF,
        cost=lambda: cost(2),
        num_warps=4,
        D=D,
        F=F,
        SHARED_F=shared_F,
        WIDEST=widest,
        TOP_K=top_k,
        BLOCK_F=block_f,
        BLOCK_K=min(512, triton.next_power_of_2(D)),
    )
    block_k = triton.next_power_of_2(widest)
    block_d = 8 if block_k >= 512 else 16
    launch(
        down_of_few_kernel,
        (T, triton.cdiv(D, block_d)),
        hidden_TKF,
        routes.expert_TK,
        routes.weight_TK1,
        weights.down_JDF,
        weights.shared_down_DF,
        residual_TD,
        y_TD,
        cost=lambda: cost(1),
        num_warps=min(max(block_d * block_k // 1024, 1), 8),
        RESIDUAL_ROW=residual_TD.stride(0),
        D=D,
        F=F,
        SHARED_F=shared_F,
        WIDEST=widest,
        TOP_K=top_k,
        HAS_RESIDUAL=adds_residual,
        BLOCK_D=block_d,
        BLOCK_K=block_k,
    )
    return y_TD


@triton.jit
def gate_up_of_few_kernel(
    x,  # [T, D], normed
    expert,  # [T, TOP_K]
    gate_up,  # [J, 2 F, D]
    shared_gate_up,  # [2 SHARED_F, D]
    hidden,  # [T, TOP_K + 1, WIDEST], out
    D: tl.constexpr,
    F: tl.constexpr,
    SHARED_F: tl.constexpr,
    WIDEST: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    t = (tl.program_id(0) // (TOP_K + 1)).to(tl.int64)
    slot = tl.program_id(0) % (TOP_K + 1)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    width = tl.where(slot == TOP_K, SHARED_F, F)
    if slot == TOP_K:
        w = shared_gate_up
    else:
        w = gate_up + tl.load(expert + t * TOP_K + slot).to(tl.int64) * (2 * F * D)
    gate_FK = tl.zeros([BLOCK_F, BLOCK_K], dtype=tl.float32)
    up_FK = tl.zeros([BLOCK_F, BLOCK_K], dtype=tl.float32)
    for first_k in tl.static_range(0, D, BLOCK_K):
        k = first_k + tl.arange(0, BLOCK_K)
        inside = (f < width)[:, None] & (k < D)[None, :]
        at_FK = f[:, None] * D + k[None, :]
        gate_w_FK = tl.load(w + at_FK, mask=inside, other=0.0)
        up_w_FK = tl.load(w + width * D + at_FK, mask=inside, other=0.0)
        x_K = tl.load(x + t * D + k, mask=k < D, other=0.0).to(tl.float32)
        gate_FK += gate_w_FK.to(tl.float32) * x_K[None, :]
        up_FK += up_w_FK.to(tl.float32) * x_K[None, :]
    gate_F = tl.sum(gate_FK, axis=1)
    hidden_F = gate_F / (1.0 + tl.exp(-gate_F)) * tl.sum(up_FK, axis=1)
    row = hidden + (t * (TOP_K + 1) + slot) * WIDEST
    tl.store(row + f, hidden_F.to(hidden.dtype.element_ty), mask=f < width)


@triton.jit
def down_of_few_kernel(
    hidden,  # [T, TOP_K + 1, WIDEST]
    expert,  # [T, TOP_K]
    weight,  # fp32 [T, TOP_K + 1]
    down,  # [J, D, F]
    shared_down,  # [D, SHARED_F]
    residual,  # [T, D], if HAS_RESIDUAL
    y,  # [T, D], out
    RESIDUAL_ROW: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    SHARED_F: tl.constexpr,
    WIDEST: tl.constexpr,
    TOP_K: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    hidden += t * (TOP_K + 1) * WIDEST
    weight += t * (TOP_K + 1)
    sum_DK = tl.zeros([BLOCK_D, BLOCK_K], dtype=tl.float32)
    for slot in tl.static_range(0, TOP_K):
        e = tl.load(expert + t * TOP_K + slot).to(tl.int64)
        w_DK = tl.load(
            down + e * (D * F) + d[:, None] * F + k[None, :],
            mask=(d < D)[:, None] & (k < F)[None, :],
            other=0.0,
        )
        hidden_K = tl.load(hidden + slot * WIDEST + k, mask=k < F, other=0.0).to(tl.float32)
        sum_DK += w_DK.to(tl.float32) * (tl.load(weight + slot) * hidden_K)[None, :]
    w_DK = tl.load(
        shared_down + d[:, None] * SHARED_F + k[None, :],
        mask=(d < D)[:, None] & (k < SHARED_F)[None, :],
        other=0.0,
    )
    hidden_K = tl.load(hidden + TOP_K * WIDEST + k, mask=k < SHARED_F, other=0.0).to(tl.float32)
    sum_DK += w_DK.to(tl.float32) * (tl.load(weight + TOP_K) * hidden_K)[None, :]
    sum_D = tl.sum(sum_DK, axis=1)
    if HAS_RESIDUAL:
        residual_D = tl.load(residual + t * RESIDUAL_ROW + d, mask=d < D, other=0.0)
        sum_D += residual_D.to(tl.float32)
    tl.store(y + t * D + d, sum_D.to(y.dtype.element_ty), mask=d < D)
