# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""Prefill of Gated DeltaNet on the absolute 64-token grid, in four launches.

1. `convolve_kernel`, a program per piece of a slice and head of q, k or v: convolution and norms.
2. `transform_kernel`, a program per piece and value head: what does not depend on the state. With
   G the running sum of g in the piece, and j <= i,

       M = (I + A)^-1 diag(beta),  A_ij = beta_i exp(G_i - G_j) k_i.k_j below the diagonal
       P = L M,  L_ij = exp(G_i - G_j) q_i.k_j

3. `recur_kernel`, a program per slice, value head and BLOCK_V columns of the state, which stay in
   fp32 registers from the slice's first piece to its last:

       R = V - exp(G) K S,  O = exp(G) Q S + P R,  S = exp(G_last) S + K^T (exp(G_last - G) M R)

   It also writes the snapshots asked for, and the convolution columns of slots and snapshots: the
   channels are divided among a slice's programs, and no other program of the launch reads them.
4. `norm_kernel`, O in place, once all columns of a head are there.

Precision: the operands of step 3 are rounded to the activation dtype; all else is fp32 (where it is
a product, three products of bf16 or tf32 parts). Against fp64, over 2,048 tokens in bf16, the state
is then off 1.2 to 1.7 times and the output 1.5 to 2.1 times what rounding q, k and v alone costs,
provided that P is multiplied out beforehand: where keys resemble one another L (M R) with rounded
factors cancels badly, and was off four times as much. With fp32 activations nothing is rounded.

(I + A)^-1 is found by doubling: with D the inverses of the diagonal's blocks and B what of A joins
two of them, D - D B D are the inverses of blocks of twice the size. The product
(I - A)(I + A^2)(I + A^4)... is no shorter, and powers of A grow like binomial coefficients where
keys repeat, as they do in any text of one repeated token.
"""

import triton
import triton.language as tl

from kernels.gated_delta.gpu_gates import log_decay, silu, write_strength
from kernels.gated_delta.gpu_pieces import CHUNK, find_emit, find_slice, num_pieces, piece

HALF = tl.constexpr(32)
LEVELS = tl.constexpr(5)  # doublings from 1 to HALF
ROWS = tl.constexpr(16)  # convolved at a time


@triton.jit(
    do_not_specialize=["S", "Z", "T"],
    do_not_specialize_on_alignment=["slots", "starts", "offsets", "emit_rows", "emit_slots"],
)
def convolve_kernel(
    mixed,  # [T, C]
    conv_weight,  # [C, W]
    conv,  # [P, C, W - 1]
    slots,  # [S]
    starts,  # [S]
    offsets,  # [S + 1]
    emit_rows,  # [Z]
    emit_slots,  # [Z]
    qk_HTK,  # [2 H, T, K], written: q, then k
    v_NTV,  # written
    emit_T,  # written, at the last row of each piece: the slot for the snapshot after it, or -1
    S,
    Z,
    T,
    MIXED_ROW: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    QUERY_SCALE: tl.constexpr,
):
    head = tl.program_id(1)  # of q, then of k, then of v
    s, nth = find_slice(tl.program_id(0), starts, offsets, S)
    if s < 0:
        return
    start = tl.load(starts + s).to(tl.int32)
    slice_row = tl.load(offsets + s).to(tl.int32)
    first, count = piece(start, slice_row, tl.load(offsets + s + 1).to(tl.int32), nth)
    if head == 0:
        last = first + count - 1
        tl.store(emit_T + last, find_emit(last, emit_rows, emit_slots, Z))

    age = first - slice_row
    mixed += first.to(tl.int64) * MIXED_ROW
    C: tl.constexpr = 2 * H * K + N * V
    columns = conv + tl.load(slots + s).to(tl.int64) * C * (W - 1)
    for r in range(0, count, ROWS):
        i = r + tl.arange(0, ROWS)
        valid = (i < count)[:, None]
        uses_columns = (start > 0) & (age + r < W - 1)
        if head < 2 * H:
            in_K = tl.arange(0, K)
            x = _convolve(
                mixed, conv_weight, columns, head * K + in_K, i, count, age, uses_columns,
                MIXED_ROW, W,
            )  # fmt: skip
            scale = tl.where(head < H, QUERY_SCALE, 1.0)
            x = x / tl.sqrt(tl.sum(x * x, axis=1) + 1e-6)[:, None] * scale
            at = (head * T + first).to(tl.int64) * K + i[:, None] * K + in_K[None, :]
            tl.store(qk_HTK + at, x.to(qk_HTK.dtype.element_ty), mask=valid)
        else:
            in_V = tl.arange(0, V)
            n = head - 2 * H
            x = _convolve(
                mixed, conv_weight, columns, 2 * H * K + n * V + in_V, i, count, age, uses_columns,
                MIXED_ROW, W,
            )  # fmt: skip
            at = (n * T + first).to(tl.int64) * V + i[:, None] * V + in_V[None, :]
            tl.store(v_NTV + at, x.to(v_NTV.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["S", "T"], do_not_specialize_on_alignment=["starts", "offsets"])
def transform_kernel(
    qk_HTK,  # [2 H, T, K]
    b,  # [T, N]
    a,  # [T, N]
    A_log,  # [N]
    dt_bias,  # [N]
    starts,  # [S]
    offsets,  # [S + 1]
    M_NTC,  # written, as P and G
    P_NTC,
    G_NT,  # fp32
    S,
    T,
    B_ROW: tl.constexpr,
    A_ROW: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    n = tl.program_id(1)
    s, nth = find_slice(tl.program_id(0), starts, offsets, S)
    if s < 0:
        return
    start = tl.load(starts + s).to(tl.int32)
    slice_row = tl.load(offsets + s).to(tl.int32)
    first, count = piece(start, slice_row, tl.load(offsets + s + 1).to(tl.int32), nth)

    b += first.to(tl.int64) * B_ROW + n
    a += first.to(tl.int64) * A_ROW + n
    A_log_n = tl.load(A_log + n)
    dt_bias_n = tl.load(dt_bias + n)
    i = tl.arange(0, HALF)
    valid_1 = i < count
    valid_2 = HALF + i < count
    beta_1, g_1 = _gates(b, a, A_log_n, dt_bias_n, i, valid_1, B_ROW, A_ROW)
    beta_2, g_2 = _gates(b, a, A_log_n, dt_bias_n, HALF + i, valid_2, B_ROW, A_ROW)
    G_1 = tl.cumsum(g_1, axis=0)
    G_2 = tl.cumsum(g_2, axis=0) + tl.sum(g_1, axis=0)
    at = (n * T + first).to(tl.int64)
    tl.store(G_NT + at + i, G_1, mask=valid_1)
    tl.store(G_NT + at + HALF + i, G_2, mask=valid_2)

    # Halves of the piece: a quarter of M and P is zero, and small products need few registers.
    # Operands are loaded again where they are used again, for the same reason.
    h = n // (N // H)
    q_1 = qk_HTK + (h * T + first).to(tl.int64) * K
    k_1 = qk_HTK + ((H + h) * T + first).to(tl.int64) * K
    q_2 = q_1 + HALF * K
    k_2 = k_1 + HALF * K
    M_NTC += at * CHUNK
    P_NTC += at * CHUNK
    in_CC = i[:, None] * CHUNK + i[None, :]
    dtype: tl.constexpr = M_NTC.dtype.element_ty
    # Masked before exp: above the diagonal the difference is positive and may overflow.
    lower = i[:, None] >= i[None, :]

    decay = tl.exp(tl.where(lower, G_1[:, None] - G_1[None, :], float("-inf")))
    kk = _products(k_1, k_1, i, valid_1, valid_1, K, PRECISION)
    M_11 = _inverse(kk * decay * beta_1[:, None], PRECISION)
    qk = _products(q_1, k_1, i, valid_1, valid_1, K, PRECISION) * decay
    P = tl.dot(qk, M_11, input_precision=PRECISION)
    zero = tl.zeros([HALF, HALF], dtype=dtype)
    tl.store(M_NTC + in_CC, (M_11 * beta_1[None, :]).to(dtype), mask=valid_1[:, None])
    tl.store(P_NTC + in_CC, (P * beta_1[None, :]).to(dtype), mask=valid_1[:, None])
    tl.store(M_NTC + HALF + in_CC, zero, mask=valid_1[:, None])
    tl.store(P_NTC + HALF + in_CC, zero, mask=valid_1[:, None])

    in_CC += HALF * CHUNK
    decay = tl.exp(tl.where(lower, G_2[:, None] - G_2[None, :], float("-inf")))
    kk = _products(k_2, k_2, i, valid_2, valid_2, K, PRECISION)
    M_22 = _inverse(kk * decay * beta_2[:, None], PRECISION)
    qk = _products(q_2, k_2, i, valid_2, valid_2, K, PRECISION) * decay
    P = tl.dot(qk, M_22, input_precision=PRECISION)
    tl.store(M_NTC + HALF + in_CC, (M_22 * beta_2[None, :]).to(dtype), mask=valid_2[:, None])
    tl.store(P_NTC + HALF + in_CC, (P * beta_2[None, :]).to(dtype), mask=valid_2[:, None])

    decay = tl.exp(G_2[:, None] - G_1[None, :])
    kk = _products(k_2, k_1, i, valid_2, valid_1, K, PRECISION) * decay * beta_2[:, None]
    right = tl.dot(kk, M_11, input_precision=PRECISION)
    M_21 = -tl.dot(M_22, right, input_precision=PRECISION)
    tl.store(M_NTC + in_CC, (M_21 * beta_1[None, :]).to(dtype), mask=valid_2[:, None])
    P = tl.dot(qk, M_21, input_precision=PRECISION)
    qk = _products(q_2, k_1, i, valid_2, valid_1, K, PRECISION) * decay
    P = tl.dot(qk, M_11, P, input_precision=PRECISION)
    tl.store(P_NTC + in_CC, (P * beta_1[None, :]).to(dtype), mask=valid_2[:, None])


@triton.jit(do_not_specialize=["T"], do_not_specialize_on_alignment=["slots", "starts", "offsets"])
def recur_kernel(
    qk_HTK,  # [2 H, T, K]
    v_NTV,
    M_NTC,
    P_NTC,
    G_NT,
    emit_T,
    mixed,  # [T, C]
    slots,  # [S]
    starts,  # [S]
    offsets,  # [S + 1]
    conv,  # [P, C, W - 1], updated
    state,  # [P, N, K, V], updated
    o,  # [T, N, V], before the norm
    T,
    MIXED_ROW: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    s = tl.program_id(0)
    n = tl.program_id(1)
    tile = tl.program_id(2)
    start = tl.load(starts + s).to(tl.int32)
    slice_row = tl.load(offsets + s).to(tl.int32)
    end_row = tl.load(offsets + s + 1).to(tl.int32)
    slot = tl.load(slots + s).to(tl.int64)
    if end_row <= slice_row:
        return
    dtype: tl.constexpr = o.dtype.element_ty
    i = tl.arange(0, CHUNK)
    in_K = tl.arange(0, K)
    in_V = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    in_state = n * K * V + in_K[:, None] * V + in_V[None, :]
    at_state = state + slot * N * K * V + in_state
    h = n // (N // H)

    in_CK = i[:, None] * K + in_K[None, :]
    in_CV = i[:, None] * V + in_V[None, :]
    in_CC = i[:, None] * CHUNK + i[None, :]
    in_o = i[:, None] * (N * V) + n * V + in_V[None, :]

    S = tl.zeros([K, BLOCK_V], dtype=tl.float32)
    if start > 0:
        S = tl.load(at_state)
    pieces = num_pieces(start, end_row - slice_row)
    for nth in range(pieces):
        first, count = piece(start, slice_row, end_row, nth)
        valid = (i < count)[:, None]
        at = (n * T + first).to(tl.int64)
        at_q = (h * T + first).to(tl.int64) * K
        at_k = ((H + h) * T + first).to(tl.int64) * K
        k = tl.load(qk_HTK + at_k + in_CK, mask=valid, other=0.0)
        q = tl.load(qk_HTK + at_q + in_CK, mask=valid, other=0.0)
        v = tl.load(v_NTV + at * V + in_CV, mask=valid, other=0.0)
        M = tl.load(M_NTC + at * CHUNK + in_CC, mask=valid, other=0.0)
        P = tl.load(P_NTC + at * CHUNK + in_CC, mask=valid, other=0.0)
        G = tl.load(G_NT + at + i, mask=i < count, other=0.0)
        G_last = tl.load(G_NT + at + count - 1)

        rounded = S.to(dtype)
        known = tl.dot(k, rounded, input_precision=PRECISION)
        read = tl.dot(q, rounded, input_precision=PRECISION)
        decay = tl.exp(G)[:, None]
        R = (v.to(tl.float32) - decay * known).to(dtype)
        U = tl.dot(M, R, input_precision=PRECISION) * tl.exp(G_last - G)[:, None]
        S = tl.dot(tl.trans(k), U.to(dtype), S * tl.exp(G_last), input_precision=PRECISION)
        x = tl.dot(P, R, decay * read, input_precision=PRECISION)
        tl.store(o + first.to(tl.int64) * (N * V) + in_o, x.to(dtype), mask=valid)
        emit = tl.load(emit_T + first + count - 1).to(tl.int64)
        if emit >= 0:
            tl.store(state + emit * N * K * V + in_state, S)
    tl.store(at_state, S)

    # This program's share of the channels; snapshots first, as they may need the old columns.
    C: tl.constexpr = 2 * H * K + N * V
    TILES: tl.constexpr = V // BLOCK_V
    SHARE: tl.constexpr = (C + N * TILES - 1) // (N * TILES)
    in_share = tl.arange(0, BLOCK_C)
    channel = (n * TILES + tile) * SHARE + in_share
    mine = (in_share < SHARE) & (channel < C)
    old = conv + slot * C * (W - 1)
    for nth in range(pieces):
        first, count = piece(start, slice_row, end_row, nth)
        last = first + count - 1
        emit = tl.load(emit_T + last).to(tl.int64)
        if emit >= 0:
            new = conv + emit * C * (W - 1)
            _copy_columns(mixed, old, new, channel, mine, last, slice_row, start, MIXED_ROW, W)
    _copy_columns(mixed, old, old, channel, mine, end_row - 1, slice_row, start, MIXED_ROW, W)


@triton.jit(do_not_specialize=["num_heads"])
def norm_kernel(
    o,  # [T, N, V], in place
    z,  # [T, N, V]
    norm,  # [V]
    num_heads,  # T * N
    Z_ROW: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    HEADS: tl.constexpr,
    EPS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * HEADS + tl.arange(0, HEADS)
    valid = (at < num_heads)[:, None]
    in_V = tl.arange(0, V)
    at_o = at[:, None] * V + in_V[None, :]
    at_z = (at // N * Z_ROW + at % N * V)[:, None] + in_V[None, :]
    x = tl.load(o + at_o, mask=valid, other=0.0).to(tl.float32)
    gate = silu(tl.load(z + at_z, mask=valid, other=0.0).to(tl.float32))
    mean = tl.sum(x * x, axis=1) / V
    y = x / tl.sqrt(mean + EPS)[:, None] * tl.load(norm + in_V)[None, :] * gate
    tl.store(o + at_o, y.to(o.dtype.element_ty), mask=valid)


@triton.jit
def _convolve(
    mixed, conv_weight, columns, channel, i, count, age, uses_columns,
    MIXED_ROW: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """SiLU of the convolution for rows i of a piece of `count` rows, of which `mixed` is the first.

    The slice has `age` rows before the piece, and what is before the slice lies in `columns`.
    """
    y = tl.zeros([i.shape[0], channel.shape[0]], dtype=tl.float32)
    channels = channel[None, :]
    for tap in tl.static_range(W):
        at = (i - (W - 1 - tap))[:, None] * MIXED_ROW + channels
        in_slice = ((i < count) & (age + i >= W - 1 - tap))[:, None]
        x = tl.load(mixed + at, mask=in_slice, other=0.0)
        if uses_columns:  # the last tap has no row before the slice: all masked
            before = ((i < count) & (age + i < W - 1 - tap))[:, None]
            at = channels * (W - 1) + (age + i + tap)[:, None]
            x = tl.where(before, tl.load(columns + at, mask=before, other=0.0), x)
        y += x.to(tl.float32) * tl.load(conv_weight + channel * W + tap).to(tl.float32)[None, :]
    return silu(y)


@triton.jit
def _copy_columns(
    mixed, old, new, channel, mine, last, slice_row, start, MIXED_ROW: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """Write the columns as of row `last`: rows of the slice, before them what `old` holds."""
    tap = tl.arange(0, triton.next_power_of_2(W - 1))
    row = (last - (W - 2) + tap).to(tl.int64)
    inside = mine[:, None] & (tap < W - 1)[None, :]
    fresh = inside & (row >= slice_row)[None, :]
    x = tl.load(mixed + row[None, :] * MIXED_ROW + channel[:, None], mask=fresh, other=0.0)
    at = (channel * (W - 1))[:, None]
    if start > 0:
        is_old = inside & (row < slice_row)[None, :]
        in_old = at + (W - 1 + row - slice_row)[None, :]
        x = tl.where(is_old, tl.load(old + in_old, mask=is_old, other=0.0), x)
    tl.debug_barrier()  # `new` may be `old`
    tl.store(new + at + tap[None, :], x, mask=inside)


@triton.jit
def _gates(b, a, A_log, dt_bias, i, valid, B_ROW: tl.constexpr, A_ROW: tl.constexpr):
    """beta and g of one head for rows i; zero, which changes no state, where there is no row."""
    beta = write_strength(tl.load(b + i * B_ROW, mask=valid, other=0.0))
    g = log_decay(tl.load(a + i * A_ROW, mask=valid, other=0.0), A_log, dt_bias)
    return tl.where(valid, beta, 0.0), tl.where(valid, g, 0.0)


@triton.jit
def _products(x, y, i, valid_x, valid_y, K: tl.constexpr, PRECISION: tl.constexpr):
    """x y^T for the rows i of two [T, K]. y is loaded transposed, not transposed in registers."""
    BLOCK_K: tl.constexpr = min(K, 32)
    in_K = tl.arange(0, BLOCK_K)
    sums = tl.zeros([HALF, HALF], dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        x_iK = tl.load(x + first + i[:, None] * K + in_K[None, :], mask=valid_x[:, None], other=0.0)
        y_Ki = tl.load(y + first + i[None, :] * K + in_K[:, None], mask=valid_y[None, :], other=0.0)
        sums = tl.dot(x_iK, y_Ki, sums, input_precision=PRECISION)
    return sums


@triton.jit
def _inverse(A, PRECISION: tl.constexpr):
    """(I + A)^-1, where A is what of [HALF, HALF] lies below the diagonal."""
    i = tl.arange(0, HALF)
    joins = (i[:, None] // 2 == i[None, :] // 2) & (i[:, None] > i[None, :])
    inverses = tl.where(i[:, None] == i[None, :], 1.0, tl.where(joins, -A, 0.0))
    for level in range(1, LEVELS):
        block = i >> level
        joins = (block[:, None] >> 1 == block[None, :] >> 1) & (block[:, None] > block[None, :])
        right = tl.dot(tl.where(joins, A, 0.0), inverses, input_precision=PRECISION)
        inverses -= tl.dot(inverses, right, input_precision=PRECISION)
    return inverses
