"""Requests that can be read only up to where their images and videos are needed.

Reading a request is plain code in a thread; loading media waits for the network. So a reader
returns what it read or, if the request names media, an `AwaitsMedia`: what is to be loaded, and how
to go on with it. `Site` loads and goes on.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from server.media.loaded import LoadedMedia, MediaRef
from server.media_parts import LoadedByKey, MediaKey, key_of

T = TypeVar("T")
U = TypeVar("U")


class MediaSource(Protocol):
    """`server.media.MediaLoader`, or a fake one."""

    async def load(self, refs: Sequence[MediaRef]) -> list[LoadedMedia]:
        """What each refers to. Raises BadRequest that names the path of one that is not usable."""
        ...

    def release(self, media: Sequence[LoadedMedia]) -> None:
        """To be called once for what was loaded, when its request ends."""
        ...


@dataclass(frozen=True, slots=True)
class AwaitsMedia(Generic[T]):
    refs: tuple[MediaRef, ...]  # at least one
    go_on: Callable[[LoadedByKey], T]  # to be called in a thread; may raise BadRequest


def with_media(refs: Sequence[MediaRef], go_on: Callable[[LoadedByKey], T]) -> T | AwaitsMedia[T]:
    """Go on at once if there is nothing to wait for."""
    return AwaitsMedia(tuple(refs), go_on) if refs else go_on({})


def then(read: T | AwaitsMedia[T], make: Callable[[T], U]) -> U | AwaitsMedia[U]:
    """`make` of what was read, now or when the media are there."""
    if isinstance(read, AwaitsMedia):
        go_on = read.go_on
        return AwaitsMedia(read.refs, lambda media: make(go_on(media)))
    return make(read)


@asynccontextmanager
async def media_held(
    source: MediaSource, refs: Sequence[MediaRef]
) -> AsyncGenerator[LoadedByKey, None]:
    """What `refs` name, each loaded only once, until the end of the block."""
    distinct: dict[MediaKey, MediaRef] = {}
    for ref in refs:
        distinct.setdefault(key_of(ref), ref)
    loaded = await source.load(list(distinct.values()))
    try:
        yield dict(zip(distinct, loaded, strict=True))
    finally:
        source.release(loaded)
