"""The vision tower of a checkpoint, as its config.json describes it. No torch: the server reads it.

Defaults are the released models'. What the tower cannot compute is refused here, in one line.
"""

import math
from typing import Any

import msgspec

# Where another value means another computation.
_SERVED: dict[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "in_channels": 3,
    "deepstack_visual_indexes": [],
    "rope_parameters.rope_type": "axial",
    "rope_parameters.rope_theta": 10_000.0,
}


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The vision tower of a checkpoint."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    in_channels: int
    patch_size: int  # pixels
    temporal_patch_size: int  # frames
    spatial_merge_size: int  # patches of a side that become one token
    num_position_embeddings: int  # a square table
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int

    @property
    def merged_size(self) -> int:
        """Pixels of a side of one token: what heights and widths are multiples of."""
        return self.patch_size * self.spatial_merge_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @classmethod
    def from_raw(cls, raw: dict[str, Any], *, text_hidden_size: int) -> "VisionConfig | None":
        """Of a whole config.json; None if it has no tower. Raises ValueError, KeyError, TypeError.

        `text_hidden_size` is what the tower's features have to fit.
        """
        vision: dict[str, Any] | None = raw.get("vision_config")
        if not vision:
            return None
        rope: dict[str, Any] = vision.get("rope_parameters") or {}
        flat = vision | {f"rope_parameters.{name}": value for name, value in rope.items()}
        for name, served in _SERVED.items():
            if flat.get(name, served) != served:
                raise ValueError(f"config.json: vision_config.{name} must be {served}")
        out_size = int(vision.get("out_hidden_size", text_hidden_size))
        if out_size != text_hidden_size:
            raise ValueError(
                f"config.json: vision_config.out_hidden_size {out_size} is not the text model's "
                f"hidden_size {text_hidden_size}"
            )
        config = cls(
            depth=int(vision["depth"]),
            hidden_size=int(vision["hidden_size"]),
            num_heads=int(vision["num_heads"]),
            intermediate_size=int(vision["intermediate_size"]),
            in_channels=int(vision.get("in_channels", 3)),
            patch_size=int(vision.get("patch_size", 16)),
            temporal_patch_size=int(vision.get("temporal_patch_size", 2)),
            spatial_merge_size=int(vision.get("spatial_merge_size", 2)),
            num_position_embeddings=int(vision.get("num_position_embeddings", 2304)),
            image_token_id=int(raw.get("image_token_id", 248_056)),
            video_token_id=int(raw.get("video_token_id", 248_057)),
            vision_start_token_id=int(raw.get("vision_start_token_id", 248_053)),
            vision_end_token_id=int(raw.get("vision_end_token_id", 248_054)),
        )
        if math.isqrt(config.num_position_embeddings) ** 2 != config.num_position_embeddings:
            raise ValueError("config.json: vision_config.num_position_embeddings must be a square")
        if config.hidden_size % config.num_heads or config.head_dim % 4:
            raise ValueError(
                "config.json: vision_config.hidden_size must be num_heads times a multiple of 4"
            )
        return config
