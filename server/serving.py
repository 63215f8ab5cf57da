"""Runs the application on a socket, from listening early to drained and stopped.

`serve` owns the order of things: bind, listen, start the engine while probes already answer 503
`starting`; on the first SIGTERM or SIGINT drain; when drained, or when the time for it is up, close
and stop the engine. A second signal skips the waiting. It returns the process's exit code and
raises nothing a user can cause: a failed start is one line on the log and a code other than 0.
"""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import uvicorn

from engine import EngineError
from server.app import App
from server.http_limits import SPARE_CONNECTIONS, HttpLimits, limited_protocol
from server.lifecycle import Lifecycle

ABORT_GRACE_S = 2.0  # for error events to leave after the drain's time is up
BACKLOG = 2048
SPARE_FILES = 256  # descriptors besides connections: the engine's sockets, libraries, logs

_log = logging.getLogger("deltaserve.serving")


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are `serve`'s."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    app: App,
    *,
    lifecycle: Lifecycle,
    start: Callable[[], Coroutine[Any, Any, None]],
    stop: Callable[[], Awaitable[None]],
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: str | None = None,
    limits: HttpLimits | None = None,
    shutdown_timeout_s: float = 30.0,
    on_listening: Callable[[str], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> int:
    """Serve until a signal or `lifecycle.fail`, and return the exit code.

    `start` returns once the engine is ready, and raises EngineError, OSError or ValueError if it
    cannot be; `stop` leaves no child behind and may be called at any time. `on_listening` gets the
    address as text.
    """
    limits = limits or HttpLimits()
    try:
        listener, address = _bind(host, port, uds)
    except OSError as error:
        where = uds or f"{host}:{port}"
        _log.error("cannot listen on %s: %s", where, error.strerror or "not possible")
        return 1
    _raise_file_limit(limits.max_connections + SPARE_CONNECTIONS + SPARE_FILES)
    signals = _Signals()
    server = _Server(
        uvicorn.Config(
            app,
            http=limited_protocol(limits),
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
    with signals.handled():
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            if on_listening is not None:
                on_listening(address)
            await _run(lifecycle, start, on_ready, signals, serving)
            lifecycle.begin_drain()
            await _drain(lifecycle, signals, shutdown_timeout_s)
        finally:
            lifecycle.begin_drain()
            server.force_exit = signals.num_received > 1
            server.should_exit = True
            await serving
            await stop()
            if uds is not None:
                Path(uds).unlink(missing_ok=True)
    if signals.num_received > 1:
        return 128 + signals.last
    if lifecycle.failure is not None:
        _log.error("%s", lifecycle.failure)
        return 1
    return 0


async def _run(
    lifecycle: Lifecycle,
    start: Callable[[], Coroutine[Any, Any, None]],
    on_ready: Callable[[], None] | None,
    signals: "_Signals",
    serving: asyncio.Task[None],
) -> None:
    """Start the engine and wait for a reason to stop."""
    starting = asyncio.create_task(start())
    ends = [
        serving,
        asyncio.create_task(signals.first.wait()),
        asyncio.create_task(lifecycle.ended.wait()),
    ]
    try:
        await asyncio.wait([starting, *ends], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            try:
                starting.result()
            except (EngineError, OSError, ValueError) as error:
                lifecycle.fail(f"cannot start: {error}")
                return
            if on_ready is not None:
                on_ready()
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (starting, *ends[1:]):
            task.cancel()
        await asyncio.wait([starting, *ends[1:]])


async def _drain(lifecycle: Lifecycle, signals: "_Signals", timeout_s: float) -> None:
    """Let work in flight finish; when the time is up or a second signal comes, end it."""
    drained = asyncio.create_task(lifecycle.drained())
    second = asyncio.create_task(signals.second.wait())
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
            await asyncio.wait(waits, timeout=ABORT_GRACE_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        drained.cancel()
        second.cancel()


class _Signals:
    """SIGTERM and SIGINT, counted."""

    def __init__(self) -> None:
        self.num_received = 0
        self.last = 0
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    @contextlib.contextmanager
    def handled(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        kinds = (signal.SIGTERM, signal.SIGINT)
        for kind in kinds:
            loop.add_signal_handler(kind, self._receive, kind)
        try:
            yield
        finally:
            for kind in kinds:
                loop.remove_signal_handler(kind)

    def _receive(self, kind: int) -> None:
        self.num_received += 1
        self.last = kind
        (self.first if self.num_received == 1 else self.second).set()


def _bind(host: str, port: int, uds: str | None) -> tuple[socket.socket, str]:
    """A bound socket and its address as text. Raises OSError."""
    if uds is not None:
        path = Path(uds)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.stat().st_mode):
                path.unlink()  # left behind by a server that was killed
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(uds)
        except OSError:
            listener.close()
            raise
        return listener, f"unix:{uds}"
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    bound_port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    return listener, f"http://{shown}:{bound_port}"


def _raise_file_limit(num_files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
