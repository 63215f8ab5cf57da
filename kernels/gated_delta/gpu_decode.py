# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""One decode step of Gated DeltaNet in one launch: a program per row and key head.

A program serves its key head's N / H value heads one after the other, a whole [K, V] state in
registers at a time, so each byte of state is read once and written once, and the gated norm sees
all of V. The next head's state is asked for before this one's output is finished.

No race: the channels of the convolution and the states are divided among key heads, distinct rows
have distinct slots, so each byte of the pools has one program that touches it. Within a program, a
barrier stands between reading a channel's columns and shifting them: warps may read copies of what
other warps own. Padding rows share scratch slot 0 and race there; their outputs are not looked at.

A row's bits depend on nothing but the row: every reduction lies inside one program.
"""

import triton
import triton.language as tl

from kernels.gated_delta.gpu_gates import log_decay, silu, write_strength


@triton.jit(do_not_specialize_on_alignment=["slots"])
def decode_kernel(
    mixed,  # [B, C]
    z,  # [B, N, V]
    b,  # [B, N]
    a,  # [B, N]
    conv_weight,  # [C, W]
    A_log,  # [N]
    dt_bias,  # [N]
    norm,  # [V]
    conv,  # [P, C, W - 1], updated
    state,  # [P, N, K, V], updated
    slots,  # [B]
    o,  # [B, N, V]
    MIXED_ROW: tl.constexpr,
    Z_ROW: tl.constexpr,
    B_ROW: tl.constexpr,
    A_ROW: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    QUERY_SCALE: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    GROUP: tl.constexpr = N // H
    TILES: tl.constexpr = V // BLOCK_V
    C: tl.constexpr = 2 * H * K + N * V
    in_K = tl.arange(0, K)
    in_V = tl.arange(0, BLOCK_V)
    in_tile = in_K[:, None] * V + in_V[None, :]
    states = state + (slot * N + h * GROUP) * K * V
    mixed += row * MIXED_ROW
    conv += slot * C * (W - 1)

    S = tl.load(states + in_tile)
    q = _convolve_one(mixed, conv_weight, conv, h * K + in_K, W)
    k = _convolve_one(mixed, conv_weight, conv, (H + h) * K + in_K, W)
    q = q / tl.sqrt(tl.sum(q * q, axis=0) + 1e-6) * QUERY_SCALE
    k = k / tl.sqrt(tl.sum(k * k, axis=0) + 1e-6)

    for i in range(GROUP):
        n = h * GROUP + i
        beta = write_strength(tl.load(b + row * B_ROW + n))
        g = log_decay(tl.load(a + row * A_ROW + n), tl.load(A_log + n), tl.load(dt_bias + n))
        x = ()
        squares = 0.0
        for j in tl.static_range(TILES):
            channel = 2 * H * K + n * V + j * BLOCK_V + in_V
            v = _convolve_one(mixed, conv_weight, conv, channel, W)
            S = S * tl.exp(g)
            u = beta * (v - tl.sum(S * k[:, None], axis=0))
            S = S + k[:, None] * u[None, :]
            tl.store(states + i * K * V + j * BLOCK_V + in_tile, S)
            x_tile = tl.sum(S * q[:, None], axis=0)
            squares += tl.sum(x_tile * x_tile, axis=0)
            x += (x_tile,)
            if j + 1 < TILES:
                S = tl.load(states + i * K * V + (j + 1) * BLOCK_V + in_tile)
            else:
                S = tl.load(
                    states + tl.minimum(i + 1, GROUP - 1) * K * V + in_tile, mask=i + 1 < GROUP
                )
        for j in tl.static_range(TILES):
            in_head = j * BLOCK_V + in_V
            gate = silu(tl.load(z + row * Z_ROW + n * V + in_head).to(tl.float32))
            y = x[j] / tl.sqrt(squares / V + EPS) * tl.load(norm + in_head) * gate
            tl.store(o + (row * N + n) * V + in_head, y.to(o.dtype.element_ty))


@triton.jit
def _convolve_one(mixed, conv_weight, conv, channel, W: tl.constexpr):
    """SiLU of the convolution's next output for some channels of one row. Shifts its columns."""
    tap = tl.arange(0, triton.next_power_of_2(W))[None, :]
    at = (channel * (W - 1))[:, None] + tap
    window = tl.load(conv + at, mask=tap < W - 1, other=0.0)
    window = tl.where(tap == W - 1, tl.load(mixed + channel)[:, None], window)
    weight = tl.load(conv_weight + (channel * W)[:, None] + tap, mask=tap < W, other=0.0)
    tl.debug_barrier()
    tl.store(conv + at - 1, window, mask=(tap > 0) & (tap < W))
    return silu(tl.sum(window.to(tl.float32) * weight.to(tl.float32), axis=1))
