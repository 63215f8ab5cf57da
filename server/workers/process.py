"""A worker process: one event loop, application and link to the engine.

Started by `pool` with two inherited descriptors, its line to the parent and the listening socket,
as arguments, and with SIGINT and SIGTERM ignored: signals are the parent's business. Ctrl-C in a
terminal reaches every process, and what is to be done about it comes over the line.
"""

import asyncio
import logging
import socket
import sys

from engine import EngineInfo, start_log
from engine.link import EngineLink
from server.app_front import AppFront
from server.assembly import FrontParts
from server.serving import run_front
from server.stop_orders import StopOrders
from server.workers.messages import (
    AllReady,
    AskMetrics,
    Drain,
    EngineGone,
    EngineStarted,
    Listening,
    MetricsReport,
    Ready,
    Scrape,
    Start,
    Text,
    ToWorker,
)
from server.workers.parent_line import ParentLine
from server.workers.relay import Relay
from server.workers.shared_responses import SharedResponses

_log = logging.getLogger("deltaserve.worker")


def main() -> None:
    """Run a worker to its end."""
    line_fd, listener_fd = map(int, sys.argv[1:])
    line = ParentLine(socket.socket(fileno=line_fd))
    listener = TakesTurns(fileno=listener_fd)
    start = line.read_start()
    start_log(start.settings.log_level)
    sys.exit(asyncio.run(_serve(line, start, listener)))


class TakesTurns(socket.socket):
    """A listening socket that several processes share.

    An event loop takes all connections that wait when it looks. This one gives it one each time,
    and leaves the next to whoever is free first.
    """

    _took = False

    def accept(self) -> tuple[socket.socket, object]:
        if self._took:
            self._took = False
            raise BlockingIOError
        connection = super().accept()
        self._took = True
        return connection


async def _serve(line: ParentLine, start: Start, listener: socket.socket) -> int:
    parts = FrontParts(start.settings)
    is_ready = asyncio.Event()
    is_settled = asyncio.Event()  # the server is ready, or there is no engine

    def on_ready(info: EngineInfo) -> None:
        parts.note_engine(info)
        is_ready.set()
        line.send(Ready(engine_address))

    link = EngineLink(
        name=start.name, on_ready=on_ready, unread_bounds=start.settings.unread_bounds
    )
    lifecycle = parts.lifecycle(link)
    lifecycle.others_ready = False
    metrics = parts.metrics(None)
    orders = StopOrders()

    async def scrape() -> bytes:
        text = await asyncio.to_thread(line.call, Scrape())
        assert isinstance(text, Text)
        return text.text

    engine_address = ""

    def receive(message: ToWorker) -> None:
        nonlocal engine_address
        match message:
            case EngineStarted(address):
                link.disconnect("the engine was started again")
                engine_address = address
                link.connect(address).add_done_callback(note_broken)
            case EngineGone(why):
                link.disconnect(why)
                lifecycle.others_ready = False
                is_settled.set()
            case AllReady():
                lifecycle.others_ready = True
                is_settled.set()
            case Drain():
                orders.give()
            case AskMetrics():
                line.send(MetricsReport(metrics.families()))
            case _:
                raise AssertionError(f"a worker gets no {type(message).__name__}")

    def note_broken(receiving: "asyncio.Task[None]") -> None:
        if not receiving.cancelled():
            _log.error("reading from the engine failed", exc_info=receiving.exception())
            link.disconnect("the engine process sent a broken frame")
            lifecycle.fail("reading from the engine failed")

    async def start_up() -> None:
        parts.checker.start()
        await is_ready.wait()

    async def stop() -> None:
        link.close()
        await parts.close()

    app = parts.app(
        link,
        lifecycle=lifecycle,
        metrics=metrics,
        responses=SharedResponses(line.call),
        scrape=scrape,
    )
    private = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    private.bind(start.path)
    line.attach(asyncio.get_running_loop(), receive)
    if start.waits:
        await is_settled.wait()
    await run_front(
        AppFront(
            Relay(app, lifecycle, line.call, own_path=start.path),
            lifecycle,
            parts.limits,
            metrics,
            more_listeners=(private,),
        ),
        listener,
        lifecycle=lifecycle,
        orders=orders,
        start=start_up,
        stop=stop,
        shutdown_timeout_s=start.settings.shutdown_timeout_s,
        on_listening=lambda: line.send(Listening()),
    )
    line.send(MetricsReport(metrics.families()))
    return 0 if lifecycle.failure is None else 1
