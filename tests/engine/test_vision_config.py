"""What config.json says of a vision tower, and what is refused."""

from typing import Any

import pytest

from engine.config import ModelConfig
from tests.engine.model.test_rotary import RELEASED_35B, ROPE

RELEASED_TOWER: dict[str, Any] = {
    "deepstack_visual_indexes": [],
    "depth": 27,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 4304,
    "model_type": "qwen3_5_moe",
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "out_hidden_size": 2048,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def read(
    tower: dict[str, Any] | None, kind: str = "ForConditionalGeneration", **top: Any
) -> ModelConfig:
    raw: dict[str, Any] = {
        "architectures": [f"Qwen3_5Moe{kind}"],
        "text_config": {**RELEASED_35B, "rope_parameters": ROPE},
        **top,
    }
    return ModelConfig.from_dict(raw if tower is None else raw | {"vision_config": tower})


def test_the_released_tower() -> None:
    vision = read(RELEASED_TOWER, image_token_id=7, vision_end_token_id=8).vision
    assert vision is not None
    assert (vision.depth, vision.hidden_size, vision.num_heads) == (27, 1152, 16)
    assert (vision.intermediate_size, vision.num_position_embeddings) == (4304, 2304)
    assert (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size) == (16, 2, 2)
    assert (vision.merged_size, vision.head_dim, vision.in_channels) == (32, 72, 3)
    assert (vision.image_token_id, vision.video_token_id) == (7, 248_057)
    assert (vision.vision_start_token_id, vision.vision_end_token_id) == (248_053, 8)


def test_what_may_be_left_out_is_as_released() -> None:
    needed = ("depth", "hidden_size", "num_heads", "intermediate_size")
    few = {name: RELEASED_TOWER[name] for name in needed}
    assert read(few) == read(RELEASED_TOWER)
    saved_by_transformers = {"rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}}
    assert read(RELEASED_TOWER | saved_by_transformers) == read(RELEASED_TOWER)


def test_without_a_tower() -> None:
    assert read(None).vision is None
    assert read({}).vision is None
    assert read(RELEASED_TOWER, kind="ForCausalLM").vision is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "silu"}, "vision_config.hidden_act must be gelu_pytorch_tanh"),
        ({"in_channels": 1}, "vision_config.in_channels must be 3"),
        ({"deepstack_visual_indexes": [8]}, r"vision_config.deepstack_visual_indexes must be \[\]"),
        (
            {"rope_parameters": {"rope_theta": 5000.0}},
            "vision_config.rope_parameters.rope_theta must be 10000.0",
        ),
        (
            {"out_hidden_size": 4096},
            "out_hidden_size 4096 is not the text model's hidden_size 2048",
        ),
        ({"num_position_embeddings": 2300}, "num_position_embeddings must be a square"),
        ({"num_heads": 7}, "hidden_size must be num_heads times a multiple of 4"),
        ({"patch_size": [16, 16]}, "a field has the wrong type"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(RELEASED_TOWER | changes)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match="field depth is missing"):
        read({name: value for name, value in RELEASED_TOWER.items() if name != "depth"})
