"""Gated attention: softmax attention on paged K and V whose output passes a sigmoid gate.

One matrix projects to query and gate, key, and value. Query and gate alternate per head, E columns
each, and stay together: the kernels pick their half by stride. What is projected is normalised,
turned, written to its page, and read from there again, decode rows and prefill slices alike. The
norm before and the residual after belong to the two projections.
"""

import torch

from engine.config import ModelConfig
from engine.model.inputs import StepInputs
from kernels.linear import linear_add, norm_linear
from kernels.norm_rope import qk_norm_rope_write
from kernels.paged_attention import attention_decode, attention_prefill


class Attention:
    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        H, G, E = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        D = config.hidden_size
        self._heads = (H, G, E)
        self._widths = (2 * H * E, G * E, G * E)  # query and gate, key, value
        self._eps = config.rms_norm_eps
        self.in_proj_FD = torch.empty(sum(self._widths), D, dtype=dtype, device=device)
        self.out_proj_DF = torch.empty(D, H * E, dtype=dtype, device=device)
        self.q_norm_E = torch.empty(E, dtype=dtype, device=device)
        self.k_norm_E = torch.empty(E, dtype=dtype, device=device)

    def places(self) -> dict[str, torch.Tensor]:
        q_proj, k_proj, v_proj = self.in_proj_FD.split(self._widths)
        return {
            "q_proj.weight": q_proj,
            "k_proj.weight": k_proj,
            "v_proj.weight": v_proj,
            "o_proj.weight": self.out_proj_DF,
            "q_norm.weight": self.q_norm_E,
            "k_norm.weight": self.k_norm_E,
        }

    def forward(
        self,
        residual_TD: torch.Tensor,
        norm_D: torch.Tensor,
        inputs: StepInputs,
        cos_sin: tuple[torch.Tensor, torch.Tensor],
        kv_P2GOE: torch.Tensor,
    ) -> torch.Tensor:
        """Mix the tokens of each sequence, those of this step included. Writes `kv_P2GOE`."""
        H, G, E = self._heads
        projected_TF = norm_linear(residual_TD, norm_D, self._eps, self.in_proj_FD)
        qg_TF, k_TF, v_TF = projected_TF.split(self._widths, dim=-1)
        # Not `unflatten`: of a single row it forgets the stride, and kernels are compiled for it.
        qg_TH2E = qg_TF.as_strided((len(qg_TF), H, 2 * E), (qg_TF.stride(0), 2 * E, 1))
        q_THE = qk_norm_rope_write(
            qg_TH2E,
            k_TF.unflatten(-1, (G, E)),
            v_TF.unflatten(-1, (G, E)),
            self.q_norm_E,
            self.k_norm_E,
            *cos_sin,
            kv_P2GOE=kv_P2GOE,
            location_T=inputs.location_T,
            eps=self._eps,
        )
        B = inputs.num_decodes
        parts: list[torch.Tensor] = []
        if B:
            parts.append(
                attention_decode(
                    q_THE[:B],
                    qg_TH2E[:B],
                    kv_P2GOE=kv_P2GOE,
                    page_BM=inputs.decode_page_BM,
                    length_B=inputs.decode_length_B,
                    scale=E**-0.5,
                )
            )
        if inputs.num_prefills:
            parts.append(
                attention_prefill(
                    q_THE[B:],
                    qg_TH2E[B:],
                    kv_P2GOE=kv_P2GOE,
                    page_SM=inputs.prefill_page_SM,
                    start_S=inputs.prefill_start_S,
                    offset_S1=inputs.prefill_offset_S1,
                    scale=E**-0.5,
                )
            )
        o_TF = parts[0] if len(parts) == 1 else torch.cat(parts)
        return linear_add(o_TF, self.out_proj_DF, residual_TD)
