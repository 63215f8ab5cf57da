"""Gated DeltaNet: linear attention on a fixed-size state, advanced by the gated delta rule.

One matrix projects to Q | K | V (which pass the causal convolution), the output gate z, and the
two scalars per head: b (write strength) and a (decay). The kernels do the rest in fp32, on the
sequence's slot, and write the conv columns and the state back in place, and copies of them where
the step saves states. The norm before and the
residual after belong to the two projections.
"""

import torch

from engine.config import ModelConfig
from engine.model.inputs import StepInputs
from kernels.gated_delta import DeltaNetWeights, gated_delta_decode, gated_delta_prefill
from kernels.linear import linear_add, norm_linear


class GatedDeltaNet:
    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        N, V, C = config.linear_num_value_heads, config.linear_value_head_dim, config.conv_dim
        D = config.hidden_size
        self._heads = (N, V)
        self._widths = (C, N * V, N, N)  # Q | K | V, z, b, a
        self.in_proj_FD = torch.empty(sum(self._widths), D, dtype=dtype, device=device)
        self.out_proj_DF = torch.empty(D, N * V, dtype=dtype, device=device)
        self.weights = DeltaNetWeights(
            conv_CW=torch.empty(C, config.linear_conv_kernel_dim, dtype=dtype, device=device),
            A_log_N=torch.empty(N, dtype=torch.float32, device=device),
            dt_bias_N=torch.empty(N, dtype=torch.float32, device=device),
            norm_V=torch.empty(V, dtype=torch.float32, device=device),
            eps=config.rms_norm_eps,
            num_key_heads=config.linear_num_key_heads,
        )

    def places(self) -> dict[str, torch.Tensor]:
        in_proj_qkv, in_proj_z, in_proj_b, in_proj_a = self.in_proj_FD.split(self._widths)
        return {
            "in_proj_qkv.weight": in_proj_qkv,
            "in_proj_z.weight": in_proj_z,
            "in_proj_b.weight": in_proj_b,
            "in_proj_a.weight": in_proj_a,
            "conv1d.weight": self.weights.conv_CW[:, None],
            "A_log": self.weights.A_log_N,
            "dt_bias": self.weights.dt_bias_N,
            "norm.weight": self.weights.norm_V,
            "out_proj.weight": self.out_proj_DF,
        }

    def forward(
        self,
        residual_TD: torch.Tensor,
        norm_D: torch.Tensor,
        inputs: StepInputs,
        conv_PCX: torch.Tensor,
        state_PNKV: torch.Tensor,
    ) -> torch.Tensor:
        """Mix the tokens of each sequence. Advances the slots of `conv_PCX` and `state_PNKV`."""
        projected_TF = norm_linear(residual_TD, norm_D, self.weights.eps, self.in_proj_FD)
        mixed_TC, z_TF, b_TN, a_TN = projected_TF.split(self._widths, dim=-1)
        # Not `unflatten`: of a single row it forgets the stride, and kernels are compiled for it.
        N, V = self._heads
        z_TNV = z_TF.as_strided((len(z_TF), N, V), (z_TF.stride(0), V, 1))
        B = inputs.num_decodes
        parts: list[torch.Tensor] = []
        if B:
            parts.append(
                gated_delta_decode(
                    mixed_TC[:B],
                    z_TNV[:B],
                    b_TN[:B],
                    a_TN[:B],
                    self.weights,
                    conv_PCX=conv_PCX,
                    state_PNKV=state_PNKV,
                    slot_B=inputs.decode_slot_B,
                )
            )
        if inputs.num_prefills:
            parts.append(
                gated_delta_prefill(
                    mixed_TC[B:],
                    z_TNV[B:],
                    b_TN[B:],
                    a_TN[B:],
                    self.weights,
                    conv_PCX=conv_PCX,
                    state_PNKV=state_PNKV,
                    slot_S=inputs.prefill_slot_S,
                    start_S=inputs.prefill_start_S,
                    offset_S1=inputs.prefill_offset_S1,
                    emit_row_Z=inputs.save_row_Y,
                    emit_slot_Z=inputs.save_slot_Y,
                )
            )
        o_TF = parts[0] if len(parts) == 1 else torch.cat(parts)
        return linear_add(o_TF, self.out_proj_DF, residual_TD)
