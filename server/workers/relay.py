"""Hands requests about a response that runs in the background to the worker it runs in.

Only that worker can say how far it is, stream its events or end it. All others pass on what is
asked of `/v1/responses/{id}` over a unix socket, with its headers, and pass back the answer. A
request that is passed on is a flight here too: it is drained, timed out, and ends with its client.
Bodies are not passed on: these routes have none.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterable, Callable
from urllib.parse import quote

import httpx

from server.app_front import Application
from server.errors import ClientGone, Unavailable
from server.exchange import Exchange, Receive, Scope, Send
from server.lifecycle import Lifecycle
from server.workers.messages import Ask, FindRunner, Result, Runner

PREFIX = "/v1/responses/"
_NOT_PASSED_ON = frozenset(
    (b"connection", b"content-length", b"date", b"keep-alive", b"transfer-encoding", b"upgrade")
)

Headers = list[tuple[bytes, bytes]]


class Relay:
    """The application of a worker, `app`, and before it those of the other workers."""

    def __init__(
        self,
        app: Application,
        lifecycle: Lifecycle,
        call: Callable[[Ask], Result],
        *,
        own_path: str,
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._call = call
        self._own_path = own_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = await self._runner_of(scope) if scope["type"] == "http" else None
        if path is not None and path != self._own_path:
            exchange = Exchange(scope, receive, send)
            try:
                async with self._lifecycle.flight(exchange) as flight:
                    flight.watch()
                    await _pass_on(path, scope, send)
                return
            except (ClientGone, Unavailable):
                return  # unfinished, so its connection closes
            except httpx.ConnectError:
                pass  # it died, and what it ran with it
        await self._app(scope, receive, send)

    async def _runner_of(self, scope: Scope) -> str | None:
        """The socket of the worker that knows more than the store of what is asked about."""
        path: str = scope["path"]
        response_id = path.removeprefix(PREFIX).partition("/")[0]
        if not path.startswith(PREFIX) or not response_id:
            return None
        found = await asyncio.to_thread(self._call, FindRunner(response_id))
        return found.path if isinstance(found, Runner) else None


async def _pass_on(path: str, scope: Scope, send: Send) -> None:
    """Ask another worker, and send what it answers as it comes. Raises ConnectError before that."""
    raw_path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    query: bytes = scope["query_string"]
    async with httpx.AsyncHTTPTransport(uds=path) as transport:
        request = httpx.Request(
            scope["method"],
            httpx.URL("http://worker", raw_path=raw_path + (b"?" + query if query else b"")),
            headers=_passed_on(scope["headers"]),
            extensions={"timeout": {"connect": 5.0}},
        )
        answer = await transport.handle_async_request(request)
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status_code,
                    "headers": _answer_headers(answer.headers.raw),
                }
            )
            assert isinstance(answer.stream, AsyncIterable)
            # Where the other worker dies under way, the answer stays unfinished here too.
            with contextlib.suppress(httpx.TransportError):
                async for data in answer.stream:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await answer.aclose()


def _passed_on(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in _NOT_PASSED_ON]


def _answer_headers(headers: Headers) -> Headers:
    """As they came; the length, too, where there is one."""
    lengths = [(name, value) for name, value in headers if name.lower() == b"content-length"]
    return [*_passed_on(headers), *lengths]
