"""The application on a listening socket of this process, run by uvicorn.

Implements `serving.Front`. Draining lets what is in flight finish; when the time for it is up, or a
second order to stop comes, what is left ends with an error.
"""

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Awaitable, Callable, Generator

import uvicorn

from server.errors import ErrorAnswer
from server.exchange import Receive, Scope, Send
from server.http_limits import SPARE_CONNECTIONS, limited_protocol
from server.lifecycle import Lifecycle
from server.limits import Limits
from server.metrics import Metrics
from server.stop_orders import StopOrders

ABORT_GRACE_S = 2.0  # for error events to leave after the drain's time is up
SPARE_FILES = 256  # descriptors besides connections: the engine's sockets, libraries, logs

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("deltaserve.serving")


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: when to stop is said to the front."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class AppFront:
    """Serves `app`, whose requests in flight `lifecycle` knows and `metrics` count."""

    def __init__(
        self,
        app: Application,
        lifecycle: Lifecycle,
        limits: Limits,
        metrics: Metrics,
        *,
        more_listeners: tuple[socket.socket, ...] = (),
    ) -> None:
        self._lifecycle = lifecycle
        self._more_listeners = more_listeners
        self._max_connections = limits.max_connections

        def note_refusal(request_id: str, answer: ErrorAnswer) -> None:
            metrics.count_error(answer)
            reason = answer.code or answer.type
            _log.info("%s refused by the connection: %d, %s", request_id, answer.status, reason)

        self._server = _Server(
            uvicorn.Config(
                app,
                http=limited_protocol(limits, note_refusal),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                forwarded_allow_ips="",
                timeout_keep_alive=limits.keep_alive_s,
                timeout_graceful_shutdown=int(ABORT_GRACE_S),
                workers=1,
            )
        )

    def begin(self, listener: socket.socket) -> "asyncio.Task[None]":
        _raise_file_limit(self._max_connections + SPARE_CONNECTIONS + SPARE_FILES)
        return asyncio.create_task(self._server.serve(sockets=[listener, *self._more_listeners]))

    async def drain(self, orders: StopOrders, timeout_s: float) -> None:
        lifecycle = self._lifecycle
        lifecycle.begin_drain()
        drained = asyncio.create_task(lifecycle.drained())
        second = asyncio.create_task(orders.second.wait())
        try:
            waits = [drained, second]
            if lifecycle.num_in_flight:
                _log.info(
                    "stopping: %d requests may finish within %g s; signal again to end at once",
                    lifecycle.num_in_flight,
                    timeout_s,
                )
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not drained.done():
                _log.warning("ending %d unfinished requests", lifecycle.num_in_flight)
                lifecycle.abort_all()
                await asyncio.wait(
                    waits, timeout=ABORT_GRACE_S, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            drained.cancel()
            second.cancel()

    async def end(self, serving: "asyncio.Task[None]", *, at_once: bool) -> None:
        self._lifecycle.begin_drain()
        self._server.force_exit = at_once
        self._server.should_exit = True
        await serving


def _raise_file_limit(num_files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
