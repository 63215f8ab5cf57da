"""Gated DeltaNet between its projections: convolution, gates, delta rule, gated norm.

    [q | k | v] = silu(causal convolution of width W over `mixed`, channel by channel)
    q = q / |q| / sqrt(K),  k = k / |k|,  beta = sigmoid(b),  g = -exp(A_log) softplus(a + dt_bias)
    S = exp(g) S;  u = beta (v - S^T k);  S = S + k u^T;  o = S^T q
    o = o / rms(o) * norm * silu(z)

per value head, all in fp32; value head n uses key head n // (N / H). A slot holds the last W - 1
columns of `mixed` (oldest first, as they came) and the fp32 state S. Prefill computes the same by
chunks of the absolute 64-token grid: inside a chunk, with G the running sum of g,

    (I + A) U = beta (V - exp(G) K S),   A_ij = beta_i exp(G_i - G_j) k_i.k_j for j < i
    O = exp(G) Q S + (exp(G_i - G_j) q_i.k_j for j <= i) U
    S = exp(G_last) S + (exp(G_last - G) K)^T U

A row's bits depend on its sequence only, and cutting a prefill at multiples of 64 changes none:
the state passes from chunk to chunk in fp32 either way. Distinct rows need distinct slots, but for
scratch slot 0, which padding rows may share.

B decode rows, S slices, T packed rows, N value heads, K/V key/value dims, C channels, X = W - 1
saved columns, P slots.
"""

from functools import partial

import torch

from kernels.backend import uses_triton
from kernels.gated_delta import cpu, reference
from kernels.gated_delta.weights import DeltaNetWeights

__all__ = ["DeltaNetWeights", "gated_delta_decode", "gated_delta_prefill"]


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
    """Advance each row's slot by one token, in place; o [B, N * V] in the dtype of `z_BNV`."""
    if uses_triton(z_BNV):
        from kernels.gated_delta import gpu

        run = gpu.gated_delta_decode
    elif call := cpu.functions().get(("gated_delta_decode", z_BNV.dtype)):
        run = partial(cpu.gated_delta_decode, call)
    else:
        run = reference.gated_delta_decode
    return run(
        mixed_BC,
        z_BNV,
        b_BN,
        a_BN,
        weights,
        conv_PCX=conv_PCX,
        state_PNKV=state_PNKV,
        slot_B=slot_B,
    )


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
    """Run packed slices, rows offset[s] .. offset[s + 1] from position start[s]; o [T, N * V].

    A slice at position 0 starts from nothing, whatever its slot holds; any other continues its
    slot. Each leaves its slot as of its end. An empty slice leaves it alone.

    Snapshots: what a slot would hold if its slice ended after packed row emit_row[z] is written to
    slot emit_slot[z], which is no slice's. The row must be the last of its slice or of a chunk, and
    named once; only the CPU can check that. Scratch slot 0 takes any number of them.
    """
    if uses_triton(z_TNV):
        from kernels.gated_delta import gpu

        run = gpu.gated_delta_prefill
    elif call := cpu.functions().get(("gated_delta_prefill", z_TNV.dtype)):
        run = partial(cpu.gated_delta_prefill, call)
    else:
        run = reference.gated_delta_prefill
    return run(
        mixed_TC,
        z_TNV,
        b_TN,
        a_TN,
        weights,
        conv_PCX=conv_PCX,
        state_PNKV=state_PNKV,
        slot_S=slot_S,
        start_S=start_S,
        offset_S1=offset_S1,
        emit_row_Z=emit_row_Z,
        emit_slot_Z=emit_slot_Z,
    )
