"""What Gated DeltaNet means, in plain torch, everything in fp32 until the last cast.

Decode is the recurrence, one row at a time. Prefill is the chunked form, one slice at a time and
one chunk of the absolute 64-token grid at a time, padded to the whole chunk with tokens that leave
the state as it is (beta, g, q and k zero). So no shape, and no row's bits, depend on the batch or
on where a prefill was cut on the grid.
"""

import torch
from torch.nn import functional

from kernels.elementwise import rsqrt, sigmoid, silu, softplus
from kernels.gated_delta.weights import DeltaNetWeights

CHUNK_TOKENS = 64


def gated_delta_decode(
    mixed_BC: torch.Tensor,
    z_BNV: torch.Tensor,
    b_BN: torch.Tensor,
    a_BN: torch.Tensor,
    weights: DeltaNetWeights,
    *,
    conv_PCX: torch.Tensor,
    state_PNKV: torch.Tensor,
    slot_B: torch.Tensor,
) -> torch.Tensor:
    o_BNV = torch.empty_like(z_BNV, memory_format=torch.contiguous_format)
    for b, slot in enumerate(slot_B.tolist()):
        columns_WC = torch.cat((conv_PCX[slot].T, mixed_BC[b : b + 1]))
        conv_PCX[slot] = columns_WC[1:].T
        q_NK, k_NK, v_NV = _heads(_convolved(columns_WC, weights)[0], weights, state_PNKV.shape[1:])
        beta_N, g_N = _gates(b_BN[b], a_BN[b], weights)
        state_NKV = state_PNKV[slot]  # a view: the updates below land in the pool
        state_NKV *= g_N.exp()[:, None, None]
        u_NV = beta_N[:, None] * (v_NV - torch.einsum("nkv,nk->nv", state_NKV, k_NK))
        state_NKV += torch.einsum("nk,nv->nkv", k_NK, u_NV)
        o_NV = torch.einsum("nkv,nk->nv", state_NKV, q_NK)
        o_BNV[b] = _gated_norm(o_NV, z_BNV[b], weights)
    return o_BNV.flatten(1)


def gated_delta_prefill(
    mixed_TC: torch.Tensor,
    z_TNV: torch.Tensor,
    b_TN: torch.Tensor,
    a_TN: torch.Tensor,
    weights: DeltaNetWeights,
    *,
    conv_PCX: torch.Tensor,
    state_PNKV: torch.Tensor,
    slot_S: torch.Tensor,
    start_S: torch.Tensor,
    offset_S1: torch.Tensor,
    emit_row_Z: torch.Tensor | None = None,
    emit_slot_Z: torch.Tensor | None = None,
) -> torch.Tensor:
    emits = snapshots(slot_S, start_S, offset_S1, emit_row_Z, emit_slot_Z)
    X = conv_PCX.shape[2]
    o_TNV = torch.empty_like(z_TNV, memory_format=torch.contiguous_format)
    offset, starts = offset_S1.tolist(), start_S.tolist()
    for s, slot in enumerate(slot_S.tolist()):
        start, end = starts[s], starts[s] + offset[s + 1] - offset[s]
        if start == end:
            continue
        if start == 0:
            conv_PCX[slot] = 0
            state_PNKV[slot] = 0
        state_NKV = state_PNKV[slot].clone()
        columns_XC = conv_PCX[slot].T
        position = start
        while position < end:
            chunk_end = min(end, position // CHUNK_TOKENS * CHUNK_TOKENS + CHUNK_TOKENS)
            rows = slice(offset[s] + position - start, offset[s] + chunk_end - start)
            columns_tC = torch.cat((columns_XC, mixed_TC[rows]))
            columns_XC = columns_tC[-X:]
            q_tNK, k_tNK, v_tNV = _heads(
                _convolved(columns_tC, weights), weights, state_PNKV.shape[1:]
            )
            beta_tN, g_tN = _gates(b_TN[rows], a_TN[rows], weights)
            before = position % CHUNK_TOKENS
            after = CHUNK_TOKENS - before - (chunk_end - position)
            q_NCK, k_NCK, v_NCV, beta_NC, g_NC = (
                functional.pad(
                    x.movedim(0, 1), (0, 0) * (x.ndim - 2) + (before, after)
                ).contiguous()
                for x in (q_tNK, k_tNK, v_tNV, beta_tN, g_tN)
            )
            o_NCV, state_NKV = _chunk(q_NCK, k_NCK, v_NCV, beta_NC, g_NC, state_NKV)
            o_tNV = o_NCV[:, before : CHUNK_TOKENS - after].movedim(1, 0)
            o_TNV[rows] = _gated_norm(o_tNV, z_TNV[rows], weights)
            position = chunk_end
            if (emit := emits.get(rows.stop - 1)) is not None:
                conv_PCX[emit] = columns_XC.T
                state_PNKV[emit] = state_NKV
        conv_PCX[slot] = columns_XC.T
        state_PNKV[slot] = state_NKV
    return o_TNV.flatten(1)


def snapshots(
    slot_S: torch.Tensor,
    start_S: torch.Tensor,
    offset_S1: torch.Tensor,
    emit_row_Z: torch.Tensor | None,
    emit_slot_Z: torch.Tensor | None,
) -> dict[int, int]:
    """Slot by packed row. Raises ValueError for rows that end no chunk and for slots in use."""
    if emit_row_Z is None or emit_slot_Z is None:
        if emit_row_Z is not emit_slot_Z:
            raise ValueError("snapshots need rows and slots")
        return {}
    rows, slots = emit_row_Z.tolist(), emit_slot_Z.tolist()
    used = [*slot_S.tolist(), *slots]
    if len(rows) != len(slots) or len(set(rows)) != len(rows):
        raise ValueError(f"{rows=} and {slots=} do not pair, or rows repeat")
    if any(slot and used.count(slot) > 1 for slot in slots):
        raise ValueError(f"snapshots go to {slots}, the slices' slots are {slot_S.tolist()}")
    starts, offset = start_S.tolist(), offset_S1.tolist()
    ends: set[int] = set()
    for start, first, end in zip(starts, offset, offset[1:], strict=False):
        if first < end:
            ends.add(end - 1)
        ends.update(range(first - start % CHUNK_TOKENS + CHUNK_TOKENS - 1, end, CHUNK_TOKENS))
    if not ends.issuperset(rows):
        raise ValueError(f"no chunk ends at rows {sorted(set(rows) - ends)}")
    return dict(zip(rows, slots, strict=True))


def _chunk(
    q_NCK: torch.Tensor,
    k_NCK: torch.Tensor,
    v_NCV: torch.Tensor,
    beta_NC: torch.Tensor,
    g_NC: torch.Tensor,
    state_NKV: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of one chunk and the state after it."""
    C = q_NCK.shape[1]
    G_NC = g_NC.cumsum(-1)
    below_CC = torch.ones(C, C, dtype=torch.bool).tril()
    # Masked before exp: above the diagonal the difference is positive and may overflow.
    decay_NCC = (G_NC[:, :, None] - G_NC[:, None, :]).masked_fill(~below_CC, float("-inf")).exp()
    A_NCC = (beta_NC[:, :, None] * (k_NCK @ k_NCK.mT) * decay_NCC).tril(-1)
    right = beta_NC[:, :, None] * torch.cat((v_NCV, G_NC.exp()[:, :, None] * k_NCK), dim=-1)
    solved = torch.linalg.solve_triangular(A_NCC, right, upper=False, unitriangular=True)
    U_NCV, W_NCK = solved.split((v_NCV.shape[-1], k_NCK.shape[-1]), dim=-1)
    new_NCV = U_NCV - W_NCK @ state_NKV
    o_NCV = (G_NC.exp()[:, :, None] * q_NCK) @ state_NKV + (
        (q_NCK @ k_NCK.mT) * decay_NCC
    ) @ new_NCV
    last_N1 = G_NC[:, -1:]
    k_decayed_NCK = (last_N1 - G_NC).exp()[:, :, None] * k_NCK
    return o_NCV, last_N1.exp()[:, :, None] * state_NKV + k_decayed_NCK.mT @ new_NCV


def _convolved(columns_tC: torch.Tensor, weights: DeltaNetWeights) -> torch.Tensor:
    """SiLU of the causal convolution for every row that has its W - 1 predecessors before it."""
    W = weights.conv_CW.shape[1]
    columns_tC = columns_tC.float()
    conv_CW = weights.conv_CW.float()
    num_rows = columns_tC.shape[0] - W + 1
    y_tC = columns_tC[:num_rows] * conv_CW[:, 0]
    for i in range(1, W):
        y_tC = y_tC + columns_tC[i : i + num_rows] * conv_CW[:, i]
    return silu(y_tC)


def _heads(
    y_xC: torch.Tensor, weights: DeltaNetWeights, state_shape: torch.Size
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split packed Q | K | V; normalise q and k, repeat them for each value head."""
    N, K, V = state_shape
    H = weights.num_key_heads
    q, k, v = y_xC.split((H * K, H * K, N * V), dim=-1)
    q, k = (
        (x * rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)).repeat_interleave(N // H, -2)
        for x in (q.unflatten(-1, (H, K)), k.unflatten(-1, (H, K)))
    )
    return q * K**-0.5, k, v.unflatten(-1, (N, V))


def _gates(
    b_xN: torch.Tensor, a_xN: torch.Tensor, weights: DeltaNetWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """The write strength beta, and g <= 0, the log of what the state keeps."""
    beta_xN = sigmoid(b_xN.float())
    g_xN = -weights.A_log_N.exp() * softplus(a_xN.float() + weights.dt_bias_N)
    return beta_xN, g_xN


def _gated_norm(o_xNV: torch.Tensor, z_xNV: torch.Tensor, weights: DeltaNetWeights) -> torch.Tensor:
    o_xNV = o_xNV.contiguous()
    o_xNV = o_xNV * rsqrt(o_xNV.square().mean(-1, keepdim=True) + weights.eps)
    return (o_xNV * weights.norm_V * silu(z_xNV.float())).to(z_xNV.dtype)
