# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
"""Bans on (row, id) pairs, one program per row, which sees whether the row is left with nothing.

A program looks through all N pairs for those of its row, remembers what stands there, writes, and
takes it back if nothing was left. Rows without pairs are not touched.
"""

import torch
import triton
import triton.language as tl

from kernels.launch import Cost, launch

BLOCK_N = 256
BLOCK_V = 8192


def ban(logits_RV: torch.Tensor, row_N: torch.Tensor, id_N: torch.Tensor) -> None:
    _launch(_ban_kernel, logits_RV, row_N, id_N, fills=False)


def keep_only(logits_RV: torch.Tensor, row_N: torch.Tensor, id_N: torch.Tensor) -> None:
    _launch(_keep_only_kernel, logits_RV, row_N, id_N, fills=True)


def _launch(
    kernel: triton.JITFunction,
    logits_RV: torch.Tensor,
    row_N: torch.Tensor,
    id_N: torch.Tensor,
    *,
    fills: bool,
) -> None:
    R, V = logits_RV.shape
    N = len(row_N)
    num_bytes = R * 8 * N + (24 * N) + R * 4 * (V if fills else BLOCK_V)
    launch(
        kernel,
        (R if N else 0,),
        logits_RV,
        row_N.contiguous(),
        id_N.contiguous(),
        torch.empty(N, dtype=torch.float32, device=logits_RV.device),
        N,
        logits_RV.stride(0),
        cost=lambda: Cost(num_bytes, num_bytes, 0),
        num_warps=8,
        V=V,
        BLOCK_N=BLOCK_N,
        BLOCK_V=BLOCK_V,
    )


@triton.jit(do_not_specialize=["N"])
def _ban_kernel(
    x_RV, row_N, id_N, before_N, N, stride,
    V: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0)
    x_V = x_RV + r.to(tl.int64) * stride
    num, _ = _remember(x_V, row_N, id_N, before_N, r, N, BLOCK_N)
    if num > 0:
        tl.debug_barrier()
        for start in range(0, N, BLOCK_N):
            n, is_mine, id = _pairs(row_N, id_N, start, r, N, BLOCK_N)
            tl.store(x_V + id, tl.full([BLOCK_N], -float("inf"), tl.float32), mask=is_mine)
        tl.debug_barrier()
        lanes = tl.arange(0, BLOCK_V)
        begin = 0
        left = 0
        while (left == 0) & (begin < V):
            x = tl.load(x_V + begin + lanes, mask=begin + lanes < V, other=-float("inf"))
            left = tl.sum((x != -float("inf")).to(tl.int32), axis=0)
            begin += BLOCK_V
        if left == 0:
            for start in range(0, N, BLOCK_N):
                n, is_mine, id = _pairs(row_N, id_N, start, r, N, BLOCK_N)
                tl.store(x_V + id, tl.load(before_N + n, mask=is_mine), mask=is_mine)


@triton.jit(do_not_specialize=["N"])
def _keep_only_kernel(
    x_RV, row_N, id_N, before_N, N, stride,
    V: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0)
    x_V = x_RV + r.to(tl.int64) * stride
    _, left = _remember(x_V, row_N, id_N, before_N, r, N, BLOCK_N)
    if left > 0:
        tl.debug_barrier()
        lanes = tl.arange(0, BLOCK_V)
        for begin in range(0, V, BLOCK_V):
            nothing = tl.full([BLOCK_V], -float("inf"), tl.float32)
            tl.store(x_V + begin + lanes, nothing, mask=begin + lanes < V)
        tl.debug_barrier()
        for start in range(0, N, BLOCK_N):
            n, is_mine, id = _pairs(row_N, id_N, start, r, N, BLOCK_N)
            tl.store(x_V + id, tl.load(before_N + n, mask=is_mine), mask=is_mine)


@triton.jit
def _pairs(row_N, id_N, start, r, N, BLOCK_N: tl.constexpr):
    n = start + tl.arange(0, BLOCK_N)
    is_mine = tl.load(row_N + n, mask=n < N, other=-1) == r
    return n, is_mine, tl.load(id_N + n, mask=is_mine, other=0)


@triton.jit
def _remember(x_V, row_N, id_N, before_N, r, N, BLOCK_N: tl.constexpr):
    """Note what stands at the row's pairs. How many there are, and how many were not banned yet."""
    num = 0
    left = 0
    for start in range(0, N, BLOCK_N):
        n, is_mine, id = _pairs(row_N, id_N, start, r, N, BLOCK_N)
        before = tl.load(x_V + id, mask=is_mine, other=-float("inf"))
        tl.store(before_N + n, before, mask=is_mine)
        num += tl.sum(is_mine.to(tl.int32), axis=0)
        left += tl.sum((before != -float("inf")).to(tl.int32), axis=0)
    return num, left
