# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportReturnType=false
"""The experts of many rows: rows sorted by expert, then tiles of rows that share an expert.

A pair is a row in one of its slots: TOP_K routed ones, then the shared expert's. Routed pairs are
sorted by expert, rows in order; the shared expert's need no sorting and have tiles of their own,
which come first. How many tiles an expert has is known on the device only, so the grid is the most
there can be, and what is over returns. The columns of a tile follow each other, then the tiles of
an expert: rows and weights are still near when they are read again.

What experts say is weighted in fp32, rounded once, and kept by pair; the last launch adds a row's
pairs in slot order. So no place in the sort shows in a result.
"""

import torch
import triton
import triton.language as tl

from kernels.backend import shape_rows
from kernels.fused_moe.gpu_route import Routes
from kernels.fused_moe.weights import MoeWeights
from kernels.launch import Cost, launch
from kernels.linear.gpu_kernels import load_columns
from kernels.linear.gpu_tiles import L2_BYTES


def experts_of_many(
    residual_TD: torch.Tensor, routes: Routes, weights: MoeWeights, *, adds_residual: bool
) -> torch.Tensor:
    (T, D), top_k = routes.x_TD.shape, weights.top_k
    J, _, F = weights.down_JDF.shape
    shared_F = weights.shared_down_DF.shape[1]
    widest = max(F, shared_F)
    dtype, device = residual_TD.dtype, residual_TD.device
    size = residual_TD.element_size()
    rows = _tile_rows(shape_rows(T), top_k, J)
    routed, pairs = T * top_k, T * (top_k + 1)
    shared_tiles = triton.cdiv(T, rows)
    most_tiles = shared_tiles + min(routed, routed // rows + J)
    order_P, begin_J1 = _sorted(routes, J)

    # For the books: balanced routing, as many experts as can be.
    num_experts = min(routed, J)
    expert_tiles = num_experts * triton.cdiv(triton.cdiv(routed, max(num_experts, 1)), rows)

    def cost(matrices: int, in_bytes: int, moved_in_bytes: int, out_width: int) -> Cost:
        expert = matrices * D * F * size
        around = matrices * D * shared_F * size + pairs * (out_width * size + 8)
        times = num_experts if expert <= L2_BYTES else expert_tiles
        return Cost(
            necessary_bytes=num_experts * expert + in_bytes + around,
            moved_bytes=times * expert + moved_in_bytes + around,
            flops=2 * matrices * D * T * (top_k * F + shared_F),
        )

    sizes = {
        "D": D,
        "F": F,
        "SHARED_F": shared_F,
        "WIDEST": widest,
        "J": J,
        "TOP_K": top_k,
        "BLOCK_J": triton.next_power_of_2(J),
        "BLOCK_M": rows,
    }
    x_bytes, hidden_bytes = T * D * size, pairs * widest * size
    moved_x_bytes = x_bytes * (1 if x_bytes <= L2_BYTES else top_k + 1)
    hidden_PF = torch.empty(pairs, widest, dtype=dtype, device=device)
    columns, depth, num_warps, num_stages = _GATE_UP_TILES[rows]
    launch(
        gate_up_kernel,
        (triton.cdiv(widest, columns), most_tiles),
        routes.x_TD,
        order_P,
        begin_J1,
        weights.gate_up_JFD,
        weights.shared_gate_up_FD,
        hidden_PF,
        T,
        cost=lambda: cost(2, x_bytes, moved_x_bytes, widest),
        num_warps=num_warps,
        num_stages=num_stages,
        **sizes,
        BLOCK_F=columns,
        BLOCK_K=_depth(depth, D, size),
    )
    y_PD = torch.empty(pairs, D, dtype=dtype, device=device)
    columns, depth, num_warps, num_stages = _DOWN_TILES[rows]
    launch(
        down_kernel,
        (triton.cdiv(D, columns), most_tiles),
        hidden_PF,
        order_P,
        begin_J1,
        routes.weight_TK1,
        weights.down_JDF,
        weights.shared_down_DF,
        y_PD,
        T,
        cost=lambda: cost(1, hidden_bytes, hidden_bytes, D),
        num_warps=num_warps,
        num_stages=num_stages,
        **sizes,
        BLOCK_D=columns,
        BLOCK_K=_depth(depth, widest, size),
    )
    return _combined(y_PD, residual_TD, top_k + 1, adds_residual=adds_residual)


def _tile_rows(T: int, top_k: int, J: int) -> int:
    """About as many as an expert has, if it has more than the fewest."""
    share = T * top_k // J
    return 16 if share <= 16 else 64 if share <= 64 else 128


# By rows of a tile: columns, depth, warps, stages, for two bytes an element.
_GATE_UP_TILES = {16: (32, 128, 4, 4), 64: (64, 64, 4, 4), 128: (64, 64, 8, 3)}
_DOWN_TILES = {16: (64, 128, 4, 4), 64: (128, 64, 4, 4), 128: (128, 64, 8, 3)}


def _depth(depth: int, length: int, element_bytes: int) -> int:
    return max(16, min(depth * 2 // element_bytes, triton.next_power_of_2(length)))


def _sorted(routes: Routes, J: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs t * (top_k + 1) + slot in order of their expert, and where each expert's begin."""
    T, top_k = routes.expert_TK.shape
    num_chunks = routes.count_CJ.shape[0]
    device = routes.expert_TK.device
    order_P = torch.empty(T * top_k, dtype=torch.int32, device=device)
    begin_J1 = torch.empty(J + 1, dtype=torch.int32, device=device)
    start_CJ = torch.empty_like(routes.count_CJ)

    def cost() -> Cost:
        moved = T * top_k * 12 + num_chunks * J * 12 + J * 4
        return Cost(moved - num_chunks * J * 8, moved, flops=0)

    launch(
        sort_kernel,
        (num_chunks,),
        routes.expert_TK,
        routes.place_TK,
        routes.count_CJ,
        start_CJ,
        order_P,
        begin_J1,
        T,
        cost=cost,
        num_warps=4,
        J=J,
        TOP_K=top_k,
        CHUNK=routes.chunk_rows,
        BLOCK_J=triton.next_power_of_2(J),
        BLOCK_P=triton.next_power_of_2(routes.chunk_rows * top_k),
    )
    return order_P, begin_J1


def _combined(
    y_PD: torch.Tensor, residual_TD: torch.Tensor, slots: int, *, adds_residual: bool
) -> torch.Tensor:
    T, D = residual_TD.shape
    sum_TD = torch.empty(T, D, dtype=y_PD.dtype, device=y_PD.device)
    block_d = min(1024, triton.next_power_of_2(D))

    def cost() -> Cost:
        moved = (slots + 1 + int(adds_residual)) * T * D * y_PD.element_size()
        return Cost(moved, moved, flops=slots * T * D)

    launch(
        combine_kernel,
        (T, triton.cdiv(D, block_d)),
        y_PD,
        residual_TD,
        sum_TD,
        cost=cost,
        num_warps=4,
        RESIDUAL_ROW=residual_TD.stride(0),
        D=D,
        SLOTS=slots,
        HAS_RESIDUAL=adds_residual,
        BLOCK_D=block_d,
    )
    return sum_TD


@triton.jit(do_not_specialize=["T"])
def sort_kernel(
    expert,  # int32 [T, TOP_K]
    place,  # int32 [T, TOP_K]
    count,  # int32 [chunks, J]
    start,  # int32 [chunks, J], within a program
    order,  # int32 [T * TOP_K], out
    begin,  # int32 [J + 1], out
    T,
    J: tl.constexpr,
    TOP_K: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    chunk = tl.program_id(0)
    j = tl.arange(0, BLOCK_J)
    all_J = tl.zeros([BLOCK_J], dtype=tl.int32)
    earlier_J = tl.zeros([BLOCK_J], dtype=tl.int32)
    for first in range(0, tl.num_programs(0), 8):
        c = first + tl.arange(0, 8)
        inside = (c < tl.num_programs(0))[:, None] & (j < J)[None, :]
        count_CJ = tl.load(count + c[:, None] * J + j[None, :], mask=inside, other=0)
        all_J += tl.sum(count_CJ, axis=0)
        earlier_J += tl.sum(tl.where((c < chunk)[:, None], count_CJ, 0), axis=0)
    begin_J = tl.cumsum(all_J, axis=0) - all_J
    if chunk == 0:
        tl.store(begin + j, begin_J, mask=j < J)
        tl.store(begin + J, T * TOP_K)
    tl.store(start + chunk * J + j, begin_J + earlier_J, mask=j < J)
    tl.debug_barrier()  # other threads of this program read what was just written
    in_chunk = tl.arange(0, BLOCK_P)
    pair = chunk * (CHUNK * TOP_K) + in_chunk
    inside = (in_chunk < CHUNK * TOP_K) & (pair < T * TOP_K)
    e = tl.load(expert + pair, mask=inside, other=0)
    at = tl.load(start + chunk * J + e, mask=inside, other=0)
    at += tl.load(place + pair, mask=inside, other=0)
    slot_pair = pair // TOP_K * (TOP_K + 1) + pair % TOP_K
    tl.store(order + at, slot_pair, mask=inside)


@triton.jit
def tile_pairs(
    tile,
    order,
    begin,
    T,
    J: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """(expert, pair_M, is_row_M) of a tile: the first tiles are the shared expert's, number J.

    An expert above J: there is no such tile.
    """
    shared_tiles = tl.cdiv(T, BLOCK_M)
    m = tl.arange(0, BLOCK_M)
    if tile < shared_tiles:
        e = J
        t = tile * BLOCK_M + m
        is_row_M = t < T
        pair_M = t * (TOP_K + 1) + TOP_K
    else:
        j = tl.arange(0, BLOCK_J)
        begin_J = tl.load(begin + j, mask=j < J, other=0)
        end_J = tl.load(begin + j + 1, mask=j < J, other=0)
        tiles_J = (end_J - begin_J + (BLOCK_M - 1)) // BLOCK_M
        upto_J = shared_tiles + tl.cumsum(tiles_J, axis=0)
        e = tl.sum(((upto_J <= tile) & (j < J)).to(tl.int32), axis=0)
        is_e = j == e
        first = tl.sum(tl.where(is_e, begin_J, 0), axis=0)
        last = tl.sum(tl.where(is_e, end_J, 0), axis=0)
        earlier = tl.sum(tl.where(is_e, upto_J - tiles_J, 0), axis=0)
        at = first + (tile - earlier) * BLOCK_M + m
        is_row_M = at < last
        pair_M = tl.load(order + at, mask=is_row_M, other=0)
        e = tl.where(e >= J, J + 1, e)
    return e, pair_M, is_row_M


@triton.jit(do_not_specialize=["T"])
def gate_up_kernel(
    x,  # [T, D], normed
    order,
    begin,
    gate_up,  # [J, 2 F, D]
    shared_gate_up,  # [2 SHARED_F, D]
    hidden,  # [T * (TOP_K + 1), WIDEST], out
    T,
    D: tl.constexpr,
    F: tl.constexpr,
    SHARED_F: tl.constexpr,
    WIDEST: tl.constexpr,
    J: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    EVEN_D: tl.constexpr = D % BLOCK_K == 0
    EVEN_F: tl.constexpr = F % BLOCK_F == 0 and F == SHARED_F
    e, pair_M, is_row_M = tile_pairs(tl.program_id(1), order, begin, T, J, TOP_K, BLOCK_J, BLOCK_M)
    if e <= J:
        width = tl.where(e == J, SHARED_F, F)
        w = shared_gate_up if e == J else gate_up + e.to(tl.int64) * (2 * F * D)
        f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
        x_M1 = x + (pair_M // (TOP_K + 1)).to(tl.int64)[:, None] * D
        gate_MF = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
        up_MF = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
        for first_k in range(0, D, BLOCK_K):
            k = first_k + tl.arange(0, BLOCK_K)
            inside = is_row_M[:, None]
            if not EVEN_D:
                inside &= (k < D)[None, :]
            x_MK = tl.load(x_M1 + k[None, :], mask=inside, other=0.0)
            gate_KF = load_columns(w, f, f < width, k, D, EVEN_D, EVEN_F)
            up_KF = load_columns(w + width * D, f, f < width, k, D, EVEN_D, EVEN_F)
            gate_MF = tl.dot(x_MK, gate_KF, gate_MF, input_precision="ieee")
            up_MF = tl.dot(x_MK, up_KF, up_MF, input_precision="ieee")
        hidden_MF = gate_MF / (1.0 + tl.exp(-gate_MF)) * up_MF
        tl.store(
            hidden + pair_M.to(tl.int64)[:, None] * WIDEST + f[None, :],
            hidden_MF.to(hidden.dtype.element_ty),
            mask=is_row_M[:, None] & (f < width)[None, :],
        )


@triton.jit(do_not_specialize=["T"])
def down_kernel(
    hidden,  # [T * (TOP_K + 1), WIDEST]
    order,
    begin,
    weight,  # fp32 [T * (TOP_K + 1)]
    down,  # [J, D, F]
    shared_down,  # [D, SHARED_F]
    y,  # [T * (TOP_K + 1), D], out: weighted
    T,
    D: tl.constexpr,
    F: tl.constexpr,
    SHARED_F: tl.constexpr,
    WIDEST: tl.constexpr,
    J: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    EVEN_F: tl.constexpr = F % BLOCK_K == 0 and F == SHARED_F
    EVEN_D: tl.constexpr = D % BLOCK_D == 0
    e, pair_M, is_row_M = tile_pairs(tl.program_id(1), order, begin, T, J, TOP_K, BLOCK_J, BLOCK_M)
    if e <= J:
        width = tl.where(e == J, SHARED_F, F)
        w = shared_down if e == J else down + e.to(tl.int64) * (D * F)
        d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
        hidden_M1 = hidden + pair_M.to(tl.int64)[:, None] * WIDEST
        w_1D = w + d.to(tl.int64)[None, :] * width
        sum_MD = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        for first_k in range(0, WIDEST, BLOCK_K):
            k = first_k + tl.arange(0, BLOCK_K)
            inside = is_row_M[:, None]
            inside_w = (d < D)[None, :]
            if not EVEN_F:
                inside &= (k < width)[None, :]
                inside_w &= (k < width)[:, None]
            hidden_MK = tl.load(hidden_M1 + k[None, :], mask=inside, other=0.0)
            if EVEN_F and EVEN_D:
                w_KD = tl.load(w_1D + k[:, None])
            else:
                w_KD = tl.load(w_1D + k[:, None], mask=inside_w, other=0.0)
            sum_MD = tl.dot(hidden_MK, w_KD, sum_MD, input_precision="ieee")
        weight_M = tl.load(weight + pair_M, mask=is_row_M, other=0.0)
        tl.store(
            y + pair_M.to(tl.int64)[:, None] * D + d[None, :],
            (sum_MD * weight_M[:, None]).to(y.dtype.element_ty),
            mask=is_row_M[:, None] & (d < D)[None, :],
        )


@triton.jit
def combine_kernel(
    y,  # [T, SLOTS, D]
    residual,  # [T, D], if HAS_RESIDUAL
    total,  # [T, D], out
    RESIDUAL_ROW: tl.constexpr,
    D: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    sum_D = tl.zeros([BLOCK_D], dtype=tl.float32)
    for slot in tl.static_range(0, SLOTS):
        sum_D += tl.load(y + (t * SLOTS + slot) * D + d, mask=d < D, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual_D = tl.load(residual + t * RESIDUAL_ROW + d, mask=d < D, other=0.0)
        sum_D += residual_D.to(tl.float32)
    tl.store(total + t * D + d, sum_D.to(total.dtype.element_ty), mask=d < D)
