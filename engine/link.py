"""A server process's line to the engine: requests out, token deltas in.

Owns the open streams of this process and its socket, all on one asyncio loop. It speaks to whatever
engine process it was last connected to, and knows of its state only what it is told: by the engine
that it is ready, by whoever watches the engine process that it is gone (`disconnect`). Several
server processes may each hold a link to the same engine.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import msgspec
import zmq
import zmq.asyncio

from engine.client import EngineInfo, EngineState, EngineStats
from engine.errors import (
    BY_CODE,
    EngineDied,
    EngineError,
    EngineStarting,
    RequestFailed,
    StreamTooSlow,
)
from engine.ipc import (
    Cancel,
    Deltas,
    Failed,
    Forget,
    Heartbeat,
    Hello,
    Ready,
    Submit,
    ToEngine,
    ToServer,
    decode_to_server,
    encode,
)
from engine.request import Request, TokenDelta
from engine.unread import Unread, UnreadBounds


@dataclass(slots=True)
class _Stream:
    """What arrived for one request and was not consumed yet."""

    unread: Unread
    error: EngineError | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class EngineLink:
    """Implements `engine.client.EngineClient`."""

    def __init__(
        self,
        *,
        name: bytes | None = None,
        on_ready: Callable[[EngineInfo], None] | None = None,
        on_stats: Callable[[EngineStats], None] | None = None,
        unread_bounds: UnreadBounds | None = None,
    ) -> None:
        """`name` is what the engine knows this process by, unique among all that ever connect.

        None: nobody will ask the engine to forget it.
        """
        self._name = name
        self._on_ready = on_ready
        self._on_stats = on_stats
        self._unread_bounds = unread_bounds or UnreadBounds()
        self._state: EngineState = "starting"
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._num_connects = 0
        self._streams: dict[str, _Stream] = {}
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._moved = False

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def stats(self) -> EngineStats:
        num_restarts = max(0, self._num_connects - 1)
        return msgspec.structs.replace(self._stats, num_restarts=num_restarts)

    def connect(self, address: str) -> "asyncio.Task[None]":
        """Turn to a new engine process, which may not listen yet.

        The task ends only with an exception: the engine sent a broken frame.
        """
        assert self._socket is None, "still connected"
        self._socket = socket = self._context.socket(zmq.DEALER)
        for option, value in ((zmq.SNDHWM, 0), (zmq.RCVHWM, 0), (zmq.LINGER, 0)):
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)  # ms between looks whether the engine listens
        if self._name is not None:
            socket.setsockopt(zmq.ROUTING_ID, self._name)
        socket.connect(address)
        self._num_connects += 1
        self._state = "starting"
        self._send(Hello())
        self._receiver = asyncio.create_task(self._receive(socket))
        return self._receiver

    def disconnect(self, why: str) -> None:
        """The engine process is gone: every open stream raises EngineDied. Safe to call twice."""
        self._state = "dead"
        if self._receiver is not None:
            self._receiver.cancel()
            self._receiver = None
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        for stream in self._streams.values():
            stream.error = EngineDied(why)
            stream.arrived.set()

    def close(self) -> None:
        """Let go of everything, for good."""
        self.disconnect("the engine was stopped")
        self._context.destroy(linger=0)

    def forget(self, name: bytes) -> None:
        """Tell the engine that the server process it knows as `name` is gone."""
        self._send(Forget(name))

    def take_moved(self) -> bool:
        """Whether the engine said, since the last call, that it got on or has nothing to do."""
        moved, self._moved = self._moved, False
        return moved

    async def submit(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """See `EngineClient.submit`."""
        if self._state == "starting":
            raise EngineStarting("the engine is starting")
        if self._state == "dead":
            raise EngineDied("the engine is not running")
        stream = self._streams[request.id] = _Stream(Unread(self._unread_bounds))
        self._send(Submit(request))
        over = False
        try:
            while not over:
                await stream.arrived.wait()
                stream.arrived.clear()
                if stream.unread:
                    delta = stream.unread.take()
                    over = delta.finish is not None
                    yield delta
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

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frame: bytes = await socket.recv()
            message: ToServer = decode_to_server(frame)
            match message:
                case Deltas(deltas):
                    for delta in deltas:
                        self._keep(delta)
                case Failed(request_id, code, text):
                    if stream := self._streams.get(request_id):
                        stream.error = BY_CODE[code](text)
                        stream.arrived.set()
                case Heartbeat(stats, has_work):
                    self._note_heartbeat(stats, has_work)
                case Ready(info):
                    self._note_ready(info)

    def _keep(self, delta: TokenDelta) -> None:
        stream = self._streams.get(delta.request_id)
        if stream is None:
            return
        if not stream.unread.add(delta) and delta.finish is None:
            del self._streams[delta.request_id]
            stream.unread.clear()
            stream.error = StreamTooSlow("nobody takes what the engine says")
            self._send(Cancel(delta.request_id))
        stream.arrived.set()

    def _note_ready(self, info: EngineInfo) -> None:
        self._info = info
        self._stats = EngineStats(num_pages=info.num_pages, num_slots=info.num_slots)
        self._moved = True
        self._state = "ready"
        if self._on_ready is not None:
            self._on_ready(info)

    def _note_heartbeat(self, stats: EngineStats, has_work: bool) -> None:
        before = self._stats
        if not has_work or (stats.num_steps, stats.step_progress) != (
            before.num_steps,
            before.step_progress,
        ):
            self._moved = True
        self._stats = stats
        if self._on_stats is not None:
            self._on_stats(self.stats)

    def _send(self, message: ToEngine) -> None:
        if self._socket is not None:
            # The high-water mark is off, so the future is done when this returns.
            self._socket.send(encode(message))
