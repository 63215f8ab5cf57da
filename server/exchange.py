"""One HTTP request and its answer: the ASGI triple with our rules for headers and errors.

Every answer carries `x-request-id`. Nothing is sent until the first `reply` or `start_stream`;
after that an error can only become an event of the stream, and `fail` knows which it is. An
exchange is owned by the one task that serves it.
"""

import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from server import sse
from server.errors import ErrorAnswer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Exchange:
    """What a handler gets: the request's facts, `receive`, and the ways to answer."""

    __slots__ = (
        "_send",
        "error",
        "error_events",
        "headers",
        "is_body_read",
        "is_complete",
        "method",
        "num_completion_tokens",
        "num_prompt_tokens",
        "path",
        "receive",
        "request_id",
        "status",
        "streaming",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Headers = scope["headers"]
        self.request_id = request_id_of(self.header(b"x-request-id"))
        self.status = 0  # 0: nothing was sent yet
        self.streaming = False
        self.is_complete = False  # the whole answer is out
        self.is_body_read = False  # set by whoever reads it
        self.error: ErrorAnswer | None = None  # what the client was told last
        # How a stream that was begun says an error; an endpoint with words of its own sets it.
        self.error_events: Callable[[ErrorAnswer], bytes] = lambda error: sse.event(error.body())
        self.num_prompt_tokens = 0  # these two for the log
        self.num_completion_tokens = 0

    def header(self, name: bytes) -> list[bytes]:
        """All values of one header; `name` in lower case."""
        return [value for key, value in self.headers if key == name]

    @property
    def _awaits_body(self) -> bool:
        """The client announced a body."""
        length = self.header(b"content-length")
        return bool(self.header(b"transfer-encoding")) or bool(length and length != [b"0"])

    async def reply(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: Headers | None = None,
    ) -> None:
        await self._start(
            status,
            [
                (b"content-type", content_type),
                (b"content-length", b"%d" % len(body)),
                *(headers or ()),
            ],
        )
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self.is_complete = True

    async def start_stream(self) -> None:
        self.streaming = True
        await self._start(200, list(sse.HEADERS))

    async def send_events(self, events: bytes, *, last: bool = False) -> None:
        """Send whole events. Waits while the reader is slow."""
        await self._send({"type": "http.response.body", "body": events, "more_body": not last})
        self.is_complete = last

    async def fail(self, answer: ErrorAnswer) -> None:
        """Tell the client about an error, as an answer or, in mid-stream, as the last event."""
        self.error = answer
        if self.streaming:
            await self.send_events(self.error_events(answer), last=True)
        elif not self.status:  # else an answer was cut off under way: there is no more to say
            headers = answer.headers()
            if self._awaits_body and not self.is_body_read:
                headers.append((b"connection", b"close"))
            await self.reply(answer.body(), status=answer.status, headers=headers)

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        headers.append((b"x-request-id", self.request_id.encode("ascii")))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def request_id_of(sent: list[bytes]) -> str:
    """The client's own, of the values of its `x-request-id` headers, or a new one."""
    if len(sent) == 1 and _CLIENT_ID.fullmatch(sent[0]):
        return sent[0].decode("ascii")
    return uuid.uuid4().hex
