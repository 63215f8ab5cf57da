# pyright: basic, reportArgumentType=false
"""Philox4x32-10 by Triton's own library, which is the same function to the bit."""

import torch
import triton
import triton.language as tl

from kernels.launch import Cost, launch

BLOCK_R = 128


def uniform(key_R2: torch.Tensor, position_R: torch.Tensor, *, stream: int = 0) -> torch.Tensor:
    R = len(position_R)
    uniform_R = torch.empty(R, dtype=torch.float64, device=position_R.device)
    launch(
        _uniform_kernel,
        (triton.cdiv(R, BLOCK_R),),
        key_R2.contiguous(),
        position_R.contiguous(),
        uniform_R,
        R,
        stream,
        cost=lambda: Cost(32 * R, 32 * R, 100 * R),
        num_warps=4,
        BLOCK_R=BLOCK_R,
    )
    return uniform_R


@triton.jit(do_not_specialize=["R", "stream"])
def _uniform_kernel(key_R2, position_R, uniform_R, R, stream, BLOCK_R: tl.constexpr):
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = r < R
    low = tl.load(key_R2 + 2 * r, mask=is_row, other=0).to(tl.uint32)
    high = tl.load(key_R2 + 2 * r + 1, mask=is_row, other=0).to(tl.uint32)
    position = tl.load(position_R + r, mask=is_row, other=0).to(tl.uint32)
    zero = tl.zeros([BLOCK_R], dtype=tl.uint32)
    word_0, word_1, _, _ = tl.philox_impl(
        position, zero + stream.to(tl.uint32), zero, zero, low, high, 10
    )
    bits = (word_0.to(tl.int64) << 20) | (word_1.to(tl.int64) >> 12)
    tl.store(uniform_R + r, (bits.to(tl.float64) + 0.5) * (2.0**-52), mask=is_row)
