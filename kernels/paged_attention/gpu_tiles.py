# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
"""What decode and prefill in Triton share: tiles of K and V, one step of softmax, the gate.

K and V come in tiles of BLOCK_N tokens that never cross a page, in the order of the tokens, and
softmax runs online over them. Scores are in powers of two: `scale` holds log2(e). Whatever else is
to know about how K and V are stored stands in `load_tile`.
"""

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
LOWEST = tl.constexpr(-3.0e38)  # the maximum of no scores; finite, so that differences are too
_TILE_BYTES = 16 * 1024


def check(q_THE: torch.Tensor, qg_TH2E: torch.Tensor, kv_P2GOE: torch.Tensor) -> None:
    T, H, E = q_THE.shape
    if qg_TH2E.shape != (T, H, 2 * E):
        raise ValueError(f"{q_THE.shape=} does not fit {qg_TH2E.shape=}")
    if kv_P2GOE.shape[1] != 2 or kv_P2GOE.shape[4] != E or H % kv_P2GOE.shape[2]:
        raise ValueError(f"{q_THE.shape=} does not fit {kv_P2GOE.shape=}")
    if kv_P2GOE.shape[3] % 16 or not kv_P2GOE.is_contiguous():
        raise ValueError("pages must be contiguous and hold a multiple of 16 tokens")
    if qg_TH2E.dtype != q_THE.dtype or kv_P2GOE.dtype != q_THE.dtype:
        raise ValueError(f"{q_THE.dtype=}, {qg_TH2E.dtype=} and {kv_P2GOE.dtype=} differ")


def tile_tokens(kv_P2GOE: torch.Tensor) -> int:
    """Tokens of a tile: as many as make 16 KiB, so that two of K and two of V fit everywhere."""
    row_bytes = triton.next_power_of_2(kv_P2GOE.shape[4]) * kv_P2GOE.element_size()
    tokens = 64
    while tokens > 16 and (kv_P2GOE.shape[3] % tokens or tokens * row_bytes > _TILE_BYTES):
        tokens //= 2
    return tokens


@triton.jit
def load_tile(
    kv, page, part: tl.constexpr, g, first, end,
    G: tl.constexpr, PAGE: tl.constexpr, E: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N, BLOCK_E]: K (part 0) or V (1) of the tokens from `first`, zeros from `end` on.

    WHOLE says that `end` lies behind the tile.
    """
    n = tl.arange(0, BLOCK_N)
    e = tl.arange(0, BLOCK_E)
    row = ((page.to(tl.int64) * 2 + part) * G + g) * PAGE + first % PAGE
    at_NE = kv + ((row + n)[:, None] * E + e[None, :])
    if WHOLE and E == BLOCK_E:
        return tl.load(at_NE)
    elif WHOLE:
        return tl.load(at_NE, mask=(e < E)[None, :], other=0.0)
    elif E == BLOCK_E:
        return tl.load(at_NE, mask=(first + n < end)[:, None], other=0.0)
    else:
        mask_NE = (first + n < end)[:, None] & (e < E)[None, :]
        return tl.load(at_NE, mask=mask_NE, other=0.0)


@triton.jit
def softened(score_RN, most_R, weight_R):
    """(weights of these tokens, new maximum, new sum of weights, what earlier sums shrink by)."""
    now_R = tl.maximum(most_R, tl.max(score_RN, axis=1))
    score_RN = tl.exp2(score_RN - now_R[:, None])
    keep_R = tl.exp2(most_R - now_R)
    return score_RN, now_R, weight_R * keep_R + tl.sum(score_RN, axis=1), keep_R


@triton.jit
def store_gated(
    o, qg, row_R, head_R, mask_R, o_RE, first_e: tl.constexpr,
    H: tl.constexpr, E: tl.constexpr, QG_ROW: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Multiply WIDTH dims from `first_e` by their gate, and write them to row and head."""
    e = first_e + tl.arange(0, WIDTH)
    mask_RE = mask_R[:, None] & (e < E)[None, :]
    gate = qg + (row_R * QG_ROW + head_R * (2 * E) + E)[:, None] + e[None, :]
    gate_RE = tl.load(gate, mask=mask_RE, other=0.0).to(tl.float32)
    at = o + (row_R * (H * E) + head_R * E)[:, None] + e[None, :]
    o_RE = o_RE / (1.0 + tl.exp(-gate_RE))
    tl.store(at, o_RE.to(o.dtype.element_ty), mask=mask_RE)
