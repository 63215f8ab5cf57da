"""Causal grouped-query attention over KV pages, its output gated by the other half of q_proj.

    o_h = softmax(scale * q_h K^T) V * sigmoid(gate_h)

in fp32, cast once. Query head h uses KV head h // (H / G). K and V of the rows themselves are in
the pages already. A row's bits depend on its sequence only: decode takes tokens in an order fixed
by their positions, prefill takes queries by chunks of the absolute 64-token grid.

B decode rows, S prefill slices of T packed rows, H query heads, G key/value heads, E head dim,
P pages of O tokens, M pages per table row.
"""

from functools import partial

import torch

from kernels.paged_attention import cpu, reference

__all__ = ["attention_decode", "attention_prefill"]


def attention_decode(
    q_BHE: torch.Tensor,
    qg_BH2E: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    page_BM: torch.Tensor,
    length_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """o [B, H * E]. `length_B` counts the row's own token; 0 marks padding, whose output is 0."""
    call = cpu.functions().get(("attention_decode", q_BHE.dtype))
    run = reference.attention_decode if call is None else partial(cpu.attention_decode, call)
    return run(q_BHE, qg_BH2E, kv_P2GOE=kv_P2GOE, page_BM=page_BM, length_B=length_B, scale=scale)


def attention_prefill(
    q_THE: torch.Tensor,
    qg_TH2E: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    page_SM: torch.Tensor,
    start_S: torch.Tensor,
    offset_S1: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """o [T, H * E]. Slice s is rows offset[s] .. offset[s + 1], at positions from start[s]."""
    call = cpu.functions().get(("attention_prefill", q_THE.dtype))
    run = reference.attention_prefill if call is None else partial(cpu.attention_prefill, call)
    return run(
        q_THE,
        qg_TH2E,
        kv_P2GOE=kv_P2GOE,
        page_SM=page_SM,
        start_S=start_S,
        offset_S1=offset_S1,
        scale=scale,
    )
