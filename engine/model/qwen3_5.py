"""The Qwen3.5 text decoder, dense or MoE: token ids of one step in, hidden states out.

Every layer mixes tokens (three Gated DeltaNets, then one attention), then transforms each row. Both
take the residual stream and return it: they norm what they read and add what they made, inside
their first and last kernels. Only the final norm stands alone.

Who owns what: layers hold plain tensors, named in `places` as checkpoints name them and filled by
the loader; the bytes behind pages and slots belong to the runner and are written in place. A row's
bits depend on its own sequence only, not on what else is in the step: the kernels promise that,
and nothing here mixes rows.

Letters: see `inputs.py`; V is the vocabulary in the embedding and the head, Z rows to score. The
matrices of a fused projection have F rows.
"""

from collections.abc import Set

import torch

from engine.config import ModelConfig
from engine.model.attention import Attention
from engine.model.ffn import DenseFfn, MoeFfn
from engine.model.gated_deltanet import GatedDeltaNet
from engine.model.inputs import Caches, StepInputs
from engine.model.rotary import Rotary
from kernels.embedding import embed
from kernels.linear import linear_fp32
from kernels.norm_rope import rms_norm


class Qwen3_5:
    """Parameters are uninitialised memory until every tensor in `places` was copied into."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        D = config.hidden_size
        self._config = config
        self._rotary = Rotary(config, device)
        self.embedding_VD = torch.empty(config.vocab_size, D, dtype=dtype, device=device)
        self.layers = tuple(
            DecoderLayer(config, kind, dtype, device) for kind in config.layer_types
        )
        self.norm_D = torch.empty(D, dtype=dtype, device=device)
        self.head_VD = (
            self.embedding_VD if config.tie_word_embeddings else torch.empty_like(self.embedding_VD)
        )

    def places(self, layers_with_single_experts: Set[int] = frozenset()) -> dict[str, torch.Tensor]:
        """Map every needed tensor's name (without the model's prefix) to the view it fills.

        The views cover all parameters and do not overlap. Names of experts come in two spellings:
        fused, or one by one in the given layers.
        """
        places = {"embed_tokens.weight": self.embedding_VD, "norm.weight": self.norm_D}
        if self.head_VD is not self.embedding_VD:
            places["lm_head.weight"] = self.head_VD
        for i, layer in enumerate(self.layers):
            layer_places = layer.places(has_single_experts=i in layers_with_single_experts)
            places |= {f"layers.{i}.{name}": place for name, place in layer_places.items()}
        return places

    def forward(self, inputs: StepInputs, caches: Caches) -> torch.Tensor:
        """Return hidden_TD after the final norm. Writes this step's tokens into `caches`."""
        streams_3T = inputs.position_3T
        cos_sin = self._rotary.cos_sin(inputs.position_T if streams_3T is None else streams_3T)
        kvs_P2GOE = iter(caches.kv_LP2GOE)
        states = iter(zip(caches.conv_LPCX, caches.state_LPNKV, strict=True))

        residual_TD = embed(inputs.token_id_T, self.embedding_VD)
        if inputs.features is not None:
            residual_TD.index_copy_(0, inputs.features.row_Z, inputs.features.feature_ZD)
        for layer in self.layers:
            norm_D = layer.input_norm_D
            if isinstance(layer.mixer, Attention):
                residual_TD = layer.mixer.forward(
                    residual_TD, norm_D, inputs, cos_sin, next(kvs_P2GOE)
                )
            else:
                residual_TD = layer.mixer.forward(residual_TD, norm_D, inputs, *next(states))
            residual_TD = layer.ffn.forward(residual_TD, layer.post_mixer_norm_D)
        return rms_norm(residual_TD, self.norm_D, self._config.rms_norm_eps)

    def logits(self, hidden_ZD: torch.Tensor) -> torch.Tensor:
        """Score the whole padded vocabulary for each row: logits_ZV, fp32."""
        return linear_fp32(hidden_ZD, self.head_VD)


class DecoderLayer:
    def __init__(
        self, config: ModelConfig, kind: str, dtype: torch.dtype, device: torch.device
    ) -> None:
        D = config.hidden_size
        self.input_norm_D = torch.empty(D, dtype=dtype, device=device)
        self.mixer = (
            Attention(config, dtype, device)
            if kind == "full_attention"
            else GatedDeltaNet(config, dtype, device)
        )
        self.post_mixer_norm_D = torch.empty(D, dtype=dtype, device=device)
        self.ffn = (
            MoeFfn(config, dtype, device) if config.num_experts else DenseFfn(config, dtype, device)
        )

    def places(self, *, has_single_experts: bool) -> dict[str, torch.Tensor]:
        mixer_name = "self_attn" if isinstance(self.mixer, Attention) else "linear_attn"
        ffn_places = (
            self.ffn.places(has_single_experts=has_single_experts)
            if isinstance(self.ffn, MoeFfn)
            else self.ffn.places()
        )
        return {
            "input_layernorm.weight": self.input_norm_D,
            "post_attention_layernorm.weight": self.post_mixer_norm_D,
            **{f"{mixer_name}.{name}": place for name, place in self.mixer.places().items()},
            **{f"mlp.{name}": place for name, place in ffn_places.items()},
        }
