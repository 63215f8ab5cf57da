"""Encoded videos -> pictures of some frames each, with their times. Runs in the worker process.

So many frames of every second as the checkpoint asks for, spread evenly from the first to the last,
as its own preprocessing takes them. Only the given bytes are read: the container is told by its
first bytes, so that no format that refers to other files is ever tried, and what a container wants
to open besides is refused. Decoders are a short list too.
"""

import io
from collections.abc import Generator
from contextlib import contextmanager

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from server.limits import DEFAULT_LIMITS, Limits
from server.media.image import check_sides
from server.media.loaded import Picture
from server.media.pixel_limits import FrameSampling
from server.media.resize import video_size
from server.media.unusable import NOT_DECODED, Unusable

FRAMES_PER_S_UNTOLD = 24
CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"}
NUM_THREADS = 4

_MATROSKA_START = b"\x1a\x45\xdf\xa3"
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_OPTIONS = {
    "protocol_whitelist": "none",
    "codec_whitelist": "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,mpeg4",
}


def read_video(
    data: bytes,
    *,
    temporal_factor: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    sampling: FrameSampling,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Picture]:
    """One picture per `temporal_factor` frames. Raises Unusable, or what the decoder does."""
    with _opened(data, limits) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else float(FRAMES_PER_S_UNTOLD)
        total = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    while True:
        if total < 1:
            raise Unusable(NOT_DECODED)
        indices = sampled_indices(total, fps, sampling, limits.max_video_frames)
        frames, num_decoded = _resized_frames(
            data, indices, temporal_factor, factor, min_pixels, max_pixels, limits
        )
        if len(frames) == len(indices):
            break
        assert num_decoded < total
        total = num_decoded  # the container promised more
    padding = -len(frames) % temporal_factor
    frames += [frames[-1]] * padding
    indices += [indices[-1]] * padding
    return [
        _picture(frames[start:end], (indices[start] + indices[end - 1]) / fps / 2)
        for start in range(0, len(frames), temporal_factor)
        for end in (start + temporal_factor,)
    ]


def sampled_indices(
    total: int, fps: float, sampling: FrameSampling, most: int = DEFAULT_LIMITS.max_video_frames
) -> list[int]:
    """Which of `total` frames are kept: rising, and none twice."""
    num_frames = int(total / fps * sampling.per_s)
    num_frames = min(max(num_frames, sampling.minimum), sampling.maximum, most, total)
    return np.linspace(0, total - 1, num_frames).round().astype(int).tolist()


@contextmanager
def _opened(
    data: bytes, limits: Limits
) -> Generator[tuple[InputContainer, VideoStream], None, None]:
    with av.open(
        io.BytesIO(data),
        mode="r",
        format=_container_format(data),
        options={**_OPTIONS, "max_pixels": str(limits.max_image_pixels)},
        metadata_errors="replace",
        io_open=_refuse_to_open,
    ) as container:
        if not container.streams.video:
            raise Unusable("has no video track")
        stream = container.streams.video[0]
        codec = stream.codec_context
        if codec is None or codec.codec.canonical_name not in CODECS:  # pyright: ignore[reportUnnecessaryComparison]
            raise Unusable("is not in H.264, H.265, VP8, VP9, AV1 or MPEG-4")
        codec.options = {"max_pixels": str(limits.max_image_pixels)}
        codec.thread_type = "AUTO"
        codec.thread_count = NUM_THREADS
        yield container, stream


def _container_format(data: bytes) -> str:
    if data[4:8] in _MP4_BOXES:
        return "mov"
    if data.startswith(_MATROSKA_START):
        return "matroska"
    raise Unusable("is not an MP4, QuickTime, WebM or Matroska video")


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> object:
    raise PermissionError("a video is only its own bytes")


def _resized_frames(
    data: bytes,
    indices: list[int],
    temporal_factor: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    limits: Limits,
) -> tuple[list[Image.Image], int]:
    """The frames at `indices` as far as they exist, and how many were decoded for that."""
    frames: list[Image.Image] = []
    num_decoded = 0
    size = None
    num_pixels = 0
    with _opened(data, limits) as (container, stream):
        for frame in container.decode(stream):
            num_decoded += 1
            if num_decoded <= indices[len(frames)]:
                continue
            check_sides(frame.height, frame.width, limits)
            num_pixels += frame.height * frame.width
            # Judged by the first: all of them are decoded before it is known otherwise.
            most = limits.max_video_pixels
            if max(num_pixels, len(indices) * frame.height * frame.width) > most:
                raise Unusable(f"has more than {most / 1_000_000:g} megapixels in all")
            image = _upright(frame)
            if size is None:
                height, width = video_size(
                    len(indices),
                    image.height,
                    image.width,
                    temporal_factor=temporal_factor,
                    factor=factor,
                    min_pixels=min_pixels,
                    max_pixels=max_pixels,
                )
                size = (width, height)
            frames.append(image.resize(size, Image.Resampling.BICUBIC))
            if len(frames) == len(indices):
                break
    return frames, num_decoded


def _upright(frame: VideoFrame) -> Image.Image:
    """The frame as RGB, turned as its container says: telephones write what they see lying."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation % 90 == 0 else image


def _picture(frames: list[Image.Image], second: float) -> Picture:
    return Picture(
        num_frames=len(frames),
        height=frames[0].height,
        width=frames[0].width,
        pixels=b"".join(frame.tobytes() for frame in frames),
        second=second,
    )
