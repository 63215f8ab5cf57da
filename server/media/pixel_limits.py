"""What the checkpoint's preprocessors ask for: pixels of an image or a video, and its frames."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from engine import read_config_file

IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
NORMALISATION = 0.5  # mean and deviation of every channel: what the engine computes with


MAX_FRAMES = 768  # of a video, whatever the checkpoint asks for


class FrameSampling(msgspec.Struct, frozen=True, array_like=True):
    """How many frames of a video are looked at; crosses to the process that decodes."""

    per_s: float = 2.0
    minimum: int = 4
    maximum: int = MAX_FRAMES


_TWO_PER_S = FrameSampling()


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Areas after resizing; of a video summed over its frames."""

    min_image: int = 65_536
    max_image: int = 16_777_216
    min_video: int = 4_096
    max_video: int = 25_165_824
    sampling: FrameSampling = _TWO_PER_S

    @classmethod
    def from_dir(cls, model_dir: Path) -> "PixelLimits":
        """Raises ValueError for files that ask for what is not done here."""
        min_image, max_image = _read(model_dir / IMAGE_FILE, cls().min_image, cls().max_image)
        min_video, max_video = _read(model_dir / VIDEO_FILE, cls().min_video, cls().max_video)
        return cls(min_image, max_image, min_video, max_video, _sampling(model_dir / VIDEO_FILE))


def _sampling(path: Path) -> FrameSampling:
    fields = read_config_file(path)
    default = _TWO_PER_S
    per_s = fields.get("fps", default.per_s)
    if not isinstance(per_s, int | float) or isinstance(per_s, bool) or not 0 < per_s <= 1000:
        raise ValueError(f"{path}: fps is {per_s!r}, not a number of frames per second")
    minimum = _positive(path, fields, "min_frames", default.minimum)
    maximum = min(_positive(path, fields, "max_frames", default.maximum), MAX_FRAMES)
    if minimum > maximum:
        raise ValueError(f"{path}: at least {minimum} frames and at most {maximum} exclude another")
    return FrameSampling(float(per_s), minimum, maximum)


def _read(path: Path, minimum: int, maximum: int) -> tuple[int, int]:
    fields = read_config_file(path)
    size = fields.get("size")
    sizes = cast(dict[str, Any], size) if isinstance(size, dict) else {}
    for where, smallest, largest in (
        (sizes, "shortest_edge", "longest_edge"),
        (sizes, "min_pixels", "max_pixels"),
        (fields, "min_pixels", "max_pixels"),
    ):
        minimum = _positive(path, where, smallest, minimum)
        maximum = _positive(path, where, largest, maximum)
    if minimum > maximum:
        raise ValueError(f"{path}: at least {minimum} pixels and at most {maximum} exclude another")
    for name in ("image_mean", "image_std"):
        given = fields.get(name)
        values = cast(list[Any], given) if isinstance(given, list) else [given]
        if given is not None and any(value != NORMALISATION for value in values):
            raise ValueError(f"{path}: {name} is {given}; only {NORMALISATION} is supported")
    return minimum, maximum


def _positive(path: Path, fields: dict[str, Any], name: str, default: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{path}: {name} is {value!r}, not a number above 0")
    return value
