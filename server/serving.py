"""From listening early to drained and stopped.

`serve` owns the order of things: bind, listen, start the engine while probes already answer 503
`starting`; on the first SIGTERM or SIGINT drain; when drained, or when the time for it is up, close
and stop the engine. A second signal skips the waiting. It returns the process's exit code and
raises nothing a user can cause: a failed start is one line on the log and a code other than 0.

What answers on the socket is a `Front`: the application in this process (`app_front`), or worker
processes that each run one (`workers`).
"""

import asyncio
import contextlib
import logging
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from engine import EngineError
from server.app import App
from server.app_front import AppFront
from server.lifecycle import Lifecycle
from server.limits import Limits
from server.metrics import Metrics
from server.stop_orders import StopOrders

_log = logging.getLogger("deltaserve.serving")


class Front(Protocol):
    """What answers on a bound socket."""

    def begin(self, listener: socket.socket) -> "asyncio.Task[None]":
        """Listen and answer. The task ends early only if that cannot go on."""
        ...

    async def drain(self, orders: StopOrders, timeout_s: float) -> None:
        """Refuse new work, and let work in flight finish until the time is up or a second order."""
        ...

    async def end(self, serving: "asyncio.Task[None]", *, at_once: bool) -> None:
        """Close everything; `serving` is what `begin` returned."""
        ...


async def serve(
    app: App,
    *,
    lifecycle: Lifecycle,
    metrics: Metrics,
    start: Callable[[], Coroutine[Any, Any, None]],
    stop: Callable[[], Awaitable[None]],
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: str | None = None,
    limits: Limits | None = None,
    shutdown_timeout_s: float = 30.0,
    on_listening: Callable[[str], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> int:
    """Serve `app` from this process, as `serve_front` does it."""
    return await serve_front(
        AppFront(app, lifecycle, limits or Limits(), metrics),
        lifecycle=lifecycle,
        start=start,
        stop=stop,
        host=host,
        port=port,
        uds=uds,
        shutdown_timeout_s=shutdown_timeout_s,
        on_listening=on_listening,
        on_ready=on_ready,
    )


async def serve_front(
    front: Front,
    *,
    lifecycle: Lifecycle,
    start: Callable[[], Coroutine[Any, Any, None]],
    stop: Callable[[], Awaitable[None]],
    host: str,
    port: int,
    uds: str | None,
    shutdown_timeout_s: float,
    on_listening: Callable[[str], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> int:
    """Serve until a signal or `lifecycle.fail`, and return the exit code.

    `start` returns once the engine is ready, and raises EngineError, OSError or ValueError if it
    cannot be; `stop` leaves no child behind and may be called at any time. `on_listening` gets the
    address as text.
    """
    try:
        listener, address = _bind(host, port, uds)
    except OSError as error:
        where = uds or f"{host}:{port}"
        _log.error("cannot listen on %s: %s", where, error.strerror or "not possible")
        return 1
    orders = StopOrders()
    with orders.from_signals():
        try:
            await run_front(
                front,
                listener,
                lifecycle=lifecycle,
                orders=orders,
                start=start,
                stop=stop,
                shutdown_timeout_s=shutdown_timeout_s,
                on_listening=lambda: on_listening(address) if on_listening is not None else None,
                on_ready=on_ready,
            )
        finally:
            listener.close()
            if uds is not None:
                Path(uds).unlink(missing_ok=True)
    if orders.num_received > 1:
        return 128 + orders.last_signal
    if lifecycle.failure is not None:
        _log.error("%s", lifecycle.failure)
        return 1
    return 0


async def run_front(
    front: Front,
    listener: socket.socket,
    *,
    lifecycle: Lifecycle,
    orders: StopOrders,
    start: Callable[[], Coroutine[Any, Any, None]],
    stop: Callable[[], Awaitable[None]],
    shutdown_timeout_s: float,
    on_listening: Callable[[], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """From the first to the last moment of `front` on a bound socket."""
    serving = front.begin(listener)
    try:
        if on_listening is not None:
            on_listening()
        await _run(lifecycle, start, on_ready, orders, serving)
        await front.drain(orders, shutdown_timeout_s)
    finally:
        try:
            await front.end(serving, at_once=orders.num_received > 1)
        finally:
            await stop()


async def _run(
    lifecycle: Lifecycle,
    start: Callable[[], Coroutine[Any, Any, None]],
    on_ready: Callable[[], None] | None,
    orders: StopOrders,
    serving: asyncio.Task[None],
) -> None:
    """Start the engine and wait for a reason to stop."""
    starting = asyncio.create_task(start())
    ends = [
        serving,
        asyncio.create_task(orders.first.wait()),
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
