"""Decodes images and videos in a process of its own, which can be killed and has a memory bound.

Run by `server.child`: an `Ask` is answered by an `Answer`, and then by as many pictures as that
announces.
"""

import contextlib
import resource
import sys

import msgspec

from server.child import read_frame, write_frame
from server.limits import DEFAULT_LIMITS, Limits
from server.media.image import read_image
from server.media.loaded import MediaKind, Picture
from server.media.pixel_limits import FrameSampling
from server.media.unusable import NOT_DECODED, Unusable
from server.media.video import read_video

MAX_MEMORY_BYTES = 4 << 30


class Ask(msgspec.Struct, frozen=True, array_like=True):
    kind: MediaKind
    data: bytes
    temporal_factor: int
    factor: int
    min_pixels: int
    max_pixels: int
    sampling: FrameSampling
    limits: Limits = DEFAULT_LIMITS


class Answer(msgspec.Struct, frozen=True, array_like=True):
    num_pictures: int = 0
    refusal: str | None = None  # for the client


def pictures_of(ask: Ask) -> list[Picture]:
    """Raises Unusable, whatever is wrong with the bytes."""
    try:
        if ask.kind == "image":
            return [
                read_image(
                    ask.data,
                    factor=ask.factor,
                    min_pixels=ask.min_pixels,
                    max_pixels=ask.max_pixels,
                    limits=ask.limits,
                )
            ]
        return read_video(
            ask.data,
            temporal_factor=ask.temporal_factor,
            factor=ask.factor,
            min_pixels=ask.min_pixels,
            max_pixels=ask.max_pixels,
            sampling=ask.sampling,
            limits=ask.limits,
        )
    except Unusable:
        raise
    except Exception:  # hostile bytes raise anything out of a decoder, and it is their fault
        raise Unusable(NOT_DECODED) from None


def main() -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower limit is already set
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    write_frame(sys.stdout.buffer, Answer())  # ready: the clock of the first question starts now
    while (body := read_frame(sys.stdin.buffer)) is not None:
        try:
            pictures = pictures_of(msgspec.msgpack.decode(body, type=Ask))
        except Unusable as error:
            write_frame(sys.stdout.buffer, Answer(refusal=error.reason))
            continue
        write_frame(sys.stdout.buffer, Answer(num_pictures=len(pictures)))
        for picture in pictures:
            write_frame(sys.stdout.buffer, picture)


if __name__ == "__main__":
    main()
