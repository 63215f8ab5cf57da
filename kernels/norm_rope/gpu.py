# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportReturnType=false
"""The norms and the rotation in Triton: one program per row, or per head of a row.

Rows are dense (their stride is a constant of the model, so loads are wide), everything is fp32
between load and store, and no program knows how many others there are: a row's bits are its own.
"""

import torch
import triton
import triton.language as tl

from kernels.dense_rows import with_dense_rows
from kernels.launch import Cost, launch


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    T, D = x_TD.shape
    if weight_D.shape != (D,):
        raise ValueError(f"{weight_D.shape=} does not fit {x_TD.shape=}")
    x_TD = with_dense_rows(x_TD)
    y_TD = torch.empty(T, D, dtype=x_TD.dtype, device=x_TD.device)

    def cost() -> Cost:
        moved = (2 * T * D + D) * x_TD.element_size()
        return Cost(necessary_bytes=moved, moved_bytes=moved, flops=5 * T * D)

    launch(
        _rms_norm_kernel,
        (T,),
        x_TD,
        weight_D.contiguous(),
        y_TD,
        cost=cost,
        num_warps=_num_warps(D),
        eps=eps,
        X_ROW=x_TD.stride(0),
        D=D,
        BLOCK_D=triton.next_power_of_2(D),
    )
    return y_TD


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    T, D = x_TD.shape
    if residual_TD.shape != x_TD.shape or residual_TD.dtype != x_TD.dtype or weight_D.shape != (D,):
        raise ValueError(f"{residual_TD.shape=} and {weight_D.shape=} do not fit {x_TD.shape=}")
    x_TD, residual_TD = with_dense_rows(x_TD), with_dense_rows(residual_TD)
    y_TD = torch.empty(T, D, dtype=x_TD.dtype, device=x_TD.device)
    sum_TD = torch.empty(T, D, dtype=x_TD.dtype, device=x_TD.device)

    def cost() -> Cost:
        moved = (4 * T * D + D) * x_TD.element_size()
        return Cost(necessary_bytes=moved, moved_bytes=moved, flops=6 * T * D)

    launch(
        _add_rms_norm_kernel,
        (T,),
        x_TD,
        residual_TD,
        weight_D.contiguous(),
        y_TD,
        sum_TD,
        cost=cost,
        num_warps=_num_warps(D),
        eps=eps,
        X_ROW=x_TD.stride(0),
        RESIDUAL_ROW=residual_TD.stride(0),
        D=D,
        BLOCK_D=triton.next_power_of_2(D),
    )
    return y_TD, sum_TD


def qk_norm_rope_write(
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
    if qg_TH2E.shape[2] != 2 * E or v_TGE.shape != k_TGE.shape or k_TGE.shape[0] != T:
        raise ValueError(f"{qg_TH2E.shape=}, {k_TGE.shape=} and {v_TGE.shape=} do not fit")
    if kv_P2GOE.shape[1:3] != (2, G) or kv_P2GOE.shape[4] != E or not kv_P2GOE.is_contiguous():
        raise ValueError(f"{kv_P2GOE.shape=} does not fit {k_TGE.shape=} or is not contiguous")
    if cos_TR.shape != (T, R) or sin_TR.shape != (T, R) or R % 2 or R > E:
        raise ValueError(f"{cos_TR.shape=} and {sin_TR.shape=} do not fit {k_TGE.shape=}")
    if location_T.shape != (T,):
        raise ValueError(f"{location_T.shape=} is not one location for each of {T} rows")
    qg_TH2E, k_TGE, v_TGE = (with_dense_rows(x) for x in (qg_TH2E, k_TGE, v_TGE))
    q_THE = torch.empty(T, H, E, dtype=qg_TH2E.dtype, device=qg_TH2E.device)

    def cost() -> Cost:
        heads = 2 * T * (H + 2 * G) * E * q_THE.element_size()
        tables = T * (2 * R * 4 + location_T.element_size()) + 2 * E * q_THE.element_size()
        flops = T * (H + G) * (5 * E + 3 * R)
        return Cost(necessary_bytes=heads + tables, moved_bytes=heads + tables, flops=flops)

    launch(
        _qk_norm_rope_write_kernel,
        (T * (H + G),),
        qg_TH2E,
        k_TGE,
        v_TGE,
        q_weight_E.contiguous(),
        k_weight_E.contiguous(),
        cos_TR.float().contiguous(),
        sin_TR.float().contiguous(),
        kv_P2GOE,
        location_T.contiguous(),
        q_THE,
        cost=cost,
        num_warps=1,
        eps=eps,
        QG_ROW=qg_TH2E.stride(0),
        K_ROW=k_TGE.stride(0),
        V_ROW=v_TGE.stride(0),
        H=H,
        G=G,
        E=E,
        R=R,
        PAGE=kv_P2GOE.shape[3],
        BLOCK_E=triton.next_power_of_2(E),
    )
    return q_THE


def _num_warps(D: int) -> int:
    """Eight or sixteen elements for a thread of the usual hidden sizes."""
    return min(max(triton.next_power_of_2(D) // 512, 1), 8)


@triton.jit
def _rms_norm_kernel(
    x, weight, y,
    eps: tl.constexpr, X_ROW: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    x_D = tl.load(x + t * X_ROW + d, mask=d < D, other=0.0).to(tl.float32)
    w_D = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    y_D = x_D * (1.0 / tl.sqrt(tl.sum(x_D * x_D, axis=0) / D + eps)) * (1.0 + w_D)
    tl.store(y + t * D + d, y_D.to(y.dtype.element_ty), mask=d < D)


@triton.jit
def _add_rms_norm_kernel(
    x, residual, weight, y, total,
    eps: tl.constexpr, X_ROW: tl.constexpr, RESIDUAL_ROW: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    x_D = tl.load(x + t * X_ROW + d, mask=d < D, other=0.0).to(tl.float32)
    residual_D = tl.load(residual + t * RESIDUAL_ROW + d, mask=d < D, other=0.0).to(tl.float32)
    w_D = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    sum_D = (residual_D + x_D).to(total.dtype.element_ty)  # rounded, and so it is normed
    tl.store(total + t * D + d, sum_D, mask=d < D)
    sum_D = sum_D.to(tl.float32)
    y_D = sum_D * (1.0 / tl.sqrt(tl.sum(sum_D * sum_D, axis=0) / D + eps)) * (1.0 + w_D)
    tl.store(y + t * D + d, y_D.to(y.dtype.element_ty), mask=d < D)


@triton.jit
def _normed_and_rotated(
    head, weight, cos, sin, eps, E: tl.constexpr, R: tl.constexpr, BLOCK_E: tl.constexpr
):
    """One head, fp32 [BLOCK_E]. Each of the first R dims reads its partner a second time."""
    e = tl.arange(0, BLOCK_E)
    x_E = tl.load(head + e, mask=e < E, other=0.0).to(tl.float32)
    w_E = tl.load(weight + e, mask=e < E, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x_E * x_E, axis=0) / E + eps)
    partner = tl.where(e < R // 2, e + R // 2, e - R // 2)
    other_x_E = tl.load(head + partner, mask=e < R, other=0.0).to(tl.float32)
    other_w_E = tl.load(weight + partner, mask=e < R, other=0.0).to(tl.float32)
    cos_E = tl.load(cos + e, mask=e < R, other=1.0)
    sin_E = tl.load(sin + e, mask=e < R, other=0.0)
    other_E = other_x_E * scale * (1.0 + other_w_E)
    other_E = tl.where(e < R // 2, -other_E, other_E)
    return x_E * scale * (1.0 + w_E) * cos_E + other_E * sin_E


@triton.jit(do_not_specialize_on_alignment=["location"])
def _qk_norm_rope_write_kernel(
    qg, k, v, q_weight, k_weight, cos, sin, kv, location, q,
    eps: tl.constexpr, QG_ROW: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, R: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) // (H + G)).to(tl.int64)
    head = tl.program_id(0) % (H + G)  # the query heads, then the pairs of a key and a value head
    e = tl.arange(0, BLOCK_E)
    if head < H:
        q_E = _normed_and_rotated(
            qg + t * QG_ROW + head * 2 * E, q_weight, cos + t * R, sin + t * R, eps, E, R, BLOCK_E
        )
        tl.store(q + (t * H + head) * E + e, q_E.to(q.dtype.element_ty), mask=e < E)
    else:
        g = head - H
        place = tl.load(location + t).to(tl.int64)
        page, offset = place // PAGE, place % PAGE
        k_row = kv + ((page * 2 * G + g) * PAGE + offset) * E
        v_row = k_row + G * PAGE * E
        v_E = tl.load(v + t * V_ROW + g * E + e, mask=e < E, other=0.0)
        tl.store(v_row + e, v_E.to(kv.dtype.element_ty), mask=e < E)
        k_E = _normed_and_rotated(
            k + t * K_ROW + g * E, k_weight, cos + t * R, sin + t * R, eps, E, R, BLOCK_E
        )
        tl.store(k_row + e, k_E.to(kv.dtype.element_ty), mask=e < E)
