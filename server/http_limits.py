"""Limits that only the HTTP layer can hold: uvicorn's httptools protocol, with bounds.

What llhttp checks (conflicting lengths, bad framing) becomes a 400 in our error shape. What neither
it nor uvicorn bounds is bounded here: bytes and number of headers, time to send them, bytes of
chunk framing and trailers, open connections, and writes a reader does not take. Repairs of
uvicorn's behaviour come with it, about clients that go away or still talk; a fourth is for Java:

- a pipelined request does not stop the reading, and the request *running* is told of a lost
  connection, not only the newest one;
- a connection closed with unread input lingers, so that the answer is not lost to a reset;
- garbage after a request never lands in the middle of the running answer;
- a request that offers an upgrade is served without it, its body included.

What is answered here never reaches the application, which counts and logs all else: it is told to
`NoteRefusal`.
The size of bodies and the pauses inside them are `body.py`'s: they need no protocol.
"""

import asyncio
from enum import Enum
from typing import Any, ClassVar, Protocol

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from server.auth import PROBES
from server.errors import ErrorAnswer
from server.exchange import Receive, Scope, Send, request_id_of
from server.limits import Limits
from server.messages.fault import MessagesExchange, exchange_for, messages_error

LINGER_S = 2.0  # how long a refused client may go on sending before the connection is cut
SPARE_CONNECTIONS = 64  # above the bound, so that probes and 503s still get through


TOO_MANY_CONNECTIONS = ErrorAnswer(
    503,
    "Too many connections are open; try again later.",
    type="server_error",
    code="too_many_connections",
    retry_after_s=2,
)
_HEAD_TOO_BIG = ErrorAnswer(431, "The request line and headers are larger than the server allows.")
_TOO_MANY_HEADERS = ErrorAnswer(431, "The request has more headers than the server allows.")
_BAD_HTTP = ErrorAnswer(400, "The request is not valid HTTP.")
_CODED = ErrorAnswer(400, "transfer-encoding must be chunked, and nothing besides.")
_HEAD_TIMEOUT = ErrorAnswer(408, "The request headers did not arrive in time.")


def limited_protocol(limits: Limits, note_refusal: "NoteRefusal") -> type[asyncio.Protocol]:
    """The protocol class for `uvicorn.Config(http=...)`."""

    class BoundProtocol(LimitedProtocol):
        pass

    BoundProtocol.limits = limits
    BoundProtocol.note_refusal = staticmethod(note_refusal)
    return BoundProtocol


class NoteRefusal(Protocol):
    def __call__(self, request_id: str, answer: ErrorAnswer) -> None: ...


class _Phase(Enum):
    IDLE = 0  # between requests: nothing of the next one has come
    HEAD = 1
    BODY = 2


class LimitedProtocol(HttpToolsProtocol):
    limits: ClassVar[Limits]
    note_refusal: ClassVar[NoteRefusal]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._phase = _Phase.IDLE
        self._num_head_bytes = 0  # as parsed
        self._num_raw_bytes = 0  # as fed since the last parsed event of this phase
        self._num_headers = 0
        self._refusal: ErrorAnswer | None = None
        self._is_over = False  # one connection too many: it is told so
        self._deaf = False  # refused or closing: whatever still comes is dropped
        self._running: RequestResponseCycle | None = None
        self._held = bytearray()  # input behind a pipelined request
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._lingering: LingeringTransport | None = None

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lingering = LingeringTransport(transport, self, self.loop, self.limits.send_stall_s)
        super().connection_made(self._lingering)
        self._is_over = len(self.connections) > self.limits.max_connections
        if len(self.connections) > self.limits.max_connections + SPARE_CONNECTIONS:
            self._refuse(TOO_MANY_CONNECTIONS)
            return
        self._arm_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        if self._lingering is not None:
            self._lingering.lost()
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self._held.clear()
        self._deaf = True
        super().connection_lost(exc)

    def deafen(self) -> bool:
        """Drop all further input. True if the client may still be in the middle of a request."""
        self._deaf = True
        return self._phase is not _Phase.IDLE

    # Input

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        if self.pipeline:
            self._held += data
            if len(self._held) > self.limits.max_head_bytes:
                self.flow.pause_reading()
            return
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        self._num_raw_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(self._refusal or _BAD_HTTP)
            return
        if self._num_raw_bytes > self.limits.max_head_bytes:
            if self._phase is _Phase.HEAD:
                self._refuse(_HEAD_TOO_BIG)
            elif self._phase is _Phase.BODY:
                self._refuse(_BAD_HTTP)  # chunk extensions or trailers without end
        elif self._phase is not _Phase.BODY:
            self._arm_head_timer()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read a request that offers an upgrade as the plain request that it is besides.

        The parser stops behind the head of such a request, so a new one gets the head again without
        the offer. Java's HTTP client offers h2c with each first request, bodies included.
        """
        lines = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
        lines += [
            name + b": " + value
            for name, value in self.headers
            if name not in (b"connection", b"upgrade", b"http2-settings")
        ]
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _Phase.HEAD
        self._disarm_head_timer()  # armed again, for this head, when the data is through
        self._num_raw_bytes = self._num_head_bytes = self._num_headers = 0

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is _Phase.BODY:
            return  # a trailer: nobody asked for it
        self._num_headers += 1
        if self._num_headers > self.limits.max_headers:
            self._refusal = _TOO_MANY_HEADERS
            raise ValueError("too many headers")
        self._count_head(len(name) + len(value) + 4)
        if name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
            self._refusal = _CODED
            raise ValueError("a coding besides chunked")
        super().on_header(name, value)

    def _count_head(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > self.limits.max_head_bytes:
            self._refusal = _HEAD_TOO_BIG
            raise ValueError("head too big")

    def on_headers_complete(self) -> None:
        is_known = self.parser.get_http_version() in ("1.0", "1.1")
        if not is_known or self.parser.get_method() == b"CONNECT":
            raise ValueError("not served")
        if self.parser.should_upgrade():
            return
        self._phase = _Phase.BODY
        self._num_raw_bytes = 0
        self._disarm_head_timer()
        super().on_headers_complete()
        if self.pipeline:
            self.flow.resume_reading()  # or nobody would notice that the client went away

    def on_body(self, body: bytes) -> None:
        self._num_raw_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._phase is _Phase.HEAD:
            return  # the head was read only to be read again without its upgrade
        self._phase = _Phase.IDLE
        self._num_raw_bytes = 0
        super().on_message_complete()

    # Answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if self._is_over and cycle.scope["raw_path"] not in PROBES:
            app = self._say_too_many
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self._phase is _Phase.BODY and self._running is self.cycle:
            self.transport.close()  # answered before all of it came: what follows is of no use
        super().on_response_complete()
        if self._held and not self.pipeline and not self.transport.is_closing():
            held = bytes(self._held)
            self._held.clear()
            self._unset_keepalive_if_required()
            self._feed(held)

    def _refuse(self, answer: ErrorAnswer) -> None:
        """Answer outside of any request, unless one is being answered, and hang up."""
        running = self._running
        if running is not None and not running.response_complete:
            is_its_body = self._phase is _Phase.BODY and self.cycle is running
            if running.response_started or not is_its_body:
                running.keep_alive = False  # it finishes in peace, then the connection closes
                self.pipeline.clear()
                self._deaf = True
                return
            running.disconnected = True
            running.message_event.set()
        sent = self.headers if self._phase is not _Phase.IDLE else []
        request_id = request_id_of([value for name, value in sent if name == b"x-request-id"])
        self.transport.write(_raw_answer(answer, request_id))
        self.transport.close()
        self.note_refusal(request_id, answer)

    async def _say_too_many(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_for(scope, receive, send)
        answer = TOO_MANY_CONNECTIONS
        if isinstance(exchange, MessagesExchange):
            answer = messages_error(answer)
        headers = [(b"connection", b"close"), *answer.headers()]
        self.note_refusal(exchange.request_id, TOO_MANY_CONNECTIONS)
        await exchange.reply(answer.body(), status=answer.status, headers=headers)

    # Clocks

    def _arm_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_timeout_s, self._head_expired)

    def _disarm_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_expired(self) -> None:
        self._head_timer = None
        running = self._running
        if running is not None and not running.response_complete:
            if self._phase is _Phase.HEAD:
                self._arm_head_timer()  # a pipelined head: judged when the answer is out
        elif self._phase is _Phase.HEAD:
            self._refuse(_HEAD_TIMEOUT)
        elif self.timeout_keep_alive_task is None:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        super().resume_writing()

    def _watch_stall(self, num_bytes_before: int) -> None:
        self._stall_timer = self.loop.call_later(
            self.limits.send_stall_s, self._check_stall, num_bytes_before
        )

    def _check_stall(self, num_bytes_before: int) -> None:
        num_bytes = self.transport.get_write_buffer_size()
        if num_bytes >= num_bytes_before:
            self.transport.abort()
        else:
            self._watch_stall(num_bytes)


class LingeringTransport(asyncio.Transport):
    """A transport whose `close` lets the peer read the answer, and is never for ever."""

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: LimitedProtocol,
        loop: asyncio.AbstractEventLoop,
        flush_timeout_s: float,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._protocol = protocol
        self._loop = loop
        self._flush_timeout_s = flush_timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    def close(self) -> None:
        """Close after what was written is out; wait `LINGER_S` for a peer still sending."""
        if self._closing:
            return
        self._closing = True
        if not self._protocol.deafen() or self._transport.is_closing():
            self._transport.close()
            self._timer = self._loop.call_later(self._flush_timeout_s, self.abort)
            return
        self._transport.resume_reading()
        self._transport.write_eof()
        self._timer = self._loop.call_later(LINGER_S, self.abort)

    def lost(self) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def abort(self) -> None:
        self._closing = True
        self._transport.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()


def _raw_answer(answer: ErrorAnswer, request_id: str) -> bytes:
    body = answer.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        (b"connection", b"close"),
        *answer.headers(),
    ]
    lines = [name + b": " + value + b"\r\n" for name, value in headers]
    return b"".join([STATUS_LINE[answer.status], *lines, b"\r\n", body])
