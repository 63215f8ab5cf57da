"""What the checkpoint's preprocessors ask for: pixels of an image or a video, and its frames."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from engine import read_config_file
from server.limits import DEFAULT_LIMITS

IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
NORMALISATION = 0.5  # mean and deviation of every channel: what the engine computes with


MAX_FRAMES = DEFAULT_LIMITS.max_video_frames  # of a video, whatever the checkpoint asks for


class FrameSampling(msgspec.Struct, frozen=True, array_like=True):
    """How many frames of a video are looked at; crosses to the process that decodes."""

    per_s: float = 2.0
    minimum: int = 4
    maximum: int = MAX_FRAMES


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Areas after resizing; of a video summed over its frames."""

    min_image: int = 65_536
    max_image: int = 16_777_216
    min_video: int = 4_096
    max_video: int = 25_165_824
    sampling: FrameSampling = field(default_factory=FrameSampling)

    @classmethod
    def from_dir(cls, model_dir: Path) -> "PixelLimits":
        """Raises ValueError for files that ask for what is not done here."""
        default = cls()
        path = model_dir / IMAGE_FILE
        image = _areas(path, read_config_file(path), default.min_image, default.max_image)
        path = model_dir / VIDEO_FILE
        fields = read_config_file(path)
        video = _areas(path, fields, default.min_video, default.max_video)
        return cls(*image, *video, _sampling(path, fields))


def _sampling(path: Path, fields: dict[str, Any]) -> FrameSampling:
    default = FrameSampling()
    per_s = fields.get("fps")
    per_s = default.per_s if per_s is None else per_s
    if not isinstance(per_s, int | float) or isinstance(per_s, bool) or not 0 < per_s <= 1000:
        raise ValueError(f"{path}: fps is {per_s!r}, not a number of frames per second")
    minimum = _positive(path, fields, "min_frames", default.minimum)
    maximum = min(_positive(path, fields, "max_frames", default.maximum), MAX_FRAMES)
    if minimum > maximum:
        raise ValueError(f"{path}: at least {minimum} frames and at most {maximum} exclude another")
    return FrameSampling(float(per_s), minimum, maximum)


def _areas(path: Path, fields: dict[str, Any], minimum: int, maximum: int) -> tuple[int, int]:
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
