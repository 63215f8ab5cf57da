"""Pictures as they pass from what a client sent to what the engine sees."""

from dataclasses import dataclass
from typing import Literal

MediaKind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class MediaRef:
    """An image or a video somewhere in a request."""

    kind: MediaKind
    url: str  # data:, http(s): or file:
    path: str  # where it stands in the request, for errors


@dataclass(frozen=True, slots=True)
class Picture:
    """What one block of placeholder tokens stands for; see `engine.Media`."""

    num_frames: int  # 1: an image; the tower's temporal patch size: a part of a video
    height: int  # pixels, like the width a multiple of the tower's merged patch
    width: int
    pixels: bytes  # uint8 RGB, [num_frames, height, width, 3]
    second: float | None = None  # of a video: the mean source time of the frames


@dataclass(frozen=True, slots=True)
class LoadedMedia:
    kind: MediaKind
    pictures: tuple[Picture, ...]  # one for an image; one per temporal patch of a video
