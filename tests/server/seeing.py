"""A validator of a model that sees, and a loader that finds what the tests put into it."""

from collections.abc import Sequence

import msgspec

from engine import ModelConfig, VisionConfig
from server.checkpoint_text import CheckpointText
from server.constraints import ConstraintReader
from server.errors import BadRequest
from server.media.loaded import LoadedMedia, MediaRef, Picture
from server.tokenizer import Tokenizer
from server.validate import Validator

# Sides are multiples of 32, so these are six tokens, one, and two for each part of the video.
IMAGE = LoadedMedia("image", (Picture(1, 64, 96, b"i" * (64 * 96 * 3)),))
DOT = LoadedMedia("image", (Picture(1, 32, 32, b"." * (32 * 32 * 3)),))
VIDEO = LoadedMedia(
    "video",
    tuple(
        Picture(2, 32, 64, letter * (2 * 32 * 64 * 3), second)
        for letter, second in ((b"v", 0.25), (b"w", 1.21))
    ),
)
MEDIA = {"data:image": IMAGE, "data:dot": DOT, "data:video": VIDEO}


class FakeLoader:
    """Implements `MediaSource`."""

    def __init__(self) -> None:
        self.asked: list[list[MediaRef]] = []
        self.num_held = 0

    async def load(self, refs: Sequence[MediaRef]) -> list[LoadedMedia]:
        self.asked.append(list(refs))
        for ref in refs:
            if ref.url not in MEDIA:
                raise BadRequest(f"{ref.path}: there is nothing", param=ref.path)
        loaded = [MEDIA[ref.url] for ref in refs]
        self.num_held += len(loaded)
        return loaded

    def release(self, media: Sequence[LoadedMedia]) -> None:
        self.num_held -= len(media)


def vision_of(tokenizer: Tokenizer) -> VisionConfig:
    return VisionConfig(
        depth=1,
        hidden_size=64,
        num_heads=2,
        intermediate_size=64,
        in_channels=3,
        patch_size=16,
        temporal_patch_size=2,
        spatial_merge_size=2,
        num_position_embeddings=16,
        image_token_id=id_of(tokenizer, "<|image_pad|>"),
        video_token_id=id_of(tokenizer, "<|video_pad|>"),
        vision_start_token_id=id_of(tokenizer, "<|vision_start|>"),
        vision_end_token_id=id_of(tokenizer, "<|vision_end|>"),
    )


def seeing_validator(
    checkpoint: CheckpointText,
    model_config: ModelConfig,
    reader: ConstraintReader,
    *,
    literal_control_tokens: bool = False,
) -> Validator:
    validator = Validator(
        checkpoint.tokenizer,
        checkpoint.template,
        msgspec.structs.replace(model_config, vision=vision_of(checkpoint.tokenizer)),
        checkpoint.defaults,
        served_names=("tiny", "alias"),
        max_model_len=model_config.max_position_embeddings,
        constraints=reader,
        literal_control_tokens=literal_control_tokens,
    )
    validator.serves_media = True
    return validator


def id_of(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.id_of(name)
    assert found is not None
    return found
