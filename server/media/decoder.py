"""Has images and videos decoded in a worker process, which is killed when one takes too long.

One process and one thread that talks to it, so media are decoded one at a time, in the order they
came. The process starts with the first of them, and again after it was killed. It is killed also
when a medium goes on being decoded for which nobody waits any more; most are done before that.
"""

import asyncio
import contextlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from engine import VisionConfig
from server.errors import Unavailable
from server.media.loaded import MediaKind, Picture
from server.media.pixel_limits import PixelLimits
from server.media.unusable import NOT_DECODED, Unusable
from server.media.worker import Answer, Ask, read_frame, write_frame

IMAGE_LIMIT_S = 20.0  # the largest takes about one second of a processor
VIDEO_LIMIT_S = 30.0
UNWANTED_LIMIT_S = 1.0  # to end what nobody waits for; a new worker costs about as much
START_LIMIT_S = 60.0  # of a worker, which imports little: a busy machine's worst

_ROOT = Path(__file__).resolve().parents[2]
# Not `-m`: that looks for `server` in the user's working directory first.
_COMMAND = (
    sys.executable,
    "-P",
    "-c",
    f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from server.media.worker import main; main()",
)


class Decoder:
    def __init__(
        self,
        vision: VisionConfig,
        pixel_limits: PixelLimits,
        *,
        image_limit_s: float = IMAGE_LIMIT_S,
        video_limit_s: float = VIDEO_LIMIT_S,
    ) -> None:
        self._factor = vision.merged_size
        self._temporal_factor = vision.temporal_patch_size
        self._pixel_limits = pixel_limits
        self._limits_s: dict[MediaKind, float] = {"image": image_limit_s, "video": video_limit_s}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="media-decoder")
        self._worker = _Worker()
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
            answer = self._worker.ask(ask, limit_s)
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
        )


class _Job:
    """Whether somebody still waits for a medium. Read and written under the decoder's lock."""

    def __init__(self) -> None:
        self.is_wanted = True


def _closing() -> Unavailable:
    return Unavailable("The server is shutting down.", code="draining")


class _Worker:
    """Belongs to one thread, but for `kill` and `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False  # it has said so
        self._is_closed = False
        self.is_late = False  # its time was up

    def close(self) -> None:
        """End the process; one that is being started ends too."""
        self._is_closed = True
        self.kill()

    def kill(self) -> None:
        """End what the worker does, from any thread; whoever waits for it learns so."""
        if (process := self._process) is not None:
            process.kill()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # of what was left to write
                        stream.close()

    def ask(self, ask: Ask, limit_s: float) -> tuple[Picture, ...] | None:
        """None: it took too long (`is_late`), or the worker died. Raises Unusable."""
        process = self._running()
        if not self._is_ready:
            self._is_ready = self._within(process, START_LIMIT_S, None) is not None
        answer = self._within(process, limit_s, ask) if self._is_ready else None
        if answer is None:
            self.stop()
        return answer

    def _within(
        self, process: "subprocess.Popen[bytes]", limit_s: float, ask: Ask | None
    ) -> tuple[Picture, ...] | None:
        """What the worker says to `ask`, or by itself; it is killed when the time is up."""

        def end() -> None:
            self.is_late = True
            process.kill()

        self.is_late = False
        timer = threading.Timer(limit_s, end)
        timer.start()
        try:
            return _exchange(process, ask)
        finally:
            timer.cancel()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._is_ready = False
            self._process = subprocess.Popen(
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # would quote the client
            )
            if self._is_closed:
                self._process.kill()
        return self._process


def _exchange(process: "subprocess.Popen[bytes]", ask: Ask | None) -> tuple[Picture, ...] | None:
    """None if the worker ends before it has said all. Raises Unusable."""
    assert process.stdin is not None
    assert process.stdout is not None
    if ask is not None:
        try:
            write_frame(process.stdin, ask)  # type: ignore[arg-type]
        except BrokenPipeError:
            return None
    body = read_frame(process.stdout)  # type: ignore[arg-type]
    if body is None:
        return None
    answer = msgspec.msgpack.decode(body, type=Answer)
    if answer.refusal is not None:
        raise Unusable(answer.refusal)
    pictures: list[Picture] = []
    for _ in range(answer.num_pictures):
        body = read_frame(process.stdout)  # type: ignore[arg-type]
        if body is None:
            return None
        pictures.append(msgspec.msgpack.decode(body, type=Picture))
    return tuple(pictures)
