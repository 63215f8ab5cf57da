"""What the norms and the rotation mean, in plain torch: fp32 inside, one cast at the end."""

import torch

from kernels.elementwise import rsqrt


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    return _normed(x_TD, weight_D, eps).to(x_TD.dtype)


def add_rms_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    residual_TD = residual_TD + x_TD
    return rms_norm(residual_TD, weight_D, eps), residual_TD


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
    E = k_TGE.shape[-1]
    q_THE = _rotated(_normed(qg_TH2E[..., :E], q_weight_E, eps), cos_TR, sin_TR)
    k_rotated_TGE = _rotated(_normed(k_TGE, k_weight_E, eps), cos_TR, sin_TR)
    page_tokens = kv_P2GOE.shape[3]
    page_T, offset_T = location_T // page_tokens, location_T % page_tokens
    kv_P2GOE[page_T, 0, :, offset_T] = k_rotated_TGE.to(kv_P2GOE.dtype)
    kv_P2GOE[page_T, 1, :, offset_T] = v_TGE.to(kv_P2GOE.dtype)
    return q_THE.to(qg_TH2E.dtype)


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.float().contiguous()
    return x * rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1.0 + weight.float())


def _rotated(x_THE: torch.Tensor, cos_TR: torch.Tensor, sin_TR: torch.Tensor) -> torch.Tensor:
    R = cos_TR.shape[-1]
    rotary, rest = x_THE[..., :R], x_THE[..., R:]
    low, high = rotary.chunk(2, dim=-1)
    turned = rotary * cos_TR[:, None] + torch.cat((-high, low), dim=-1) * sin_TR[:, None]
    return torch.cat((turned, rest), dim=-1)
