# pyright: basic, reportArgumentType=false
"""Penalties, masks and bias in one launch: each program changes some ids of one row.

Logits that only a mask touches are written without being read.
"""

import torch
import triton
import triton.language as tl

from kernels.launch import Cost, launch
from kernels.sampling.adjust import Bias, Masks, Penalties

BLOCK_V = 2048
BLOCK_N = 128


def adjust(
    logits_RV: torch.Tensor,
    *,
    penalties: Penalties | None = None,
    masks: Masks | None = None,
    bias: Bias | None = None,
) -> None:
    R, V = logits_RV.shape
    if penalties is None and masks is None and bias is None:
        return
    num_bytes = 0
    if penalties is not None:
        num_bytes += R * V * 12
    if masks is not None:
        num_bytes += R * V // 8 + (0 if penalties is not None else R * V * 4)
    if bias is not None:
        num_bytes += len(bias.id_N) * 20
    launch(
        _adjust_kernel,
        (triton.cdiv(V, BLOCK_V), R),
        logits_RV,
        penalties.tally_KV if penalties else None,
        penalties.place_R if penalties else None,
        penalties.repetition_R if penalties else None,
        penalties.presence_R if penalties else None,
        penalties.frequency_R if penalties else None,
        masks.mask_QW if masks else None,
        masks.place_R if masks else None,
        bias.offset_R1 if bias else None,
        bias.id_N if bias else None,
        bias.bias_N if bias else None,
        logits_RV.stride(0),
        penalties.tally_KV.stride(0) if penalties else 0,
        penalties.repetition_R.stride(0) if penalties else 0,
        penalties.presence_R.stride(0) if penalties else 0,
        penalties.frequency_R.stride(0) if penalties else 0,
        masks.mask_QW.stride(0) if masks else 0,
        cost=lambda: Cost(num_bytes, num_bytes, 0),
        num_warps=4,
        max_registers=128,
        V=V,
        BLOCK_V=BLOCK_V,
        BLOCK_N=BLOCK_N,
        HAS_PENALTIES=penalties is not None,
        HAS_MASKS=masks is not None,
        HAS_BIAS=bias is not None,
    )


@triton.jit
def _is_set(mask_W, id, V: tl.constexpr):
    return (tl.load(mask_W + id // 32, mask=id < V, other=0) >> (id % 32)) & 1 != 0


@triton.jit(
    do_not_specialize=["s_repetition", "s_presence", "s_frequency"],
    do_not_specialize_on_alignment=[
        "tally_R", "repetition_R", "presence_R", "frequency_R", "mask_R", "offset_R1"
    ],
)  # fmt: skip
def _adjust_kernel(
    x_RV, tally_KV, tally_R, repetition_R, presence_R, frequency_R,
    mask_QW, mask_R, offset_R1, id_N, bias_N,
    stride, stride_tally, s_repetition, s_presence, s_frequency, stride_mask,
    V: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_PENALTIES: tl.constexpr, HAS_MASKS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(1).to(tl.int64)
    begin = tl.program_id(0) * BLOCK_V
    id = begin + tl.arange(0, BLOCK_V)
    x_V = x_RV + r * stride
    if HAS_PENALTIES:
        tally = tl.load(tally_R + r)
        if tally >= 0:
            x = tl.load(x_V + id, mask=id < V, other=0.0)
            seen = tl.load(tally_KV + tally * stride_tally + id, mask=id < V, other=0)
            repetition = tl.load(repetition_R + r * s_repetition).to(tl.float32)
            presence = tl.load(presence_R + r * s_presence).to(tl.float32)
            frequency = tl.load(frequency_R + r * s_frequency).to(tl.float32)
            penalised = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
            x = tl.where(seen != 0, penalised, x)
            count = (seen >> 1).to(tl.float32)
            x = x - frequency * count
            x = x - tl.where(count > 0, presence, 0.0)
            tl.store(x_V + id, x, mask=id < V)
    if HAS_MASKS:
        place = tl.load(mask_R + r)
        if place >= 0:
            is_banned = ~_is_set(mask_QW + place * stride_mask, id, V)
            nothing = tl.full([BLOCK_V], -float("inf"), tl.float32)
            tl.store(x_V + id, nothing, mask=is_banned & (id < V))
    if HAS_BIAS:
        tl.debug_barrier()  # other threads of this program wrote what is biased here
        first = tl.load(offset_R1 + r)
        end = tl.load(offset_R1 + r + 1)
        for start in range(first, end, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            biased = tl.load(id_N + n, mask=n < end, other=-1)
            is_here = (biased >= begin) & (biased < begin + BLOCK_V)
            x = tl.load(x_V + biased, mask=is_here, other=0.0)
            bias = tl.load(bias_N + n, mask=is_here, other=0.0)
            tl.store(x_V + biased, x + bias, mask=is_here)
