"""Turns the images and videos that a request names into pictures, or refuses the request.

What one request may hold is bounded here: in number, and in pixels after resizing; and what all
requests hold together, from when a picture is decoded until whoever asked for it lets it go. The
media of a request are read side by side, and decoded one image and one video at a time; the first
that is unusable ends all.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

from engine import QueueFull, VisionConfig
from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS, Limits
from server.media.access import MediaAccess
from server.media.decoder import Decoder
from server.media.fetch import Fetcher
from server.media.loaded import LoadedMedia, MediaKind, MediaRef
from server.media.pixel_limits import PixelLimits
from server.media.source import Source
from server.media.unusable import Unusable

KINDS: tuple[MediaKind, ...] = ("image", "video")
MAX_PIXELS = 1 << 28  # of a request: more tokens than the longest window of the models has
MAX_REQUEST_BYTES = 3 * MAX_PIXELS
MAX_HELD_BYTES = 2 << 30  # of pixels, by all requests
MAX_AT_ONCE = 16  # media that are held as bytes, besides what requests hold themselves


class MediaLoader:
    def __init__(
        self,
        vision: VisionConfig,
        *,
        access: MediaAccess,
        pixel_limits: PixelLimits,
        fetcher: Fetcher | None = None,
        max_held_bytes: int = MAX_HELD_BYTES,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._limits = limits
        self._max_held_bytes = max_held_bytes
        self._num_held_bytes = 0
        self._source = Source(access, fetcher or Fetcher(access, limits=limits), limits)
        # One each: no image waits for a long video.
        self._decoders: dict[MediaKind, Decoder] = {
            kind: Decoder(vision, pixel_limits, limits=limits) for kind in KINDS
        }
        self._carried = asyncio.Semaphore(MAX_AT_ONCE)  # slow hosts do not hold up data: URLs
        self._elsewhere = asyncio.Semaphore(MAX_AT_ONCE)

    async def load(self, refs: Sequence[MediaRef]) -> list[LoadedMedia]:
        """In the order of `refs`; to be given back by `release`.

        Raises BadRequest that names the place of what is unusable, QueueFull when other requests
        hold too much.
        """
        check_number(refs, self._limits)
        held: list[LoadedMedia] = []

        async def load(ref: MediaRef) -> LoadedMedia:
            media = await self._load(ref)
            self._num_held_bytes += _num_bytes(media)
            held.append(media)
            if sum(map(_num_bytes, held)) > MAX_REQUEST_BYTES:
                raise BadRequest("The images and videos are too large together.", param=ref.path)
            if self._num_held_bytes > self._max_held_bytes:
                raise QueueFull("other requests hold too many images and videos")
            return media

        tasks = [asyncio.ensure_future(load(ref)) for ref in refs]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            self.release(held)
            raise
        finally:
            for task in tasks:
                task.cancel()

    def release(self, media: Sequence[LoadedMedia]) -> None:
        """What `load` returned is not needed any more."""
        self._num_held_bytes -= sum(map(_num_bytes, media))

    async def close(self) -> None:
        await asyncio.gather(*(decoder.close() for decoder in self._decoders.values()))

    async def _load(self, ref: MediaRef) -> LoadedMedia:
        url = ref.url.strip()
        is_carried = url[:5].lower() == "data:"
        async with self._carried if is_carried else self._elsewhere:
            try:
                data = await self._source.read(url, ref.kind)
                pictures = await self._decoders[ref.kind].decode(ref.kind, data)
            except Unusable as error:
                raise BadRequest(f"{ref.path} {error.reason}.", param=ref.path) from None
        return LoadedMedia(ref.kind, pictures)


def _num_bytes(media: LoadedMedia) -> int:
    return sum(len(picture.pixels) for picture in media.pictures)


def check_number(refs: Sequence[MediaRef], limits: Limits) -> None:
    """Raises BadRequest that names the first of too many."""
    most_of: dict[MediaKind, int] = {"image": limits.max_images, "video": limits.max_videos}
    counts: Counter[MediaKind] = Counter()
    for ref in refs:
        counts[ref.kind] += 1
        if counts[ref.kind] > (most := most_of[ref.kind]):
            raise BadRequest(f"{ref.path}: there are more than {most} {ref.kind}s", param=ref.path)
