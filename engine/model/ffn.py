"""The second half of a layer, row by row: one SwiGLU, or a mixture of them.

Gate rows come before up rows in every fused matrix. A checkpoint holds a layer's experts in two
tensors or in three for each expert; both fill the same parameters. The norm before and the residual
after are part of the kernels.
"""

import torch

from engine.config import ModelConfig
from kernels.fused_moe import MoeWeights, fused_moe_add
from kernels.linear import norm_swiglu_add


class DenseFfn:
    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        D, F = config.hidden_size, config.intermediate_size
        self._eps = config.rms_norm_eps
        self.gate_up_FD = torch.empty(2 * F, D, dtype=dtype, device=device)
        self.down_DF = torch.empty(D, F, dtype=dtype, device=device)

    def places(self) -> dict[str, torch.Tensor]:
        gate_proj, up_proj = self.gate_up_FD.chunk(2)
        return {
            "gate_proj.weight": gate_proj,
            "up_proj.weight": up_proj,
            "down_proj.weight": self.down_DF,
        }

    def forward(self, residual_TD: torch.Tensor, norm_D: torch.Tensor) -> torch.Tensor:
        return norm_swiglu_add(residual_TD, norm_D, self._eps, self.gate_up_FD, self.down_DF)


class MoeFfn:
    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        D, J = config.hidden_size, config.num_experts
        self._eps = config.rms_norm_eps
        F, shared_F = config.moe_intermediate_size, config.shared_expert_intermediate_size
        self.weights = MoeWeights(
            router_JD=torch.empty(J, D, dtype=dtype, device=device),
            gate_up_JFD=torch.empty(J, 2 * F, D, dtype=dtype, device=device),
            down_JDF=torch.empty(J, D, F, dtype=dtype, device=device),
            shared_gate_up_FD=torch.empty(2 * shared_F, D, dtype=dtype, device=device),
            shared_down_DF=torch.empty(D, shared_F, dtype=dtype, device=device),
            shared_gate_1D=torch.empty(1, D, dtype=dtype, device=device),
            top_k=config.num_experts_per_tok,
        )

    def places(self, *, has_single_experts: bool) -> dict[str, torch.Tensor]:
        weights = self.weights
        shared_gate_proj, shared_up_proj = weights.shared_gate_up_FD.chunk(2)
        places = {
            "gate.weight": weights.router_JD,
            "shared_expert.gate_proj.weight": shared_gate_proj,
            "shared_expert.up_proj.weight": shared_up_proj,
            "shared_expert.down_proj.weight": weights.shared_down_DF,
            "shared_expert_gate.weight": weights.shared_gate_1D,
        }
        if not has_single_experts:
            places["experts.gate_up_proj"] = weights.gate_up_JFD
            places["experts.down_proj"] = weights.down_JDF
            return places
        for expert, (gate_up_FD, down_DF) in enumerate(
            zip(weights.gate_up_JFD, weights.down_JDF, strict=True)
        ):
            gate_proj, up_proj = gate_up_FD.chunk(2)
            places[f"experts.{expert}.gate_proj.weight"] = gate_proj
            places[f"experts.{expert}.up_proj.weight"] = up_proj
            places[f"experts.{expert}.down_proj.weight"] = down_DF
        return places

    def forward(self, residual_TD: torch.Tensor, norm_D: torch.Tensor) -> torch.Tensor:
        return fused_moe_add(residual_TD, norm_D, self._eps, self.weights)
