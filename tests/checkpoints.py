"""Tiny random checkpoints made by transformers' own classes, and the oracle that runs them.

Default initialisation hides bugs: norm weights of 0 and a dt_bias of 1 make whole terms invisible,
and weights of 0.02 make every logit the same. So all weights are drawn here: matrices keep the
scale of what passes through them, norms and decays differ per channel, and the head spreads
logits enough that greedy text wanders instead of looping. The vision tower's features are as large
as embeddings, so that a picture says as much as the words around it.

The vocabulary has padding rows, as real ones do: ids from `NUM_REAL_TOKENS` on belong to no token,
yet their logits are as large as any.

transformers takes seconds to import: it is imported where it is used.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from engine.request import Media

VOCAB_SIZE = 512
NUM_REAL_TOKENS = 500
EOS_TOKEN_ID = 499
VISION_START_ID, VISION_END_ID, IMAGE_ID, VIDEO_ID = 495, 496, 497, 498
NUM_TEXT_TOKENS = 495  # ids below belong to words

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
_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 25,
}
_VISION_IDS = {
    "vision_start_token_id": VISION_START_ID,
    "vision_end_token_id": VISION_END_ID,
    "image_token_id": IMAGE_ID,
    "video_token_id": VIDEO_ID,
}


@dataclass(frozen=True)
class Oracle:
    """transformers on the same weights, one sequence at a time."""

    model: Any

    @torch.inference_mode()
    def logits(self, ids: list[int], media: Sequence[Media] = ()) -> torch.Tensor:
        """logits_TV of every position of one sequence, computed in one go."""
        step = self.model(torch.tensor([ids]), use_cache=False, **_pictures(ids, media))
        return step.logits[0].float()

    @torch.inference_mode()
    def features(self, picture: Media) -> torch.Tensor:
        """feature_MD."""
        patches, grid = _patches([picture])
        (features,) = self.model.model.get_image_features(patches, grid).pooler_output
        return features

    @torch.inference_mode()
    def greedy(
        self,
        ids: list[int],
        num_tokens: int,
        num_allowed: int = VOCAB_SIZE,
        media: Sequence[Media] = (),
    ) -> list[int]:
        """Continue `ids` by argmax over the first `num_allowed` ids; EOS does not end it."""
        output: list[int] = []
        cache, new_ids, pictures = None, list(ids), _pictures(ids, media)
        if not media and hasattr(self.model.model, "rope_deltas"):
            self.model.model.rope_deltas = None  # or the shift of the last prompt stays
        while len(output) < num_tokens:
            step = self.model(
                torch.tensor([new_ids]), past_key_values=cache, use_cache=True, **pictures
            )
            cache, pictures = step.past_key_values, {}
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
            **_VISION_IDS,
        )
        whole = kinds.conditional(config)
        _randomise_tower(whole.model.visual, torch.Generator().manual_seed(seed + 1))
        whole.model.language_model.load_state_dict(model.model.state_dict())
        whole.lm_head.load_state_dict(model.lm_head.state_dict())
        model = whole
    model.to(dtype).save_pretrained(
        folder, max_shard_size=max_shard_size, save_original_format=single_experts
    )
    return folder


def load_oracle(folder: Path, dtype: torch.dtype = torch.float32) -> Oracle:
    """Run the model in `folder` in `dtype`, whatever it is stored in; with its tower if it has one.

    Of a tower that is only configured, the weights are random.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    kinds = _kinds(moe=config.model_type.startswith("qwen3_5_moe"))
    kind = kinds.conditional if hasattr(config, "vision_config") else kinds.causal_lm
    model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return Oracle(model.eval())


def _pictures(ids: list[int], media: Sequence[Media]) -> dict[str, torch.Tensor]:
    """How transformers is told of the pictures in a prompt: still ones and frames apart."""
    if not media:
        return {}
    kinds = [{IMAGE_ID: 1, VIDEO_ID: 2}.get(i, 0) for i in ids]
    inputs = {"mm_token_type_ids": torch.tensor([kinds])}
    if images := [picture for picture in media if picture.num_frames == 1]:
        inputs["pixel_values"], inputs["image_grid_thw"] = _patches(images)
    if frames := [picture for picture in media if picture.num_frames > 1]:
        inputs["pixel_values_videos"], inputs["video_grid_thw"] = _patches(frames)
    return inputs


def _patches(media: Sequence[Media]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of patches and the grid of each picture, by transformers' own image processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    side, frames = _VISION["patch_size"], _VISION["temporal_patch_size"]
    process = Qwen2VLImageProcessorPil(
        do_resize=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        patch_size=side,
        temporal_patch_size=1,  # each frame on its own; they are put together below
        merge_size=_VISION["spatial_merge_size"],
    )
    rows, grids = [], []
    for picture in media:
        shape = (picture.num_frames, picture.height, picture.width, 3)
        pixels = np.frombuffer(picture.pixels, dtype=np.uint8).reshape(shape)
        each = [process(frame, return_tensors="pt") for frame in pixels]
        each *= frames // len(each)
        parts = [one["pixel_values"].view(-1, 3, 1, side * side) for one in each]
        rows.append(torch.cat(parts, dim=2).flatten(1))
        grids.append(each[0]["image_grid_thw"])
    return torch.cat(rows), torch.cat(grids)


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


@torch.no_grad()
def _randomise_tower(tower: torch.nn.Module, generator: torch.Generator) -> None:
    for name, weight in tower.named_parameters():
        normal = torch.randn(weight.shape, generator=generator)
        if name.endswith("norm.weight") or ".norm1.w" in name or ".norm2.w" in name:
            weight.copy_(1 + 0.3 * normal)
        elif name.endswith("bias"):
            weight.copy_(0.3 * normal)
        elif name == "pos_embed.weight":
            weight.copy_(normal)
        else:
            weight.copy_(normal / math.sqrt(weight[0].numel()))
