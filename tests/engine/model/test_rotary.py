"""Rotary angles against transformers, on the real sizes."""

from typing import Any

import pytest
import torch

from engine.config import ModelConfig
from engine.model.rotary import Rotary

RELEASED_35B: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "vocab_size": 248_320,
    "max_position_embeddings": 262_144,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
ROPE = {
    "rope_type": "default",
    "rope_theta": 10_000_000,
    "partial_rotary_factor": 0.25,
    "mrope_section": [11, 11, 10],
    "mrope_interleaved": True,
}
POSITIONS = torch.tensor([0, 1, 2, 63, 64, 4095, 262_143, 1_009_999])


def rotary_of(rope: dict[str, Any]) -> Rotary:
    raw = {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "text_config": {**RELEASED_35B, "rope_parameters": ROPE | rope},
    }
    return Rotary(ModelConfig.from_dict(raw), torch.device("cpu"))


@pytest.mark.parametrize("factor", [None, 1.0, 2.0, 4.0])
def test_angles_are_transformers(factor: float | None) -> None:
    from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import (
        Qwen3_5MoeTextConfig,
        Qwen3_5MoeTextRotaryEmbedding,
    )

    yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 262_144}
    rope = {} if factor is None else yarn
    theirs = Qwen3_5MoeTextRotaryEmbedding(
        Qwen3_5MoeTextConfig(**RELEASED_35B, rope_parameters=ROPE | rope)
    )
    expected = theirs(torch.zeros(1), POSITIONS.view(1, 1, -1))
    for ours, (their,) in zip(rotary_of(rope).cos_sin(POSITIONS), expected, strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == (len(POSITIONS), 64)
        assert torch.equal(ours, their)


@pytest.mark.parametrize("factor", [None, 4.0])
def test_three_streams_are_transformers(factor: float | None) -> None:
    from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import (
        Qwen3_5MoeTextConfig,
        Qwen3_5MoeTextRotaryEmbedding,
    )

    yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 262_144}
    rope = {} if factor is None else yarn
    theirs = Qwen3_5MoeTextRotaryEmbedding(
        Qwen3_5MoeTextConfig(**RELEASED_35B, rope_parameters=ROPE | rope)
    )
    position_3T = torch.randint(0, 200_000, (3, 50), generator=torch.Generator().manual_seed(0))
    expected = theirs(torch.zeros(1), position_3T[:, None])
    for ours, (their,) in zip(rotary_of(rope).cos_sin(position_3T), expected, strict=True):
        assert torch.equal(ours, their)


def test_three_equal_streams_are_text_to_the_bit() -> None:
    rotary = rotary_of({})
    position_T = torch.randint(0, 1_000_000, (301,), generator=torch.Generator().manual_seed(0))
    for one, three in zip(
        rotary.cos_sin(position_T), rotary.cos_sin(position_T.repeat(3, 1)), strict=True
    ):
        assert torch.equal(one, three)


def test_yarn_keeps_fast_pairs_and_divides_slow_ones() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262_144}
    plain, stretched = rotary_of({}), rotary_of(rope)
    ratio_R2 = plain.frequency_R2 / stretched.frequency_R2
    assert torch.allclose(ratio_R2[:15], torch.ones(15))
    assert torch.allclose(ratio_R2[22:], torch.full((10,), 4.0))
    assert bool((ratio_R2[15:22].diff() > 0).all())
    assert plain.scale == 1.0
    assert stretched.scale == pytest.approx(1.13863, abs=1e-5)


def test_a_row_does_not_depend_on_its_batch() -> None:
    rotary = rotary_of({})
    position_T = torch.randint(0, 1_000_000, (300,), generator=torch.Generator().manual_seed(0))
    crowd = rotary.cos_sin(position_T)
    for start, end in [(0, 1), (7, 8), (3, 20), (100, 300)]:
        for alone, rows in zip(rotary.cos_sin(position_T[start:end]), crowd, strict=True):
            assert torch.equal(alone, rows[start:end])
