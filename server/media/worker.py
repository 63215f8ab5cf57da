"""Decodes images and videos in a process of its own, which can be killed and has a memory bound.

Reads frames from standard input and answers on standard output: a length of four bytes and a
msgpack body. An `Ask` is answered by an `Answer` and then as many pictures as that announces. Ends
when its input does, so it never outlives the server.
"""

import contextlib
import resource
import struct
import sys
from typing import BinaryIO

import msgspec

from server.media.image import read_image
from server.media.loaded import MediaKind, Picture
from server.media.unusable import NOT_DECODED, Unusable
from server.media.video import read_video

MAX_MEMORY_BYTES = 4 << 30

_LENGTH = struct.Struct("<I")


class Ask(msgspec.Struct, frozen=True, array_like=True):
    kind: MediaKind
    data: bytes
    temporal_factor: int
    factor: int
    min_pixels: int
    max_pixels: int


class Answer(msgspec.Struct, frozen=True, array_like=True):
    num_pictures: int = 0
    refusal: str | None = None  # for the client


def write_frame(stream: BinaryIO, message: Ask | Answer | Picture) -> None:
    body = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(body)))
    stream.write(body)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next body; None at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None


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
                )
            ]
        return read_video(
            ask.data,
            temporal_factor=ask.temporal_factor,
            factor=ask.factor,
            min_pixels=ask.min_pixels,
            max_pixels=ask.max_pixels,
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
