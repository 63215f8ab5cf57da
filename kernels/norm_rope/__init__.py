"""Zero-centred RMSNorm, and what happens to queries and keys between projection and attention.

    y = x / sqrt(mean(x^2) + eps) * (1 + w)             in fp32, cast once at the end

T tokens, D hidden size, H query heads, G key/value heads, E head dim, R <= E rotary dims, P pages
of O tokens. Activations, weights and pages share one dtype.
"""

from functools import partial

import torch

from kernels.backend import uses_triton
from kernels.norm_rope import cpu, reference

__all__ = ["add_rms_norm", "qk_norm_rope_write", "rms_norm"]


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """y_TD, the normed rows."""
    if uses_triton(x_TD):
        from kernels.norm_rope import gpu

        return gpu.rms_norm(x_TD, weight_D, eps)
    call = cpu.functions().get(("rms_norm", x_TD.dtype))
    if call is None:
        return reference.rms_norm(x_TD, weight_D, eps)
    return cpu.rms_norm(call, x_TD, weight_D, eps)


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y_TD, residual_TD): the sum, rounded to its dtype, and its norm. Both are new tensors."""
    if uses_triton(x_TD):
        from kernels.norm_rope import gpu

        return gpu.add_rms_norm(x_TD, residual_TD, weight_D, eps)
    call = cpu.functions().get(("add_rms_norm", x_TD.dtype))
    if call is None:
        return reference.add_rms_norm(x_TD, residual_TD, weight_D, eps)
    return cpu.add_rms_norm(call, x_TD, residual_TD, weight_D, eps)


def qk_norm_rope_write(
    qg_TH2E: torch.Tensor,
    k_TGE: torch.Tensor,
    v_TGE: torch.Tensor,
    q_weight_E: torch.Tensor,
    k_weight_E: torch.Tensor,
    cos_TR: torch.Tensor,
    sin_TR: torch.Tensor,
    *,
    kv_P2GOE: torch.Tensor,
    location_T: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """q_THE, normed and rotated; K (likewise) and V go to the pages at page * O + offset.

    Each head of `qg_TH2E` is its query, then its gate. Pairs (i, i + R/2) turn by the angle whose
    fp32 cosine stands at both i and i + R/2 of `cos_TR`; dims from R on pass through.
    """
    if uses_triton(qg_TH2E):
        from kernels.norm_rope import gpu

        run = gpu.qk_norm_rope_write
    elif call := cpu.functions().get(("qk_norm_rope_write", qg_TH2E.dtype)):
        run = partial(cpu.qk_norm_rope_write, call)
    else:
        run = reference.qk_norm_rope_write
    return run(
        qg_TH2E,
        k_TGE,
        v_TGE,
        q_weight_E,
        k_weight_E,
        cos_TR,
        sin_TR,
        kv_P2GOE=kv_P2GOE,
        location_T=location_T,
        eps=eps,
    )
