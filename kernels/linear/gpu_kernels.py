# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""Matrix products with stored weights [F, D], one tile of the result for a program.

Every element of a result is one chain of products over D, in steps whose size and order depend on
the constants of the launch only. Rows beyond T are not read; they are zeros in the product.
"""

import triton
import triton.language as tl


@triton.jit
def inverse_rms(
    x,  # the first of these rows
    num_rows,
    eps,
    X_ROW: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """[ROWS] of 1 / sqrt(mean(x^2) + eps), four rows at a time, so that one row costs little."""
    CHUNK: tl.constexpr = 1024 if D >= 1024 else triton.next_power_of_2(D)
    rows = tl.arange(0, ROWS)
    square_M = tl.zeros([ROWS], dtype=tl.float32)
    for first in range(0, num_rows, 4):
        four = first + tl.arange(0, 4)
        square_4C = tl.zeros([4, CHUNK], dtype=tl.float32)
        for first_d in tl.static_range(0, D, CHUNK):
            d = first_d + tl.arange(0, CHUNK)
            inside = (four < num_rows)[:, None] & (d < D)[None, :]
            x_4C = tl.load(x + four[:, None] * X_ROW + d[None, :], mask=inside, other=0.0)
            square_4C += x_4C.to(tl.float32) * x_4C.to(tl.float32)
        square_4 = tl.sum(square_4C, axis=1)
        square_M += tl.sum(tl.where(rows[:, None] == four[None, :], square_4[None, :], 0.0), axis=1)
    return 1.0 / tl.sqrt(square_M / D + eps)


@triton.jit
def load_rows(
    x, rows, num_rows, k, X_ROW: tl.constexpr, D: tl.constexpr, EVEN_D: tl.constexpr
):  # fmt: skip
    """x_MK"""
    inside = (rows < num_rows)[:, None]
    if not EVEN_D:
        inside &= (k < D)[None, :]
    return tl.load(x + rows[:, None] * X_ROW + k[None, :], mask=inside, other=0.0)


@triton.jit
def load_norm(norm, k, D: tl.constexpr, HAS_NORM: tl.constexpr):
    """norm_K, asked for a step early: two bytes a thread are too few for the pipeline of loads."""
    if HAS_NORM:
        return tl.load(norm + k, mask=k < D, other=0.0)
    else:
        return k


@triton.jit
def normed(x_MK, scale_M, norm_K, HAS_NORM: tl.constexpr):
    """Rounded to the dtype of x."""
    if HAS_NORM:
        y_MK = x_MK.to(tl.float32) * scale_M[:, None] * (1.0 + norm_K.to(tl.float32))[None, :]
        return y_MK.to(x_MK.dtype)
    else:
        return x_MK


@triton.jit
def load_columns(
    weight,
    f,
    is_column,
    k,
    D: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_F: tl.constexpr,
):
    """w_KF of rows `f` of the weights, each of which becomes a column."""
    at = weight + f.to(tl.int64)[None, :] * D + k[:, None]
    if EVEN_D and EVEN_F:
        return tl.load(at)
    elif EVEN_D:
        return tl.load(at, mask=is_column[None, :], other=0.0)
    else:
        return tl.load(at, mask=is_column[None, :] & (k < D)[:, None], other=0.0)


@triton.jit
def tile_of(program, num_tiles_M, num_tiles_F, GROUP: tl.constexpr):
    """(row tile, column tile): GROUP row tiles share the columns they read while these are near."""
    in_group = GROUP * num_tiles_F
    first = program // in_group * GROUP
    num_rows = tl.minimum(num_tiles_M - first, GROUP)
    return first + program % in_group % num_rows, program % in_group // num_rows


@triton.jit(do_not_specialize=["T"])
def linear_kernel(
    x,  # [T, D]
    norm,  # [D], if HAS_NORM
    weight,  # [F, D]
    residual,  # [T, F], if HAS_RESIDUAL
    y,  # [T, F]
    part,  # fp32 [SPLIT, T, F], if SPLIT > 1
    arrivals,
    T,
    EPS: tl.constexpr,
    X_ROW: tl.constexpr,
    RESIDUAL_ROW: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    STEPS: tl.constexpr = triton.cdiv(triton.cdiv(D, BLOCK_K), SPLIT)
    EVEN_D: tl.constexpr = D % (BLOCK_K * SPLIT) == 0
    EVEN_F: tl.constexpr = F % BLOCK_F == 0
    tile = tl.program_id(0)
    split = tl.program_id(1)
    tile_m, tile_f = tile_of(tile, tl.cdiv(T, BLOCK_M), triton.cdiv(F, BLOCK_F), GROUP)
    first_row = tile_m.to(tl.int64) * BLOCK_M
    num_rows = T - tile_m * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    f = tile_f * BLOCK_F + tl.arange(0, BLOCK_F)
    x += first_row * X_ROW
    scale_M = tl.full([BLOCK_M], 1.0, dtype=tl.float32)
    if HAS_NORM:
        scale_M = inverse_rms(x, num_rows, EPS, X_ROW, D, BLOCK_M)

    sum_MF = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
    first_k = split * STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
    norm_K = load_norm(norm, first_k, D, HAS_NORM)
    for step in range(0, STEPS):
        k = first_k + step * BLOCK_K
        x_MK = load_rows(x, rows, num_rows, k, X_ROW, D, EVEN_D)
        w_KF = load_columns(weight, f, f < F, k, D, EVEN_D, EVEN_F)
        x_MK = normed(x_MK, scale_M, norm_K, HAS_NORM)
        norm_K = load_norm(norm, k + BLOCK_K, D, HAS_NORM)
        sum_MF = tl.dot(x_MK, w_KF, sum_MF, input_precision="ieee")

    inside = (rows < num_rows)[:, None] & (f < F)[None, :]
    at_MF = (first_row + rows)[:, None] * F + f[None, :]
    residual_at_MF = residual + (first_row + rows)[:, None] * RESIDUAL_ROW + f[None, :]
    if SPLIT == 1:
        if HAS_RESIDUAL:
            sum_MF += tl.load(residual_at_MF, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + at_MF, sum_MF.to(y.dtype.element_ty), mask=inside)
    else:
        size = T.to(tl.int64) * F
        tl.store(part + split * size + at_MF, sum_MF, mask=inside)
        tl.debug_barrier()  # every thread's part is out before one thread says so
        if tl.atomic_add(arrivals + tile, 1) == SPLIT - 1:
            sum_MF = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
            for i in tl.static_range(0, SPLIT):
                sum_MF += tl.load(
                    part + i * size + at_MF, mask=inside, other=0.0, cache_modifier=".cg"
                )
            if HAS_RESIDUAL:
                sum_MF += tl.load(residual_at_MF, mask=inside, other=0.0).to(tl.float32)
            tl.store(y + at_MF, sum_MF.to(y.dtype.element_ty), mask=inside)
            tl.store(arrivals + tile, 0)


@triton.jit(do_not_specialize=["T"])
def swiglu_kernel(
    x,  # [T, D]
    norm,  # [D], if HAS_NORM
    gate_up,  # [2 F, D]
    hidden,  # [T, F]
    T,
    EPS: tl.constexpr,
    X_ROW: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    EVEN_D: tl.constexpr = D % BLOCK_K == 0
    EVEN_F: tl.constexpr = F % BLOCK_F == 0
    tile_m, tile_f = tile_of(tl.program_id(0), tl.cdiv(T, BLOCK_M), triton.cdiv(F, BLOCK_F), GROUP)
    first_row = tile_m.to(tl.int64) * BLOCK_M
    num_rows = T - tile_m * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    f = tile_f * BLOCK_F + tl.arange(0, BLOCK_F)
    x += first_row * X_ROW
    up = gate_up + F * D
    scale_M = tl.full([BLOCK_M], 1.0, dtype=tl.float32)
    if HAS_NORM:
        scale_M = inverse_rms(x, num_rows, EPS, X_ROW, D, BLOCK_M)

    gate_MF = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
    up_MF = tl.zeros([BLOCK_M, BLOCK_F], dtype=tl.float32)
    norm_K = load_norm(norm, tl.arange(0, BLOCK_K), D, HAS_NORM)
    for first_k in range(0, D, BLOCK_K):
        k = first_k + tl.arange(0, BLOCK_K)
        x_MK = load_rows(x, rows, num_rows, k, X_ROW, D, EVEN_D)
        gate_KF = load_columns(gate_up, f, f < F, k, D, EVEN_D, EVEN_F)
        up_KF = load_columns(up, f, f < F, k, D, EVEN_D, EVEN_F)
        x_MK = normed(x_MK, scale_M, norm_K, HAS_NORM)
        norm_K = load_norm(norm, k + BLOCK_K, D, HAS_NORM)
        gate_MF = tl.dot(x_MK, gate_KF, gate_MF, input_precision="ieee")
        up_MF = tl.dot(x_MK, up_KF, up_MF, input_precision="ieee")

    hidden_MF = gate_MF / (1.0 + tl.exp(-gate_MF)) * up_MF
    tl.store(
        hidden + (first_row + rows)[:, None] * F + f[None, :],
        hidden_MF.to(hidden.dtype.element_ty),
        mask=(rows < num_rows)[:, None] & (f < F)[None, :],
    )
