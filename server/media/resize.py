"""The size a picture is brought to: multiples of the tower's merged patch, within an area.

The arithmetic is the checkpoints' own, rounding half to even included: another size is another
number of tokens than the model was trained to see.
"""

import math


def image_size(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """(height, width) for an image whose sides are at most 200 : 1."""
    return _fitted(1, 1, height, width, factor, min_pixels, max_pixels)


def video_size(
    num_frames: int,
    height: int,
    width: int,
    *,
    temporal_factor: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    """(height, width) for each of a video's frames; the limits are for all of them together."""
    num_frames = max(num_frames, temporal_factor)  # a lone frame is repeated
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    rounded_frames = round(num_frames / temporal_factor) * temporal_factor
    return _fitted(num_frames, rounded_frames, height, width, factor, min_pixels, max_pixels)


def _fitted(
    num_frames: int,
    rounded_frames: int,
    height: int,
    width: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    rounded_height = round(height / factor) * factor
    rounded_width = round(width / factor) * factor
    area = rounded_frames * rounded_height * rounded_width
    if area > max_pixels:
        shrink = math.sqrt((num_frames * height * width) / max_pixels)
        return (
            max(factor, math.floor(height / shrink / factor) * factor),
            max(factor, math.floor(width / shrink / factor) * factor),
        )
    if area < min_pixels:
        grow = math.sqrt(min_pixels / (num_frames * height * width))
        return (
            math.ceil(height * grow / factor) * factor,
            math.ceil(width * grow / factor) * factor,
        )
    return rounded_height, rounded_width
