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

from kernels.backend import uses_triton
from kernels.paged_attention import cpu, reference

__all__ = ["attention_decode", "attention_prefill", "attention_window"]


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
    if uses_triton(q_BHE):
        from kernels.paged_attention import gpu_decode

        run = gpu_decode.attention_decode
    elif call := cpu.functions().get(("attention_decode", q_BHE.dtype)):
        run = partial(cpu.attention_decode, call)
    else:
        run = reference.attention_decode
    return run(q_BHE, qg_BH2E, kv_P2GOE=kv_P2GOE, page_BM=page_BM, length_B=length_B, scale=scale)


def attention_window(
    q_THE: torch.Tensor,
    qg_TH2E: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    page_BM: torch.Tensor,
    length_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """o [T, H * E] of the last W = T / B tokens of each of B sequences, packed, each causal.

    `length_B` counts all W of them; 0 marks padding. On a GPU a token's bits may differ from those
    that decoding it alone would give: its K and V are cut where the last token's are.
    """
    if uses_triton(q_THE):
        from kernels.paged_attention import gpu_decode

        return gpu_decode.attention_window(
            q_THE, qg_TH2E, kv_P2GOE=kv_P2GOE, page_BM=page_BM, length_B=length_B, scale=scale
        )
    page_TM, length_T = reference.rows_of_windows(page_BM, length_B, q_THE.shape[0])
    return attention_decode(
        q_THE, qg_TH2E, kv_P2GOE=kv_P2GOE, page_BM=page_TM, length_B=length_T, scale=scale
    )


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
    if uses_triton(q_THE):
        from kernels.paged_attention import gpu_prefill

        run = gpu_prefill.attention_prefill
    elif call := cpu.functions().get(("attention_prefill", q_THE.dtype)):
        run = partial(cpu.attention_prefill, call)
    else:
        run = reference.attention_prefill
    return run(
        q_THE,
        qg_TH2E,
        kv_P2GOE=kv_P2GOE,
        page_SM=page_SM,
        start_S=start_S,
        offset_S1=offset_S1,
        scale=scale,
    )
