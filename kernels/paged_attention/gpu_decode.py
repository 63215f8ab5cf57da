# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
"""Decode in Triton: a row's tokens are split among programs, and the last to finish merges.

A program takes one KV head and a run of splits, and its dot products take all query heads of that
KV head (of all W tokens of a window) as rows: every byte of K and V is read once. A row of L tokens
is cut into splits of 64 * n tokens, n the least that gives at most 192 / G splits, so that one row
alone fills a GPU and its cuts depend on L only. FAN splits in a row make a group. Each split leaves
its sums in a workspace; who completes a group merges it, and who completes the last group merges
the groups and gates the result. Both merges run in the order of the tokens, so it does not matter
who does them, nor how many splits make a run: that depends on the batch, no bit does.

B rows of W tokens, H query heads, G key/value heads, J = H / G, E head dim, P pages of O tokens, M
pages per table row; R = W * J rows of a program's dot products, N tokens of a tile.
"""

import torch
import triton
import triton.language as tl

from kernels.arrivals import NUM_ARRIVALS, arrivals
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

SPLIT_TOKENS = 64
FAN = 8
_ROWS_PER_LAUNCH = 64  # of B * W; keeps the workspace below 128 MiB where J * E is 2048
_MERGED_AT_ONCE = 8192  # elements of the partial sums that a merge holds in registers


def attention_decode(
    q_BHE: torch.Tensor,
    qg_BH2E: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    page_BM: torch.Tensor,
    length_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    if q_BHE.shape[0] != length_B.shape[0]:
        raise ValueError(f"{length_B.shape=} does not fit {q_BHE.shape=}")
    return attention_window(
        q_BHE, qg_BH2E, kv_P2GOE=kv_P2GOE, page_BM=page_BM, length_B=length_B, scale=scale
    )


def attention_window(
    q_THE: torch.Tensor,
    qg_TH2E: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    page_BM: torch.Tensor,
    length_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    check(q_THE, qg_TH2E, kv_P2GOE)
    T, H, E = q_THE.shape
    B = length_B.shape[0]
    if page_BM.shape[0] != B or T % max(B, 1) or (T and not B):
        raise ValueError(f"{page_BM.shape=} and {length_B.shape=} do not fit {q_THE.shape=}")
    o_TF = torch.empty(T, H * E, dtype=q_THE.dtype, device=q_THE.device)
    if not T:
        return o_TF
    W = T // B
    q_THE, qg_TH2E = with_dense_rows(q_THE), with_dense_rows(qg_TH2E)
    page_BM, length_B = with_dense_rows(page_BM), length_B.contiguous()
    G = kv_P2GOE.shape[2]
    counters = G * (1 + triton.cdiv(_most_splits(G), FAN))  # of a row
    rows = max(1, min(_ROWS_PER_LAUNCH // W, NUM_ARRIVALS // counters))
    for first in range(0, B, rows):
        few, tokens = slice(first, first + rows), slice(first * W, (first + rows) * W)
        _launch(
            q_THE[tokens], qg_TH2E[tokens], kv_P2GOE, page_BM[few], length_B[few], scale,
            o_TF[tokens],
        )  # fmt: skip
    return o_TF


def _launch(
    q_THE: torch.Tensor,
    qg_TH2E: torch.Tensor,
    kv_P2GOE: torch.Tensor,
    page_BM: torch.Tensor,
    length_B: torch.Tensor,
    scale: float,
    o_TF: torch.Tensor,
) -> None:
    T, H, E = q_THE.shape
    B, M = page_BM.shape
    G, page_tokens = kv_P2GOE.shape[2:4]
    W = T // B
    R = W * (H // G)
    most_splits = _most_splits(G)
    num_splits = min(most_splits, triton.cdiv(M * page_tokens, SPLIT_TOKENS))  # of a full table row
    num_slots = num_splits + triton.cdiv(num_splits, FAN)
    run = 1
    while run < FAN and 64 * run <= B * G:  # a row keeps enough programs to fill a GPU with others
        run *= 2
    sums = torch.empty(B * G * num_slots, R, E, dtype=torch.float32, device=q_THE.device)
    stats = torch.empty(B * G * num_slots, 2, R, dtype=torch.float32, device=q_THE.device)
    BLOCK_E = triton.next_power_of_2(E)
    BLOCK_M = triton.next_power_of_2(R)

    def cost() -> Cost:
        """Of rows as long as the table is wide."""
        item = q_THE.element_size()
        rows = 3 * T * H * E * item  # queries, gates, output
        tokens = M * page_tokens
        kv = 2 * B * tokens * G * E * item
        necessary = rows + kv + (B * M + B) * 4
        split_tokens = SPLIT_TOKENS * triton.cdiv(tokens, SPLIT_TOKENS * most_splits)
        parts = triton.cdiv(tokens, split_tokens)  # less than there is room for
        if parts > FAN:
            parts += triton.cdiv(parts, FAN)
        workspace = 2 * 4 * B * G * parts * R * (E + 2)
        return Cost(
            necessary_bytes=necessary,
            moved_bytes=necessary + workspace,
            flops=4 * T * H * M * page_tokens * E,
        )

    launch(
        _attention_decode_kernel,
        (B * G, triton.cdiv(num_splits, run)),
        q_THE,
        qg_TH2E,
        kv_P2GOE,
        page_BM,
        length_B,
        o_TF,
        sums,
        stats,
        arrivals(q_THE.device),
        scale * LOG2_E,
        page_BM.stride(0),
        num_splits,
        run,
        cost=cost,
        num_warps=4,
        num_stages=3,
        max_registers=168 if R <= 16 else 255,  # three or two fit a multiprocessor's shared memory
        W=W,
        G=G,
        J=H // G,
        E=E,
        PAGE=page_tokens,
        Q_ROW=q_THE.stride(0),
        QG_ROW=qg_TH2E.stride(0),
        SPLIT_TOKENS=SPLIT_TOKENS,
        MOST_SPLITS=most_splits,
        FAN=FAN,
        BLOCK_R=max(16, triton.next_power_of_2(R)),
        BLOCK_M=BLOCK_M,
        BLOCK_E=BLOCK_E,
        BLOCK_N=tile_tokens(kv_P2GOE),
        AT_ONCE=min(max(_MERGED_AT_ONCE // (BLOCK_M * BLOCK_E), 1), FAN),
        MOST_GROUPS=triton.next_power_of_2(triton.cdiv(most_splits, FAN)),
    )


def _most_splits(G: int) -> int:
    return max(192 // G, FAN)


@triton.jit
def _store_sums(
    sums, stats, slot, sum_RE, most_R, weight_R,
    R: tl.constexpr, E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, BLOCK_R)
    e = tl.arange(0, BLOCK_E)
    at = sums + ((slot * R + r)[:, None] * E + e[None, :])
    tl.store(at, sum_RE, mask=(r < R)[:, None] & (e < E)[None, :], cache_modifier=".cg")
    tl.store(stats + slot * (2 * R) + r, most_R, mask=r < R, cache_modifier=".cg")
    tl.store(stats + slot * (2 * R) + R + r, weight_R, mask=r < R, cache_modifier=".cg")


@triton.jit
def _merged(
    sums, stats, slot, count,
    R: tl.constexpr, E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
    MOST: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Sums, maximum and weight of `count` <= MOST partial ones from `slot`, added in order.

    No weight at all is 1: a row of padding stays zero.
    """
    r = tl.arange(0, BLOCK_M)
    e = tl.arange(0, BLOCK_E)
    i = tl.arange(0, MOST)
    at_IR = stats + (slot + i)[:, None] * (2 * R) + r[None, :]
    mask_IR = (i < count)[:, None] & (r < R)[None, :]
    most_IR = tl.load(at_IR, mask=mask_IR, other=LOWEST, cache_modifier=".cg")
    weight_IR = tl.load(at_IR + R, mask=mask_IR, other=0.0, cache_modifier=".cg")
    most_R = tl.max(most_IR, axis=0)
    weight_R = tl.sum(weight_IR * tl.exp2(most_IR - most_R[None, :]), axis=0)
    sum_RE = tl.zeros([BLOCK_M, BLOCK_E], dtype=tl.float32)
    for first in range(0, count, AT_ONCE):
        for ahead in tl.static_range(AT_ONCE):
            rows = tl.where(count > first + ahead, R, 0)  # none behind the last
            at = slot + first + ahead
            part_most_R = tl.load(
                stats + at * (2 * R) + r,
                mask=r < rows,
                other=LOWEST,
                cache_modifier=".cg",
            )
            part_RE = tl.load(
                sums + at * (R * E) + r[:, None] * E + e[None, :],
                mask=(r < rows)[:, None] & (e < E)[None, :],
                other=0.0,
                cache_modifier=".cg",
            )
            sum_RE += part_RE * tl.exp2(part_most_R - most_R)[:, None]
    return sum_RE, most_R, tl.where(weight_R > 0, weight_R, 1.0)


@triton.jit
def _store_rows(
    o, qg, b, g, o_RE, W: tl.constexpr, G: tl.constexpr, J: tl.constexpr, E: tl.constexpr,
    QG_ROW: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Gate and write the query heads of KV head g, in all W rows of b."""
    H: tl.constexpr = G * J
    r = tl.arange(0, BLOCK_R)
    o += b * (W * H * E) + g * (J * E)
    qg += b * (W * QG_ROW) + g * (J * 2 * E)
    store_gated(o, qg, r // J, r % J, r < W * J, o_RE, 0, H, E, QG_ROW, BLOCK_E)


@triton.jit(
    do_not_specialize=["page_row", "num_splits", "run"],
    do_not_specialize_on_alignment=["pages", "length"],
)
def _attention_decode_kernel(
    q, qg, kv, pages, length, o, sums, stats, arrived, scale, page_row, num_splits, run,
    W: tl.constexpr, G: tl.constexpr, J: tl.constexpr, E: tl.constexpr, PAGE: tl.constexpr,
    Q_ROW: tl.constexpr, QG_ROW: tl.constexpr, SPLIT_TOKENS: tl.constexpr,
    MOST_SPLITS: tl.constexpr, FAN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, AT_ONCE: tl.constexpr, MOST_GROUPS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)  # of all rows: b * G + g; so few that int32 counts elements
    b, g = head // G, head % G
    first_split = tl.program_id(1) * run
    R: tl.constexpr = W * J
    tokens = tl.load(length + b)
    split_tokens = SPLIT_TOKENS * tl.maximum(tl.cdiv(tokens, SPLIT_TOKENS * MOST_SPLITS), 1)
    row_splits = tl.maximum(tl.cdiv(tokens, split_tokens), 1)  # padding: one, without tokens
    if first_split >= row_splits:
        return

    r = tl.arange(0, BLOCK_R)
    e = tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    q += b * (W * Q_ROW) + g * (J * E)
    at_q = (r // J * Q_ROW + r % J * E)[:, None] + e[None, :]
    q_RE = tl.load(q + at_q, mask=(r < R)[:, None] & (e < E)[None, :], other=0.0)
    seen_R = tl.minimum(tokens - (W - 1) + r // J, tokens)  # tokens that a row may see
    row_pages = pages + b * page_row
    num_slots = num_splits + tl.cdiv(num_splits, FAN)
    slot = head * num_slots
    last_split = tl.minimum(first_split + run, row_splits)
    for split in range(first_split, last_split):
        begin = split * split_tokens
        end = tl.minimum(begin + split_tokens, tokens)
        sum_RE = tl.zeros([BLOCK_R, BLOCK_E], dtype=tl.float32)
        most_R = tl.full([BLOCK_R], LOWEST, dtype=tl.float32)
        weight_R = tl.zeros([BLOCK_R], dtype=tl.float32)
        page = tl.load(row_pages + begin // PAGE)
        for first in range(begin, end, BLOCK_N):
            k_NE = load_tile(kv, page, 0, g, first, end, G, PAGE, E, BLOCK_N, BLOCK_E, False)
            v_NE = load_tile(kv, page, 1, g, first, end, G, PAGE, E, BLOCK_N, BLOCK_E, False)
            score_RN = tl.dot(q_RE, tl.trans(k_NE), input_precision="ieee") * scale
            visible_RN = (first + n)[None, :] < tl.minimum(seen_R, end)[:, None]
            score_RN = tl.where(visible_RN, score_RN, float("-inf"))
            score_RN, most_R, weight_R, keep_R = softened(score_RN, most_R, weight_R)
            sum_RE = tl.dot(
                score_RN.to(v_NE.dtype), v_NE, sum_RE * keep_R[:, None], input_precision="ieee"
            )
            page = tl.load(row_pages + tl.minimum(first + BLOCK_N, end - 1) // PAGE)
        _store_sums(sums, stats, slot + split, sum_RE, most_R, weight_R, R, E, BLOCK_R, BLOCK_E)

    group = first_split // FAN
    group_splits = tl.minimum(FAN, row_splits - group * FAN)
    counter = arrived + head * (1 + tl.cdiv(MOST_SPLITS, FAN))
    tl.debug_barrier()  # all threads have stored before one of them says so
    before = tl.atomic_add(counter + 1 + group, last_split - first_split, sem="acq_rel")
    if before + last_split - first_split < group_splits:
        return

    tl.store(counter + 1 + group, 0)
    sum_RE, most_R, weight_R = _merged(
        sums, stats, slot + group * FAN, group_splits, R, E, BLOCK_M, BLOCK_E, FAN, AT_ONCE
    )
    num_groups = tl.cdiv(row_splits, FAN)
    if num_groups == 1:
        o_RE = sum_RE / weight_R[:, None]
        _store_rows(o, qg, b, g, o_RE, W, G, J, E, QG_ROW, BLOCK_M, BLOCK_E)
        return

    slot += num_splits
    _store_sums(sums, stats, slot + group, sum_RE, most_R, weight_R, R, E, BLOCK_M, BLOCK_E)
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="acq_rel")
    if before + 1 < num_groups:
        return

    tl.store(counter, 0)
    sum_RE, most_R, weight_R = _merged(
        sums, stats, slot, num_groups, R, E, BLOCK_M, BLOCK_E, MOST_GROUPS, AT_ONCE
    )
    o_RE = sum_RE / weight_R[:, None]
    _store_rows(o, qg, b, g, o_RE, W, G, J, E, QG_ROW, BLOCK_M, BLOCK_E)
