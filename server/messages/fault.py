"""What an Anthropic client sends and expects around a request: its key, and the shape of errors.

`MessagesExchange` stands in for `Exchange` on these paths, so that whatever goes wrong before,
in or around a handler is told in their shape: 401, 404, 405 and 413 included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from server.errors import MAX_MESSAGE_CHARS, ErrorAnswer
from server.exchange import Exchange, Headers, Receive, Scope, Send
from server.messages.stream import named

MESSAGES_PATH = "/v1/messages"
NO_THREADS = "thread_unsupported_request"  # after which their clients send all messages again

_NEEDS_KEY = "A valid API key is needed: send it as 'x-api-key: KEY'."
_OVERLOADED = frozenset(
    {"queue_full", "queue_timeout", "starting", "draining", "too_many_connections"}
)


@dataclass(frozen=True, slots=True)
class MessagesError(ErrorAnswer):
    """An error in Anthropic's shape; `type` is one of theirs."""

    def body(self) -> bytes:
        message = self.message[:MAX_MESSAGE_CHARS].encode("utf-8", "replace").decode()
        error: dict[str, Any] = {"type": self.type, "message": message}
        if self.code == NO_THREADS:
            error["details"] = {"error_code": NO_THREADS}
        return msgspec.json.encode({"type": "error", "error": error})


def messages_error(answer: ErrorAnswer) -> MessagesError:
    return MessagesError(
        status=answer.status,
        message=_NEEDS_KEY if answer.status == 401 else answer.message,
        type=_error_type(answer),
        param=answer.param,
        code=answer.code,
        retry_after_s=answer.retry_after_s,
        allow=answer.allow,
    )


def _error_type(answer: ErrorAnswer) -> str:
    if answer.code in _OVERLOADED:
        return "overloaded_error"
    if answer.status >= 500:
        return "api_error"
    return {401: "authentication_error", 404: "not_found_error"}.get(
        answer.status, "invalid_request_error"
    )


class MessagesExchange(Exchange):
    """An exchange with an Anthropic client."""

    __slots__ = ()

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self.headers = _with_bearer(self.headers)
        self.error_events = lambda error: named("error", error.body())

    async def fail(self, answer: ErrorAnswer) -> None:
        await super().fail(messages_error(answer))

    async def _start(self, status: int, headers: Headers) -> None:
        headers.append((b"request-id", self.request_id.encode("ascii")))
        await super()._start(status, headers)


def exchange_for(scope: Scope, receive: Receive, send: Send) -> Exchange:
    """The exchange that speaks the language of the path's clients."""
    path: str = scope["path"]
    is_theirs = path == MESSAGES_PATH or path.startswith(MESSAGES_PATH + "/")
    kind: Callable[[Scope, Receive, Send], Exchange] = MessagesExchange if is_theirs else Exchange
    return kind(scope, receive, send)


def _with_bearer(headers: Headers) -> Headers:
    """Say a lone `x-api-key` as the keyring reads keys. An Authorization header goes before it."""
    keys = [value for name, value in headers if name == b"x-api-key"]
    if len(keys) != 1 or any(name == b"authorization" for name, _ in headers):
        return headers
    return [*headers, (b"authorization", b"Bearer " + keys[0])]
