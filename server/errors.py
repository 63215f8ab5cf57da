"""What can go wrong on the HTTP side, and the one place that turns any error into an answer.

Exception
├── BadRequest       the caller's fault, raised before the first byte        -> 4xx
│   └── WrongMethod                                                          -> 405
├── Unavailable      ours and passing: starting, draining, timed out         -> 503 + Retry-After
├── ClientGone       nobody is left to answer                                -> 499, in the log only
└── EngineError      the engine's own tree (`engine/errors.py`)              -> 4xx, 500 or 503

Anything else is a bug of ours: 500 `internal_error`, whose text never reaches a client. Messages
here are fixed sentences or come from `BadRequest`; no exception text passes through.
"""

from dataclasses import dataclass

import msgspec

from engine import (
    EngineDied,
    EngineStarting,
    GrammarStuck,
    GrammarTooSlow,
    QueueFull,
    QueueTimeout,
    RequestTooLong,
    StreamTooSlow,
)

MAX_MESSAGE_CHARS = 600  # six JSON bytes each at worst: the body stays under 4 KiB


class BadRequest(Exception):
    """A request that is refused. `message` goes to the client: short, and free of our insides."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        status: int = 400,
        type: str = "invalid_request_error",
        code: str | int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.type = type
        self.code = code


class WrongMethod(BadRequest):
    def __init__(self, allow: str) -> None:
        super().__init__(f"This route serves {allow} only.", status=405)
        self.allow = allow


class Unavailable(Exception):
    """A request that cannot be served now; the same one may work later. `code` is stable."""

    def __init__(self, message: str, *, code: str, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retry_after_s = retry_after_s


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as a client sees it."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | int | None = None
    retry_after_s: int | None = None
    allow: str | None = None  # the methods of a route, when another was used

    def body(self) -> bytes:
        """The error object as JSON, under 4 KiB and valid UTF-8 whatever the message holds."""
        return msgspec.json.encode(
            {
                "error": {
                    "message": _clean(self.message),
                    "type": self.type,
                    "param": None if self.param is None else _clean(self.param),
                    "code": self.code,
                }
            }
        )

    def headers(self) -> list[tuple[bytes, bytes]]:
        headers: list[tuple[bytes, bytes]] = []
        if self.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % self.retry_after_s))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.allow is not None:
            headers.append((b"allow", self.allow.encode("ascii")))
        return headers


INTERNAL_ERROR = ErrorAnswer(
    500,
    "The server failed to answer this request.",
    type="server_error",
    code="internal_error",
)


def answer_to(error: Exception) -> ErrorAnswer:
    """What the client is told about `error`."""
    match error:
        case WrongMethod():
            return ErrorAnswer(error.status, error.message, allow=error.allow)
        case BadRequest():
            return ErrorAnswer(error.status, error.message, error.type, error.param, error.code)
        case Unavailable():
            return _unavailable(error.message, error.code, error.retry_after_s)
        case RequestTooLong():
            return ErrorAnswer(
                400,
                "The prompt and max_tokens together need more memory than this server has.",
                code=error.code,
            )
        case GrammarTooSlow():
            return ErrorAnswer(
                400,
                "The grammar or schema takes too long to compile.",
                code=error.code,
            )
        case GrammarStuck():
            return ErrorAnswer(
                400,
                "The grammar or schema came to a point where nothing may follow.",
                code=error.code,
            )
        case StreamTooSlow():
            return ErrorAnswer(408, "The stream was not read for too long.", code=error.code)
        case QueueFull():
            return ErrorAnswer(
                429,
                "Too many requests are waiting; try again later.",
                type="rate_limit_error",
                code=error.code,
                retry_after_s=2,
            )
        case QueueTimeout():
            return _unavailable("The request waited too long for its turn.", error.code, 5)
        case EngineStarting():
            return _unavailable("The model is still loading.", error.code, 5)
        case EngineDied():
            return _unavailable("The engine stopped; it is being restarted.", error.code, 10)
        case _:
            return INTERNAL_ERROR


def _unavailable(message: str, code: str, retry_after_s: int) -> ErrorAnswer:
    return ErrorAnswer(503, message, "server_error", code=code, retry_after_s=retry_after_s)


def _clean(text: str) -> str:
    return text[:MAX_MESSAGE_CHARS].encode("utf-8", "replace").decode("utf-8")
