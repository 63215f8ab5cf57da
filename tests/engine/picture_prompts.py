"""Prompts with random pictures, laid out as the server does for the tiny tower: 8 x 8 pixels are a
token, and each picture stands between its two markers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from engine.request import Media
from tests.checkpoints import IMAGE_ID, NUM_TEXT_TOKENS, VIDEO_ID, VISION_END_ID, VISION_START_ID

SIDE = 8  # pixels


@dataclass(frozen=True)
class Shape:
    """A picture to be drawn, sides in tokens."""

    height: int
    width: int
    num_frames: int = 1


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    media: tuple[Media, ...]


def picture(shape: Shape, *, start: int = 0, seed: int = 0) -> Media:
    height, width = shape.height * SIDE, shape.width * SIDE
    pixels = random.Random(seed).randbytes(shape.num_frames * height * width * 3)
    return Media.of(start, shape.num_frames, height, width, pixels)


def make_prompt(pieces: Sequence[int | Shape], *, seed: int = 0, picture_seed: int = 0) -> Prompt:
    """`pieces`: a number of words, or a picture."""
    rng = random.Random(seed)
    ids: list[int] = []
    media: list[Media] = []
    for piece in pieces:
        if isinstance(piece, int):
            ids += rng.choices(range(NUM_TEXT_TOKENS), k=piece)
            continue
        ids.append(VISION_START_ID)
        drawn = picture(piece, start=len(ids), seed=100 * picture_seed + len(media))
        media.append(drawn)
        placeholder = IMAGE_ID if piece.num_frames == 1 else VIDEO_ID
        ids += [placeholder] * (piece.height * piece.width) + [VISION_END_ID]
    return Prompt(ids, tuple(media))
