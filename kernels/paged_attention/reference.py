"""What paged attention means, in plain torch.

Shapes never depend on the batch, and with them no row's bits: decode takes one row at a time,
prefill one chunk of the absolute 64-token grid at a time, padded with zeros to the whole chunk.
"""

import torch
from torch.nn import functional

from kernels.elementwise import sigmoid

CHUNK_TOKENS = 64


def attention_decode(
    q_BHE: torch.Tensor,
    qg_BH2E: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    page_BM: torch.Tensor,
    length_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    B, H, E = q_BHE.shape
    o_BHE = q_BHE.new_zeros(B, H, E)
    for b, length in enumerate(length_B.tolist()):
        if length == 0:
            continue
        k_GLE, v_GLE = _gathered(kv_P2GOE, page_BM[b], length, length)
        q_GJE = q_BHE[b].float().reshape(k_GLE.shape[0], -1, E)  # J query heads per KV head
        score_GJL = q_GJE @ k_GLE.transpose(1, 2) * scale
        o_GJE = score_GJL.softmax(-1) @ v_GLE
        o_BHE[b] = _gated(o_GJE.reshape(H, E), qg_BH2E[b])
    return o_BHE.reshape(B, H * E)


def attention_window(
    q_THE: torch.Tensor,
    qg_TH2E: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    page_BM: torch.Tensor,
    length_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    page_TM, length_T = rows_of_windows(page_BM, length_B, q_THE.shape[0])
    return attention_decode(
        q_THE, qg_TH2E, kv_P2GOE=kv_P2GOE, page_BM=page_TM, length_B=length_T, scale=scale
    )


def rows_of_windows(
    page_BM: torch.Tensor, length_B: torch.Tensor, T: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables and lengths of the T tokens in B windows of one size, each as a row of its own."""
    B = length_B.shape[0]
    W = T // B if B else 0
    after_W = torch.arange(W - 1, -1, -1, dtype=length_B.dtype)
    length_BW = (length_B[:, None] - after_W).clamp(min=0)
    return page_BM.repeat_interleave(W, dim=0), length_BW.flatten()


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
    T, H, E = q_THE.shape
    G = kv_P2GOE.shape[2]
    o_THE = q_THE.new_zeros(T, H, E)
    offset = offset_S1.tolist()
    for s, start in enumerate(start_S.tolist()):
        end = start + offset[s + 1] - offset[s]
        position = start
        while position < end:
            chunk = position // CHUNK_TOKENS * CHUNK_TOKENS
            chunk_end = min(end, chunk + CHUNK_TOKENS)
            first, last = offset[s] + position - start, offset[s] + chunk_end - start
            before = position - chunk
            after = CHUNK_TOKENS - before - (last - first)
            k_GLE, v_GLE = _gathered(kv_P2GOE, page_SM[s], chunk_end, chunk + CHUNK_TOKENS)
            L = chunk + CHUNK_TOKENS
            q_CHE = functional.pad(q_THE[first:last].float(), (0, 0, 0, 0, before, after))
            q_GJCE = q_CHE.reshape(CHUNK_TOKENS, G, H // G, E).permute(1, 2, 0, 3)
            score_GJCL = (q_GJCE.reshape(G, -1, E) @ k_GLE.transpose(1, 2) * scale).reshape(
                G, H // G, CHUNK_TOKENS, L
            )
            future_CL = torch.ones(CHUNK_TOKENS, L, dtype=torch.bool).triu(chunk + 1)
            weight_GJCL = score_GJCL.masked_fill(future_CL, float("-inf")).softmax(-1)
            o_GJCE = (weight_GJCL.reshape(G, -1, L) @ v_GLE).reshape(q_GJCE.shape)
            o_CHE = o_GJCE.permute(2, 0, 1, 3).reshape(CHUNK_TOKENS, H, E)
            o_THE[first:last] = _gated(o_CHE[before : CHUNK_TOKENS - after], qg_TH2E[first:last])
            position = chunk_end
    return o_THE.reshape(T, H * E)


def _gathered(
    kv_P2GOE: torch.Tensor, page_M: torch.Tensor, length: int, padded: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of the first `length` tokens as fp32 [G, padded, E], zeros after them."""
    _, _, G, page_tokens, E = kv_P2GOE.shape
    num_pages = -(-length // page_tokens)
    kv_2GLE = kv_P2GOE[page_M[:num_pages].long()].permute(1, 2, 0, 3, 4).reshape(2, G, -1, E)
    kv_2GLE = functional.pad(kv_2GLE[:, :, :length].float(), (0, 0, 0, padded - length))
    return kv_2GLE[0], kv_2GLE[1]


def _gated(o_xHE: torch.Tensor, qg_xH2E: torch.Tensor) -> torch.Tensor:
    gate = qg_xH2E[..., o_xHE.shape[-1] :].float()
    return (o_xHE * sigmoid(gate)).to(qg_xH2E.dtype)
