"""Has images and videos decoded in a worker process, which is killed when one takes too long.

One process and one thread that talks to it, so media are decoded one at a time, in the order they
came. The process starts with the first of them, and again after it was killed. It is killed also
when a medium goes on being decoded for which nobody waits any more; most are done before that.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec

from engine import VisionConfig
from server.child import Child, ReadFrame
from server.errors import Unavailable
from server.limits import DEFAULT_LIMITS, Limits
from server.media.loaded import MediaKind, Picture
from server.media.pixel_limits import PixelLimits
from server.media.unusable import NOT_DECODED, Unusable
from server.media.worker import Answer, Ask

IMAGE_LIMIT_S = 20.0  # the largest takes about one second of a processor
VIDEO_LIMIT_S = 30.0
WORKER = "server.media.worker"
UNWANTED_LIMIT_S = 1.0  # to end what nobody waits for; a new worker costs about as much


class Decoder:
    def __init__(
        self,
        vision: VisionConfig,
        pixel_limits: PixelLimits,
        *,
        limits: Limits = DEFAULT_LIMITS,
        image_limit_s: float = IMAGE_LIMIT_S,
        video_limit_s: float = VIDEO_LIMIT_S,
    ) -> None:
        self._factor = vision.merged_size
        self._temporal_factor = vision.temporal_patch_size
        self._pixel_limits = pixel_limits
        self._limits = limits
        self._limits_s: dict[MediaKind, float] = {"image": image_limit_s, "video": video_limit_s}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="media-decoder")
        self._worker = Child(WORKER)
        self._lock = threading.Lock()
        self._current: _Job | None = None
        self._is_closed = False

    async def decode(self, kind: MediaKind, data: bytes) -> tuple[Picture, ...]:
        """At least one picture. Raises Unusable."""
        if self._is_closed:
            raise _closing()
        job = _Job()
        future = self._thread.submit(self._decode, job, kind, data)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            with self._lock:
                job.is_wanted = False
            asyncio.get_running_loop().call_later(UNWANTED_LIMIT_S, self._end, job)
            raise

    async def close(self) -> None:
        """End the process. What is being decoded or waits for it is refused."""
        self._is_closed = True
        self._worker.close()
        await asyncio.to_thread(self._thread.shutdown)
        self._worker.stop()

    def _end(self, job: "_Job") -> None:
        with self._lock:
            if self._current is job:
                self._worker.kill()

    def _decode(self, job: "_Job", kind: MediaKind, data: bytes) -> tuple[Picture, ...]:
        with self._lock:
            if not job.is_wanted:
                raise Unusable(NOT_DECODED)
            self._current = job
        try:
            return self._asked(job, self._ask(kind, data), self._limits_s[kind])
        finally:
            with self._lock:
                self._current = None

    def _asked(self, job: "_Job", ask: Ask, limit_s: float) -> tuple[Picture, ...]:
        for _ in range(2):  # a worker that died of it may have been somebody's kill, once
            if self._is_closed:
                raise _closing()
            answer = self._worker.ask(ask, limit_s, _take)
            if answer is not None:
                return answer
            if self._worker.is_late:
                raise Unusable("takes too long to decode")
            if not job.is_wanted:
                break
        raise Unusable(NOT_DECODED)

    def _ask(self, kind: MediaKind, data: bytes) -> Ask:
        limits = self._pixel_limits
        return Ask(
            kind=kind,
            data=data,
            temporal_factor=self._temporal_factor,
            factor=self._factor,
            min_pixels=limits.min_image if kind == "image" else limits.min_video,
            max_pixels=limits.max_image if kind == "image" else limits.max_video,
            sampling=limits.sampling,
            limits=self._limits,
        )


class _Job:
    """Whether somebody still waits for a medium. Read and written under the decoder's lock."""

    def __init__(self) -> None:
        self.is_wanted = True


def _closing() -> Unavailable:
    return Unavailable("The server is shutting down.", code="draining")


def _take(read: ReadFrame) -> tuple[Picture, ...] | None:
    """None if the worker ends before it has said all. Raises Unusable."""
    body = read()
    if body is None:
        return None
    answer = msgspec.msgpack.decode(body, type=Answer)
    if answer.refusal is not None:
        raise Unusable(answer.refusal)
    pictures: list[Picture] = []
    for _ in range(answer.num_pictures):
        body = read()
        if body is None:
            return None
        pictures.append(msgspec.msgpack.decode(body, type=Picture))
    return tuple(pictures)
