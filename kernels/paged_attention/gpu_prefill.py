# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
"""Prefill in Triton: a program takes one head's queries of one chunk of the absolute 64-token grid.

It walks K and V of its sequence from the first token to the chunk's end, tiles at fixed places, so
a query's bits depend on what stands before it, and neither on where its slice was cut nor on who
else is in the step. The host does not know how slices lie on the grid: it starts as many programs
as T rows in S slices can need, each finds its chunk by counting, and those without one return. The
heads of a group run side by side, so K and V come from the L2 cache for all but one; the longest
walks start first.

S slices of T packed rows, H query heads, G key/value heads, E head dim, P pages of O tokens, M
pages per table row, C = 64 queries of a chunk, N tokens of a tile.
"""

import torch
import triton
import triton.language as tl

from kernels.dense_rows import with_dense_rows
from kernels.launch import Cost, launch
from kernels.paged_attention.gpu_tiles import (
    LOG2_E,
    LOWEST,
    check,
    load_tile,
    softened,
    store_gated,
    tile_tokens,
)

CHUNK_TOKENS = 64
_SLICES_AT_ONCE = 64  # that a program counts in one go
_CACHED_BYTES = 8 * 2**20


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
    check(q_THE, qg_TH2E, kv_P2GOE)
    T, H, E = q_THE.shape
    S, M = page_SM.shape
    G, page_tokens = kv_P2GOE.shape[2:4]
    if start_S.shape != (S,) or offset_S1.shape != (S + 1,):
        raise ValueError(f"{page_SM.shape=}, {start_S.shape=} and {offset_S1.shape=} do not fit")
    q_THE, qg_TH2E = with_dense_rows(q_THE), with_dense_rows(qg_TH2E)
    page_SM = with_dense_rows(page_SM)
    o_TF = torch.empty(T, H * E, dtype=q_THE.dtype, device=q_THE.device)
    # The n tokens of a slice lie in at most (n + 62) // 64 + 1 chunks.
    num_pieces = min(T // CHUNK_TOKENS + 2 * S, T)

    def cost() -> Cost:
        """Of slices of one length whose ends fill the table."""
        item = q_THE.element_size()
        kv_bytes = 2 * M * page_tokens * E * item  # of a KV head of a slice
        indices = page_SM.numel() * 4 + (2 * S + 1) * 4
        rows = 3 * T * H * E * item  # queries, gates, output
        before = M * page_tokens - triton.cdiv(T, S) / 2  # tokens that a query sees, on average
        walks = 1.0 * S
        if kv_bytes > _CACHED_BYTES:
            walks = max(triton.cdiv(T, CHUNK_TOKENS) * before / (M * page_tokens), walks)
        return Cost(
            necessary_bytes=rows + S * G * kv_bytes + indices,
            moved_bytes=rows + int(walks * G * kv_bytes) + indices,
            flops=int(4 * T * H * E * before),
        )

    launch(
        _attention_prefill_kernel,
        (H, num_pieces),
        q_THE,
        qg_TH2E,
        kv_P2GOE,
        page_SM,
        start_S.contiguous(),
        offset_S1.contiguous(),
        o_TF,
        scale * LOG2_E,
        S,
        page_SM.stride(0),
        cost=cost,
        num_warps=4,
        num_stages=2,
        H=H,
        G=G,
        E=E,
        PAGE=page_tokens,
        Q_ROW=q_THE.stride(0),
        QG_ROW=qg_TH2E.stride(0),
        CHUNK_TOKENS=CHUNK_TOKENS,
        BLOCK_E=triton.next_power_of_2(E),
        BLOCK_N=tile_tokens(kv_P2GOE),
        BLOCK_S=_SLICES_AT_ONCE,
    )
    return o_TF


@triton.jit
def _place_of(piece, starts, offsets, S, CHUNK_TOKENS: tl.constexpr, BLOCK_S: tl.constexpr):
    """Which slice the piece belongs to (-1: none) and which chunk of the absolute grid it is."""
    s = tl.arange(0, BLOCK_S)
    slice_id = -1
    chunk = 0
    before = 0
    for first in range(0, S, BLOCK_S):
        mask = first + s < S
        offset_S = tl.load(offsets + first + s, mask=mask, other=0)
        rows_S = tl.load(offsets + first + s + 1, mask=mask, other=0) - offset_S
        start_S = tl.load(starts + first + s, mask=mask, other=0)
        first_S = start_S // CHUNK_TOKENS
        end_S = (start_S + rows_S + CHUNK_TOKENS - 1) // CHUNK_TOKENS
        count_S = tl.where(rows_S > 0, end_S - first_S, 0)
        before_S = before + tl.cumsum(count_S, axis=0) - count_S
        here_S = (before_S <= piece) & (piece < before_S + count_S)
        slice_id += tl.sum(tl.where(here_S, first + s + 1, 0), axis=0)
        chunk += tl.sum(tl.where(here_S, first_S + piece - before_S, 0), axis=0)
        before += tl.sum(count_S, axis=0)
    return slice_id, chunk


@triton.jit
def _halves(x_CE, C: tl.constexpr, WIDTH: tl.constexpr):
    """The first and the second half of the columns."""
    return tl.split(tl.permute(tl.reshape(x_CE, [C, 2, WIDTH // 2]), [0, 2, 1]))


@triton.jit
def _walked(
    kv, pages, g, q_CE, sum_CE, most_C, weight_C, scale, begin, end,
    G: tl.constexpr, PAGE: tl.constexpr, E: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr, CHUNK_TOKENS: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Attend to the tokens from `begin` to `end`: all BEFORE the chunk, or those of the chunk."""
    c = tl.arange(0, CHUNK_TOKENS)
    n = tl.arange(0, BLOCK_N)
    page = tl.load(pages + begin // PAGE)
    for first in range(begin, end, BLOCK_N):
        k_NE = load_tile(kv, page, 0, g, first, end, G, PAGE, E, BLOCK_N, BLOCK_E, BEFORE)
        v_NE = load_tile(kv, page, 1, g, first, end, G, PAGE, E, BLOCK_N, BLOCK_E, BEFORE)
        score_CN = tl.dot(q_CE, tl.trans(k_NE), input_precision="ieee") * scale
        if not BEFORE:
            seen_CN = (first - begin + n)[None, :] <= c[:, None]
            score_CN = tl.where(seen_CN, score_CN, float("-inf"))
        score_CN, most_C, weight_C, keep_C = softened(score_CN, most_C, weight_C)
        sum_CE = tl.dot(
            score_CN.to(v_NE.dtype), v_NE, sum_CE * keep_C[:, None], input_precision="ieee"
        )
        page = tl.load(pages + tl.minimum(first + BLOCK_N, end - 1) // PAGE)
    return sum_CE, most_C, weight_C


@triton.jit(
    do_not_specialize=["S", "page_row"],
    do_not_specialize_on_alignment=["pages", "starts", "offsets"],
)
def _attention_prefill_kernel(
    q, qg, kv, pages, starts, offsets, o, scale, S, page_row,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, PAGE: tl.constexpr,
    Q_ROW: tl.constexpr, QG_ROW: tl.constexpr, CHUNK_TOKENS: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(0)
    g = h // (H // G) if G > 1 else 0
    piece = tl.num_programs(1) - 1 - tl.program_id(1)
    slice_id, chunk = _place_of(piece, starts, offsets, S, CHUNK_TOKENS, BLOCK_S)
    if slice_id < 0:
        return

    start = tl.load(starts + slice_id)
    offset = tl.load(offsets + slice_id)
    slice_end = start + tl.load(offsets + slice_id + 1) - offset
    end = tl.minimum(slice_end, (chunk + 1) * CHUNK_TOKENS)
    pages += slice_id.to(tl.int64) * page_row

    e = tl.arange(0, BLOCK_E)
    c = tl.arange(0, CHUNK_TOKENS)
    first_row = tl.maximum(start - chunk * CHUNK_TOKENS, 0)
    last_row = end - chunk * CHUNK_TOKENS
    row = (offset + chunk * CHUNK_TOKENS - start).to(tl.int64)
    q += row * Q_ROW + h * E
    inside_C = tl.minimum(tl.maximum(c, first_row), last_row - 1)
    q_CE = tl.load(q + inside_C[:, None] * Q_ROW + e[None, :], mask=(e < E)[None, :], other=0.0)
    sum_CE = tl.zeros([CHUNK_TOKENS, BLOCK_E], dtype=tl.float32)
    most_C = tl.full([CHUNK_TOKENS], LOWEST, dtype=tl.float32)
    weight_C = tl.zeros([CHUNK_TOKENS], dtype=tl.float32)
    sum_CE, most_C, weight_C = _walked(
        kv, pages, g, q_CE, sum_CE, most_C, weight_C, scale, 0, chunk * CHUNK_TOKENS,
        G, PAGE, E, BLOCK_N, BLOCK_E, CHUNK_TOKENS, True,
    )  # fmt: skip
    sum_CE, most_C, weight_C = _walked(
        kv, pages, g, q_CE, sum_CE, most_C, weight_C, scale, chunk * CHUNK_TOKENS, end,
        G, PAGE, E, 16, BLOCK_E, CHUNK_TOKENS, False,  # small tiles: masks need registers, too
    )  # fmt: skip
    # A quarter at a time: all sums and all gates together do not fit in the registers.
    QUARTER: tl.constexpr = BLOCK_E // 4
    qg += row * QG_ROW
    o += row * (H * E)
    mask_C = (c >= first_row) & (c < last_row)
    low_CE, high_CE = _halves(sum_CE / weight_C[:, None], CHUNK_TOKENS, BLOCK_E)
    one_CE, two_CE = _halves(low_CE, CHUNK_TOKENS, 2 * QUARTER)
    three_CE, four_CE = _halves(high_CE, CHUNK_TOKENS, 2 * QUARTER)
    store_gated(o, qg, c, h, mask_C, one_CE, 0, H, E, QG_ROW, QUARTER)
    store_gated(o, qg, c, h, mask_C, two_CE, QUARTER, H, E, QG_ROW, QUARTER)
    store_gated(o, qg, c, h, mask_C, three_CE, 2 * QUARTER, H, E, QG_ROW, QUARTER)
    store_gated(o, qg, c, h, mask_C, four_CE, 3 * QUARTER, H, E, QG_ROW, QUARTER)
