"""The engine as the server holds it: a child process, watched, restarted, never waited for in vain.

Owns the child, its socket and the open streams, all on one asyncio loop. What can happen:

- the child dies, or its step counter stands still for `stall_limit_s` while there is work: every
  open stream raises EngineDied, the state is `dead`, and the engine is started again after 1, 2,
  4 .. 60 s, at most `MAX_RESTARTS` times in `RESTART_WINDOW_S`; then `on_give_up` is called;
- the first start fails: `start` raises EngineDied and no child is left;
- this process dies: the child sees its standard input close, and ends.
"""

import asyncio
import contextlib
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from engine.client import EngineInfo, EngineState, EngineStats
from engine.config import EngineConfig
from engine.errors import BY_CODE, EngineDied, EngineError, EngineStarting, RequestFailed
from engine.ipc import (
    Cancel,
    Deltas,
    Failed,
    Heartbeat,
    Hello,
    Ready,
    Start,
    Submit,
    ToEngine,
    ToServer,
    decode_to_server,
    encode,
)
from engine.request import Request, TokenDelta
from engine.worker import EXIT_BAD_CONFIG, start_frame

MAX_RESTARTS = 5
RESTART_WINDOW_S = 600.0
WATCH_PERIOD_S = 0.5
STOP_GRACE_S = 5.0

_ROOT = Path(__file__).resolve().parents[1]
# Not `-m`: that looks for `engine` in the user's working directory first.
WORKER_COMMAND = (
    sys.executable,
    "-P",
    "-c",
    f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from engine.build import main; main()",
)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Stream:
    """What arrived for one request and was not consumed yet."""

    deltas: list[TokenDelta] = field(default_factory=list[TokenDelta])
    error: EngineError | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class EngineProcess:
    """Implements `engine.client.EngineClient` with an engine in a child process."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        stall_limit_s: float = 60.0,
        first_backoff_s: float = 1.0,
        on_stats: Callable[[EngineStats], None] | None = None,
        on_give_up: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._command = tuple(command)
        self._stall_limit_s = stall_limit_s
        self._first_backoff_s = first_backoff_s
        self._on_stats = on_stats
        self._on_give_up = on_give_up
        self._state: EngineState = "starting"
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._num_restarts = 0
        self._streams: dict[str, _Stream] = {}
        self._folder: str | None = None
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._moved = False  # the engine said that it is idle or made a step, since the last look

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def stats(self) -> EngineStats:
        return msgspec.structs.replace(self._stats, num_restarts=self._num_restarts)

    async def start(self) -> EngineInfo:
        """Start the child and wait until it is ready. Raises EngineDied if it ends before that."""
        self._folder = tempfile.mkdtemp(prefix="deltaserve-")  # mode 0700
        ready: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(ready))
        try:
            return await ready
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the child and everything still open. Safe to call twice."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        self._state = "dead"
        self._fail_streams("the engine was stopped")
        self._context.destroy(linger=0)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def submit(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """See `EngineClient.submit`."""
        if self._state == "starting":
            raise EngineStarting("the engine is starting")
        if self._state == "dead":
            raise EngineDied("the engine is not running")
        stream = self._streams[request.id] = _Stream()
        self._send(Submit(request))
        over = False
        try:
            while not over:
                await stream.arrived.wait()
                stream.arrived.clear()
                if stream.deltas:
                    deltas, stream.deltas = stream.deltas, []
                    over = deltas[-1].finish is not None
                    yield _merge(deltas)
                if stream.error is not None:
                    over = True
                    raise stream.error
        finally:
            self._streams.pop(request.id, None)
            if not over:
                self._send(Cancel(request.id))

    def cancel(self, request_id: str) -> None:
        """See `EngineClient.cancel`: the stream of the request, if open, raises RequestFailed."""
        if stream := self._streams.get(request_id):
            stream.error = RequestFailed("the request was cancelled")
            stream.arrived.set()
            self._send(Cancel(request_id))

    async def _supervise(self, first_ready: asyncio.Future[EngineInfo]) -> None:
        """Keep one child running: the only place that starts, watches and ends it."""
        restarts: list[float] = []
        backoff_s = self._first_backoff_s
        while True:
            why = await self._run_child(first_ready)
            self._state = "dead"
            self._fail_streams(why)
            if not first_ready.done():
                first_ready.set_exception(EngineDied(why))
                return
            now = time.monotonic()
            restarts = [at for at in restarts if now - at < RESTART_WINDOW_S]
            if len(restarts) >= MAX_RESTARTS:
                _log.critical("%s; it died %d times lately: giving up", why, MAX_RESTARTS + 1)
                if self._on_give_up is not None:
                    self._on_give_up()
                return
            backoff_s = min(60.0, backoff_s * 2) if restarts else self._first_backoff_s
            restarts.append(now)
            _log.error("%s; starting it again in %g s", why, backoff_s)
            await asyncio.sleep(backoff_s)
            self._num_restarts += 1
            self._state = "starting"

    async def _run_child(self, first_ready: asyncio.Future[EngineInfo]) -> str:
        """Start a child, serve until it ends or hangs, leave nothing of it, say what happened."""
        assert self._folder is not None
        address = f"ipc://{self._folder}/{time.monotonic_ns()}.sock"
        child = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.PIPE)
        self._child = child
        self._socket = socket = self._context.socket(zmq.DEALER)
        for option, value in ((zmq.SNDHWM, 0), (zmq.RCVHWM, 0), (zmq.LINGER, 0)):
            socket.setsockopt(option, value)
        socket.connect(address)
        receiver: asyncio.Task[None] | None = None
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                child.stdin.write(start_frame(Start(self._config, address)))
                await child.stdin.drain()
            self._send(Hello())
            receiver = asyncio.create_task(self._receive(socket, first_ready))
            return await self._watch(child, receiver)
        finally:
            await _end(child)
            if receiver is not None:
                receiver.cancel()
                await asyncio.gather(receiver, return_exceptions=True)
            self._socket = None
            socket.close(linger=0)

    async def _watch(
        self, child: asyncio.subprocess.Process, receiver: "asyncio.Task[None]"
    ) -> str:
        """Wait for the child to end, to stall, or to send a broken frame; return what it was."""
        exited = asyncio.create_task(child.wait())
        still_s, looked_at = 0.0, time.monotonic()
        try:
            while True:
                await asyncio.wait(
                    (exited, receiver),
                    timeout=WATCH_PERIOD_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if exited.done():
                    code = exited.result()
                    if code == EXIT_BAD_CONFIG:
                        return "the engine cannot run this configuration"
                    how = (
                        f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
                    )
                    return f"the engine process {how}"
                if receiver.done():
                    _log.error("reading from the engine failed", exc_info=receiver.exception())
                    return "the engine process sent a broken frame"
                # Time in which this loop did not turn, either, proves nothing against the engine.
                now = time.monotonic()
                still_s = 0.0 if self._moved else still_s + min(now - looked_at, 2 * WATCH_PERIOD_S)
                looked_at, self._moved = now, False
                if self._state == "ready" and still_s > self._stall_limit_s:
                    child.kill()
                    return f"the engine process made no progress for {still_s:.0f} s"
        finally:
            exited.cancel()

    async def _receive(
        self, socket: zmq.asyncio.Socket, first_ready: asyncio.Future[EngineInfo]
    ) -> None:
        while True:
            frame: bytes = await socket.recv()
            message: ToServer = decode_to_server(frame)
            match message:
                case Deltas(deltas):
                    for delta in deltas:
                        if stream := self._streams.get(delta.request_id):
                            stream.deltas.append(delta)
                            stream.arrived.set()
                case Failed(request_id, code, text):
                    if stream := self._streams.get(request_id):
                        stream.error = BY_CODE[code](text)
                        stream.arrived.set()
                case Heartbeat(stats, has_work):
                    self._note_heartbeat(stats, has_work)
                case Ready(info):
                    self._info = info
                    self._stats = EngineStats(num_pages=info.num_pages, num_slots=info.num_slots)
                    self._moved = True
                    self._state = "ready"
                    if not first_ready.done():
                        first_ready.set_result(info)

    def _note_heartbeat(self, stats: EngineStats, has_work: bool) -> None:
        if not has_work or stats.num_steps != self._stats.num_steps:
            self._moved = True
        self._stats = stats
        if self._on_stats is not None:
            self._on_stats(self.stats)

    def _send(self, message: ToEngine) -> None:
        if self._socket is not None:
            # The high-water mark is off, so the future is done when this returns.
            self._socket.send(encode(message))

    def _fail_streams(self, why: str) -> None:
        for stream in self._streams.values():
            stream.error = EngineDied(why)
            stream.arrived.set()


async def _end(child: asyncio.subprocess.Process) -> None:
    """Close the child's lifeline; kill it if it does not go."""
    if child.stdin is not None:
        child.stdin.close()
    try:
        await asyncio.wait_for(child.wait(), STOP_GRACE_S)
    except TimeoutError:
        child.kill()
        await child.wait()


def _merge(deltas: list[TokenDelta]) -> TokenDelta:
    """One delta that says what several in a row said."""
    if len(deltas) == 1:
        return deltas[0]
    return msgspec.structs.replace(
        deltas[0],
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        logprobs=tuple(logprobs for delta in deltas for logprobs in delta.logprobs),
        finish=deltas[-1].finish,
    )
