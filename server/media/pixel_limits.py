"""How many pixels the checkpoint's preprocessors ask for: of an image, and of all of a video."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from engine import read_config_file

IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
NORMALISATION = 0.5  # mean and deviation of every channel: what the engine computes with


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Areas after resizing; of a video summed over its frames."""

    min_image: int = 65_536
    max_image: int = 16_777_216
    min_video: int = 4_096
    max_video: int = 25_165_824

    @classmethod
    def from_dir(cls, model_dir: Path) -> "PixelLimits":
        """Raises ValueError for files that ask for what is not done here."""
        min_image, max_image = _read(model_dir / IMAGE_FILE, cls().min_image, cls().max_image)
        min_video, max_video = _read(model_dir / VIDEO_FILE, cls().min_video, cls().max_video)
        return cls(min_image, max_image, min_video, max_video)


def _read(path: Path, minimum: int, maximum: int) -> tuple[int, int]:
    fields = read_config_file(path)
    size = fields.get("size")
    sizes = cast(dict[str, Any], size) if isinstance(size, dict) else {}
    for where, smallest, largest in (
        (sizes, "shortest_edge", "longest_edge"),
        (sizes, "min_pixels", "max_pixels"),
        (fields, "min_pixels", "max_pixels"),
    ):
        minimum = _area(path, where, smallest, minimum)
        maximum = _area(path, where, largest, maximum)
    if minimum > maximum:
        raise ValueError(f"{path}: at least {minimum} pixels and at most {maximum} exclude another")
    for name in ("image_mean", "image_std"):
        given = fields.get(name)
        values = cast(list[Any], given) if isinstance(given, list) else [given]
        if given is not None and any(value != NORMALISATION for value in values):
            raise ValueError(f"{path}: {name} is {given}; only {NORMALISATION} is supported")
    return minimum, maximum


def _area(path: Path, fields: dict[str, Any], name: str, default: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{path}: {name} is {value!r}, not a number of pixels")
    return value
