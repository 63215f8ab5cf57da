"""Tiny random checkpoints made by transformers' own classes, and the oracle that runs them.

Default initialisation hides bugs: norm weights of 0 and a dt_bias of 1 make whole terms invisible,
and weights of 0.02 make every logit the same. So all weights are drawn here: matrices keep the
scale of what passes through them, norms and decays differ per channel, and the head spreads
logits enough that greedy text wanders instead of looping.

The vocabulary has padding rows, as real ones do: ids from `NUM_REAL_TOKENS` on belong to no token,
yet their logits are as large as any.

transformers takes seconds to import: it is imported where it is used.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

VOCAB_SIZE = 512
NUM_REAL_TOKENS = 500
EOS_TOKEN_ID = 499

Tensors = dict[str, torch.Tensor]
Layout = Literal["text", "vision"]  # ...ForCausalLM, or ...ForConditionalGeneration with a tower

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 8,  # six DeltaNets and two attentions
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "eos_token_id": EOS_TOKEN_ID,
}
_MOE = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}
_DENSE = {"intermediate_size": 96}
_ROPE = {
    "rope_type": "default",
    "rope_theta": 10_000_000,
    "partial_rotary_factor": 0.25,
    "mrope_section": [2, 1, 1],
    "mrope_interleaved": True,
}
_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "num_position_embeddings": 16,
}


@dataclass(frozen=True)
class Oracle:
    """transformers on the same weights, one sequence at a time."""

    model: Any

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """logits_TV of every position of one sequence, computed in one go."""
        return self.model(torch.tensor([ids]), use_cache=False).logits[0].float()

    @torch.inference_mode()
    def greedy(self, ids: list[int], num_tokens: int, num_allowed: int = VOCAB_SIZE) -> list[int]:
        """Continue `ids` by argmax over the first `num_allowed` ids; EOS does not end it."""
        output: list[int] = []
        cache, new_ids = None, list(ids)
        while len(output) < num_tokens:
            step = self.model(torch.tensor([new_ids]), past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            new_ids = [int(step.logits[0, -1, :num_allowed].argmax())]
            output += new_ids
        return output


def build_checkpoint(
    folder: Path,
    *,
    moe: bool,
    layout: Layout = "text",
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    rope: dict[str, Any] | None = None,
    single_experts: bool = False,
    max_shard_size: str = "1GB",
    seed: int = 0,
    **text_overrides: Any,
) -> Path:
    """Write config.json and safetensors into `folder`. The same seed gives the same text model.

    Experts are fused, as released, or three tensors for each with `single_experts`.
    """
    kinds = _kinds(moe)
    text = {
        **_COMMON,
        **(_MOE if moe else _DENSE),
        "rope_parameters": {**_ROPE, **(rope or {})},
        "tie_word_embeddings": tied,
        **text_overrides,
    }
    text_config = kinds.text_config(**text)
    model = kinds.causal_lm(text_config)
    _randomise(model, torch.Generator().manual_seed(seed), embedding_std=0.4 if tied else 1.0)
    if layout == "vision":
        config = kinds.config(
            text_config=text_config.to_dict(),
            vision_config={**_VISION, "out_hidden_size": text["hidden_size"]},
            tie_word_embeddings=tied,
        )
        whole = kinds.conditional(config)
        whole.model.language_model.load_state_dict(model.model.state_dict())
        whole.lm_head.load_state_dict(model.lm_head.state_dict())
        model = whole
    model.to(dtype).save_pretrained(
        folder, max_shard_size=max_shard_size, save_original_format=single_experts
    )
    return folder


def load_oracle(folder: Path, dtype: torch.dtype = torch.float32) -> Oracle:
    """Run the text model in `folder` in `dtype`, whatever it is stored in."""
    from transformers import AutoConfig

    kinds = _kinds(moe=AutoConfig.from_pretrained(folder).model_type.startswith("qwen3_5_moe"))
    model = kinds.causal_lm.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return Oracle(model.eval())


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Rewrite model.safetensors. Tensors are cloned: views are not saved, nor files mapped."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change({name: x.clone() for name, x in load_file(path).items()}), path)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@dataclass(frozen=True)
class _Kinds:
    """transformers' classes of one architecture."""

    text_config: Any
    config: Any
    causal_lm: Any
    conditional: Any


def _kinds(moe: bool) -> _Kinds:
    import transformers

    name = "Qwen3_5Moe" if moe else "Qwen3_5"
    return _Kinds(
        *(
            getattr(transformers, name + suffix)
            for suffix in ("TextConfig", "Config", "ForCausalLM", "ForConditionalGeneration")
        )
    )


# What a matrix does to the size of a vector, where that is not 1. Random layers amplify rounding
# errors, so what they add to the residual stream is smaller than what is in it.
_GAINS = {
    "lm_head.weight": 3.0,
    "mlp.gate.weight": 3.0,
    "linear_attn.out_proj.weight": 0.3,
    "self_attn.o_proj.weight": 0.5,
    "down_proj.weight": 0.5,
    "down_proj": 0.5,  # fused experts
}


@torch.no_grad()
def _randomise(model: torch.nn.Module, generator: torch.Generator, *, embedding_std: float) -> None:
    for name, weight in model.named_parameters():  # a tied head comes up once, as embedding
        normal = torch.randn(weight.shape, generator=generator)
        uniform = torch.rand(weight.shape, generator=generator)
        if name.endswith("A_log"):
            weight.copy_((0.01 + uniform).log())
        elif name.endswith("dt_bias"):
            weight.copy_(normal - 1)
        elif name.endswith("linear_attn.norm.weight"):
            weight.copy_(1 + 0.3 * normal)
        elif name.endswith("norm.weight"):
            weight.copy_(0.3 * normal)
        elif name.endswith("conv1d.weight"):
            weight.copy_(0.6 * normal)
        elif name.endswith("embed_tokens.weight"):
            weight.copy_(embedding_std * normal)
        else:
            gain = next((gain for end, gain in _GAINS.items() if name.endswith(end)), 1.0)
            weight.copy_(normal * gain / math.sqrt(weight.shape[-1]))
