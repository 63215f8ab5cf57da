# pyright: basic, reportArgumentType=false
"""Linear layers in Triton: norm in the prologue, residual in the epilogue, weights read once.

Up to 16 rows the norm is part of the product (each program finds the rows' scales again: they are a
few KiB, in the L2 cache); for more it is a launch of its own. The four cases of `gpu_tiles` add in
different orders, so a row's bits may differ between, say, 16 and 17 rows, never within a case. In
`fixed_shapes()` there is one case; products of which parts are summed then take their rows in
pieces, so that there are counters for all tiles.
"""

import torch

from kernels.arrivals import NUM_ARRIVALS, arrivals
from kernels.backend import shape_rows
from kernels.dense_rows import with_dense_rows
from kernels.launch import Cost, launch
from kernels.linear.gpu_kernels import linear_kernel, swiglu_kernel
from kernels.linear.gpu_tiles import (
    FEW_ROWS,
    GROUP,
    moved_operand_bytes,
    swiglu_tiles_of,
    tiles_of,
)
from kernels.norm_rope import rms_norm

_ROWS_IN_PARTS = 512  # at once, where a sum is cut in parts


def linear(x_TD: torch.Tensor, weight_FD: torch.Tensor) -> torch.Tensor:
    return _linear(x_TD, weight_FD, x_TD.dtype)


def linear_fp32(x_TD: torch.Tensor, weight_FD: torch.Tensor) -> torch.Tensor:
    return _linear(x_TD, weight_FD, torch.float32)


def norm_linear(
    residual_TD: torch.Tensor, norm_D: torch.Tensor, eps: float, weight_FD: torch.Tensor
) -> torch.Tensor:
    if shape_rows(residual_TD.shape[0]) > FEW_ROWS:
        return linear(rms_norm(residual_TD, norm_D, eps), weight_FD)
    return _linear(residual_TD, weight_FD, residual_TD.dtype, norm_D=norm_D, eps=eps)


def linear_add(
    x_TF: torch.Tensor, weight_DF: torch.Tensor, residual_TD: torch.Tensor
) -> torch.Tensor:
    return _linear(x_TF, weight_DF, x_TF.dtype, residual_TF=residual_TD)


def norm_swiglu_add(
    residual_TD: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    gate_up_FD: torch.Tensor,
    down_DF: torch.Tensor,
    *,
    adds_residual: bool = True,
) -> torch.Tensor:
    if shape_rows(residual_TD.shape[0]) > FEW_ROWS:
        hidden_TF = _swiglu(rms_norm(residual_TD, norm_D, eps), gate_up_FD)
    else:
        hidden_TF = _swiglu(residual_TD, gate_up_FD, norm_D=norm_D, eps=eps)
    if adds_residual:
        return linear_add(hidden_TF, down_DF, residual_TD)
    return linear(hidden_TF, down_DF)


def _linear(
    x_TD: torch.Tensor,
    weight_FD: torch.Tensor,
    dtype: torch.dtype,
    *,
    norm_D: torch.Tensor | None = None,
    eps: float = 0.0,
    residual_TF: torch.Tensor | None = None,
) -> torch.Tensor:
    _check(x_TD, weight_FD, norm_D)
    (T, D), F = x_TD.shape, weight_FD.shape[0]
    if residual_TF is not None:
        if residual_TF.shape != (T, F) or residual_TF.dtype != x_TD.dtype:
            raise ValueError(f"{x_TD.shape=} {x_TD.dtype=} do not fit {residual_TF.shape=}")
        residual_TF = with_dense_rows(residual_TF)
    x_TD = with_dense_rows(x_TD)
    device = x_TD.device
    y_TF = torch.empty(T, F, dtype=dtype, device=device)
    size = x_TD.element_size()
    tiles = tiles_of(shape_rows(T), D, F, size)
    if tiles.parts > 1 and T > _ROWS_IN_PARTS:
        assert norm_D is None, "many rows were normed before"
        for first in range(0, T, _ROWS_IN_PARTS):
            few = slice(first, first + _ROWS_IN_PARTS)
            residual_tF = None if residual_TF is None else residual_TF[few]
            y_TF[few] = _linear(x_TD[few], weight_FD, dtype, residual_TF=residual_tF)
        return y_TF
    num_tiles = -(-T // tiles.rows) * -(-F // tiles.columns)
    assert tiles.parts == 1 or num_tiles <= NUM_ARRIVALS
    part_STF = (
        y_TF
        if tiles.parts == 1
        else torch.empty(tiles.parts, T, F, dtype=torch.float32, device=device)
    )

    def cost() -> Cost:
        around = T * F * y_TF.element_size()
        around += 0 if norm_D is None else D * size
        around += 0 if residual_TF is None else T * F * size
        necessary = (T * D + F * D) * size + around
        moved = moved_operand_bytes(T, D, F, tiles, size) + around
        if tiles.parts > 1:
            moved += 2 * tiles.parts * T * F * 4
        return Cost(necessary, moved, flops=2 * T * F * D)

    launch(
        linear_kernel,
        (num_tiles, tiles.parts),
        x_TD,
        x_TD if norm_D is None else norm_D,
        weight_FD,
        x_TD if residual_TF is None else residual_TF,
        y_TF,
        part_STF,
        arrivals(device),
        T,
        cost=cost,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        max_registers=tiles.max_registers,
        EPS=eps,
        X_ROW=x_TD.stride(0),
        RESIDUAL_ROW=0 if residual_TF is None else residual_TF.stride(0),
        D=D,
        F=F,
        HAS_NORM=norm_D is not None,
        HAS_RESIDUAL=residual_TF is not None,
        SPLIT=tiles.parts,
        BLOCK_M=tiles.rows,
        BLOCK_F=tiles.columns,
        BLOCK_K=tiles.depth,
        GROUP=GROUP,
    )
    return y_TF


def _swiglu(
    x_TD: torch.Tensor,
    gate_up_FD: torch.Tensor,
    *,
    norm_D: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """hidden_TF = silu(gate x) * (up x), rounded once."""
    _check(x_TD, gate_up_FD, norm_D)
    (T, D), F = x_TD.shape, gate_up_FD.shape[0] // 2
    x_TD = with_dense_rows(x_TD)
    hidden_TF = torch.empty(T, F, dtype=x_TD.dtype, device=x_TD.device)
    size = x_TD.element_size()
    tiles = swiglu_tiles_of(shape_rows(T), D, size)

    def cost() -> Cost:
        around = (T * F + (0 if norm_D is None else D)) * size
        moved = moved_operand_bytes(T, D, 2 * F, tiles, size) + around
        return Cost((T * D + 2 * F * D) * size + around, moved, flops=4 * T * F * D)

    launch(
        swiglu_kernel,
        (-(-T // tiles.rows) * -(-F // tiles.columns),),
        x_TD,
        x_TD if norm_D is None else norm_D,
        gate_up_FD,
        hidden_TF,
        T,
        cost=cost,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        EPS=eps,
        X_ROW=x_TD.stride(0),
        D=D,
        F=F,
        HAS_NORM=norm_D is not None,
        BLOCK_M=tiles.rows,
        BLOCK_F=tiles.columns,
        BLOCK_K=tiles.depth,
        GROUP=GROUP,
    )
    return hidden_TF


def _check(x_TD: torch.Tensor, weight_FD: torch.Tensor, norm_D: torch.Tensor | None) -> None:
    D = x_TD.shape[1]
    for weight in (weight_FD, norm_D):
        if weight is not None and (
            weight.shape[-1] != D or weight.dtype != x_TD.dtype or not weight.is_contiguous()
        ):
            raise ValueError(f"{x_TD.shape=} {x_TD.dtype=} do not fit {weight.shape=}")
