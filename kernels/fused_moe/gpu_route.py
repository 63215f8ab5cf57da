# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""Norm, router, and the choice of experts, in one launch for any number of rows.

Programs share the experts of a chunk of rows among them. The last one to finish its logits chooses
for the whole chunk, in ascending order of experts, and counts the chunk's rows of each expert and
each row's place among them: what a counting sort by expert needs.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.arrivals import NUM_ARRIVALS, arrivals
from kernels.backend import shape_rows
from kernels.fused_moe.weights import MoeWeights
from kernels.launch import Cost, launch
from kernels.linear.gpu_kernels import inverse_rms, load_columns, load_norm, load_rows, normed
from kernels.linear.gpu_tiles import L2_BYTES

_FEW_ROWS = 512  # up to here small tiles, so that many programs share the router
_CHOOSE_ROWS = 4  # keys of 8 bytes for all experts are many registers


@dataclass(frozen=True, slots=True)
class Routes:
    x_TD: torch.Tensor  # the normed rows
    expert_TK: torch.Tensor  # int32, ascending in each row
    weight_TK1: torch.Tensor  # fp32, with the gate of the shared expert at the end
    place_TK: torch.Tensor  # int32: how many earlier rows of the chunk chose that expert
    count_CJ: torch.Tensor  # int32: rows of chunk c that chose expert j
    chunk_rows: int


def route(
    residual_TD: torch.Tensor, norm_D: torch.Tensor, eps: float, weights: MoeWeights
) -> Routes:
    (T, D), J, top_k = residual_TD.shape, weights.router_JD.shape[0], weights.top_k
    block_j = triton.next_power_of_2(J)
    dtype, device = residual_TD.dtype, residual_TD.device
    size = residual_TD.element_size()
    rows, experts, depth = (16, 16, 128) if shape_rows(T) <= _FEW_ROWS else (64, 128, 64)
    depth = max(16, min(depth * 2 // size, triton.next_power_of_2(D)))
    experts = max(16, min(experts, block_j))
    num_chunks = triton.cdiv(T, rows)
    assert num_chunks <= NUM_ARRIVALS

    def new(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    logit_TJ = new(T, J, dtype=torch.float32)
    routes = Routes(
        x_TD=new(T, D, dtype=dtype),
        expert_TK=new(T, top_k, dtype=torch.int32),
        weight_TK1=new(T, top_k + 1, dtype=torch.float32),
        place_TK=new(T, top_k, dtype=torch.int32),
        count_CJ=new(num_chunks, J, dtype=torch.int32),
        chunk_rows=rows,
    )

    def cost() -> Cost:
        found = T * (top_k * 8 + (top_k + 1) * 4) + num_chunks * J * 4
        necessary = (2 * T * D + D + (J + 1) * D) * size + found
        x_passes = 1 if T * D * size <= L2_BYTES else 2 * triton.cdiv(J, experts)
        moved = necessary + (x_passes - 1) * T * D * size + 2 * T * J * 4
        return Cost(necessary, moved, flops=2 * T * (J + 1) * D)

    launch(
        route_kernel,
        (num_chunks, triton.cdiv(J, experts)),
        residual_TD,
        norm_D,
        weights.router_JD,
        weights.shared_gate_1D,
        routes.x_TD,
        logit_TJ,
        routes.expert_TK,
        routes.weight_TK1,
        routes.place_TK,
        routes.count_CJ,
        arrivals(device),
        T,
        cost=cost,
        num_warps=8,
        num_stages=4,
        EPS=eps,
        X_ROW=residual_TD.stride(0),
        D=D,
        J=J,
        TOP_K=top_k,
        BLOCK_J=block_j,
        BLOCK_M=rows,
        BLOCK_F=experts,
        BLOCK_K=depth,
        CHOOSE=_CHOOSE_ROWS,
    )
    return routes


@triton.jit(do_not_specialize=["T"])
def route_kernel(
    residual,  # [T, D]
    norm,  # [D]
    router,  # [J, D]
    shared_gate,  # [D]
    x,  # [T, D], out
    logits,  # fp32 [T, J], between programs
    expert,  # int32 [T, TOP_K], out
    weight,  # fp32 [T, TOP_K + 1], out
    place,  # int32 [T, TOP_K], out
    count,  # int32 [chunks, J], out
    arrivals,
    T,
    EPS: tl.constexpr,
    X_ROW: tl.constexpr,
    D: tl.constexpr,
    J: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHOOSE: tl.constexpr,
):
    EVEN_D: tl.constexpr = D % BLOCK_K == 0
    EVEN_J: tl.constexpr = J % BLOCK_F == 0
    chunk = tl.program_id(0)
    first_row = chunk.to(tl.int64) * BLOCK_M
    num_rows = T - chunk * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    j = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    # The first program of a chunk also writes the normed rows and the gates of the shared expert.
    written_rows = tl.where(tl.program_id(1) == 0, num_rows, 0)
    residual += first_row * X_ROW
    x += first_row * D
    scale_M = inverse_rms(residual, num_rows, EPS, X_ROW, D, BLOCK_M)

    logit_MF = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
    gate_MK = tl.zeros([BLOCK_M, BLOCK_K], dtype=tl.float32)
    norm_K = load_norm(norm, tl.arange(0, BLOCK_K), D, True)
    gate_K = load_norm(shared_gate, tl.arange(0, BLOCK_K), D, True)
    for first_k in range(0, D, BLOCK_K):
        k = first_k + tl.arange(0, BLOCK_K)
        x_MK = load_rows(residual, rows, num_rows, k, X_ROW, D, EVEN_D)
        w_KF = load_columns(router, j, j < J, k, D, EVEN_D, EVEN_J)
        x_MK = normed(x_MK, scale_M, norm_K, True)
        gate_MK += x_MK.to(tl.float32) * gate_K.to(tl.float32)[None, :]
        norm_K = load_norm(norm, k + BLOCK_K, D, True)
        gate_K = load_norm(shared_gate, k + BLOCK_K, D, True)
        inside = (rows < written_rows)[:, None] & (k < D)[None, :]
        tl.store(x + rows[:, None] * D + k[None, :], x_MK, mask=inside)
        logit_MF = tl.dot(x_MK, w_KF, logit_MF, input_precision="ieee")

    tl.store(
        logits + (first_row + rows)[:, None] * J + j[None, :],
        logit_MF,
        mask=(rows < num_rows)[:, None] & (j < J)[None, :],
    )
    shared_M = 1.0 / (1.0 + tl.exp(-tl.sum(gate_MK, axis=1)))
    tl.store(weight + (first_row + rows) * (TOP_K + 1) + TOP_K, shared_M, mask=rows < written_rows)
    tl.debug_barrier()  # every thread's logits are out before one thread says so
    if tl.atomic_add(arrivals + chunk, 1) == tl.num_programs(1) - 1:
        tl.store(arrivals + chunk, 0)
        all_j = tl.arange(0, BLOCK_J)
        earlier_J = tl.zeros([BLOCK_J], dtype=tl.int32)
        for first in range(0, tl.minimum(num_rows, BLOCK_M), CHOOSE):
            some = first + tl.arange(0, CHOOSE)
            chosen_MJ, weight_MJ = choose(logits + first_row * J, some, num_rows, J, TOP_K, BLOCK_J)
            one_MJ = chosen_MJ.to(tl.int32)
            slot_MJ = tl.cumsum(one_MJ, axis=1) - one_MJ
            place_MJ = tl.cumsum(one_MJ, axis=0) - one_MJ + earlier_J[None, :]
            earlier_J += tl.sum(one_MJ, axis=0)
            row_M1 = (first_row + some)[:, None]
            at_MJ = row_M1 * TOP_K + slot_MJ
            tl.store(expert + at_MJ, all_j[None, :] + 0 * slot_MJ, mask=chosen_MJ)
            tl.store(place + at_MJ, place_MJ, mask=chosen_MJ)
            tl.store(weight + at_MJ + row_M1, weight_MJ, mask=chosen_MJ)
        tl.store(count + chunk.to(tl.int64) * J + all_j, earlier_J, mask=all_j < J)


@triton.jit
def choose(
    logits, rows, num_rows, J: tl.constexpr, TOP_K: tl.constexpr, BLOCK_J: tl.constexpr
):  # fmt: skip
    """(chosen_MJ, weight_MJ): the TOP_K largest logits of each row, ties to the lower expert.

    Whatever the logits are, a row's choices are TOP_K experts that exist: NaN counts as the least.
    """
    NONE: tl.constexpr = -(2**63)
    j = tl.arange(0, BLOCK_J)
    inside = (rows < num_rows)[:, None] & (j < J)[None, :]
    logit_MJ = tl.load(
        logits + rows[:, None] * J + j[None, :], mask=inside, other=0.0, cache_modifier=".cg"
    )
    number_MJ = tl.where(logit_MJ == logit_MJ, logit_MJ, float("-inf"))
    number_MJ = tl.where(number_MJ == 0.0, 0.0, number_MJ)  # -0 is 0
    bits_MJ = number_MJ.to(tl.int32, bitcast=True)
    order_MJ = tl.where(bits_MJ < 0, bits_MJ ^ 0x7FFFFFFF, bits_MJ).to(tl.int64)
    key_MJ = order_MJ * 4294967296 + (BLOCK_J - 1 - j)[None, :]  # all distinct
    key_MJ = tl.where((j < J)[None, :], key_MJ, NONE)
    least_M = tl.max(key_MJ, axis=1)
    for _ in tl.static_range(1, TOP_K):
        least_M = tl.max(tl.where(key_MJ < least_M[:, None], key_MJ, NONE), axis=1)
    chosen_MJ = key_MJ >= least_M[:, None]
    most_M = tl.max(tl.where((j < J)[None, :], number_MJ, float("-inf")), axis=1)
    share_MJ = tl.where(chosen_MJ, tl.exp(logit_MJ - most_M[:, None]), 0.0)
    weight_MJ = share_MJ / tl.sum(share_MJ, axis=1)[:, None]
    return chosen_MJ & (rows < num_rows)[:, None], weight_MJ
