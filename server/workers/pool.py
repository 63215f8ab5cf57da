"""The parent's side: worker processes, started, watched, restarted, drained.

Owns the processes and the lines to them, all on one asyncio loop; implements `serving.Front`. What
can happen:

- a worker dies, or does not answer for `stall_limit_s`: its connections are lost, `on_lost` gets
  its name, so that the engine forgets what it asked for, and its place is filled again, at once or
  after up to 1 s; more than `MAX_RESTARTS` times in `RESTART_WINDOW_S` is the end of the server;
- a worker cannot start: the same, at once;
- this process dies: the lines close, and the workers end.

What a worker had counted when it last said so stays in the metrics when it is gone.
"""

import asyncio
import contextlib
import logging
import shutil
import socket
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import assert_never

from server.app_front import ABORT_GRACE_S
from server.assembly import FrontSettings
from server.lifecycle import Lifecycle
from server.metric_sums import Family, MetricSums
from server.metrics import Metrics
from server.responses import ResponseStore
from server.stop_orders import StopOrders
from server.workers.messages import (
    LENGTH,
    AllReady,
    Answer,
    Ask,
    AskMetrics,
    Call,
    Done,
    Drain,
    EngineGone,
    EngineStarted,
    FindRunner,
    Listening,
    MetricsReport,
    Ready,
    Runner,
    RunsResponse,
    Scrape,
    Start,
    Text,
    ToParent,
    ToWorker,
    decode_to_parent,
    frame,
)
from server.workers.shared_responses import answer_from

BACKLOG = 2048
MAX_RESTARTS = 5  # of one place
RESTART_WINDOW_S = 60.0
MAX_BACKOFF_S = 1.0
REPORT_PERIOD_S = 2.0
SCRAPE_WAIT_S = 0.5  # for workers that are slow to report; then what they said last counts
EXIT_GRACE_S = 3.0  # for a drained worker to close what it has
MAX_RUNNERS = 65536  # responses in the background that are looked for where they ran; oldest go
LAST_WORDS_S = 10.0  # from a worker's end to the end of its line, or the other way round

_ROOT = Path(__file__).resolve().parents[2]
# Not `-m`: that looks for `server` in the user's working directory first. Signals are this
# process's business, and a Ctrl-C may come before the worker's imports are through.
WORKER_COMMAND = (
    sys.executable,
    "-P",
    "-c",
    "import signal, sys; "
    "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    f"sys.path.insert(0, {str(_ROOT)!r}); from server.workers.process import main; main()",
)

_log = logging.getLogger("deltaserve.workers")


class _Worker:
    """One worker process, as long as it lives. Owned by the pool."""

    def __init__(
        self,
        name: bytes,
        path: str,
        process: asyncio.subprocess.Process,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.name = name
        self.path = path  # where other workers reach it
        self.process = process
        self.writer = writer
        self.is_listening = False
        self.is_ready = False  # it has a link to the engine process that runs
        self.num_unanswered = 0  # times it was asked for metrics since it last told them
        self.reported = asyncio.Event()  # it did since somebody cleared this, or is gone
        self.families: tuple[Family, ...] = ()

    def tell(self, message: ToWorker) -> None:
        if not self.writer.is_closing():
            self.writer.write(frame(message))


class WorkerPool:
    def __init__(
        self,
        num_workers: int,
        settings: FrontSettings,
        *,
        lifecycle: Lifecycle,
        metrics: Metrics,
        on_lost: Callable[[bytes], None],
        command: Sequence[str] = WORKER_COMMAND,
        stall_limit_s: float = 60.0,
        report_period_s: float = REPORT_PERIOD_S,
    ) -> None:
        """`lifecycle` is told when it cannot go on; `metrics` are those of this process."""
        self._num_workers = num_workers
        self._settings = settings
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._on_lost = on_lost
        self._command = tuple(command)
        self._stall_limit_s = stall_limit_s
        self._report_period_s = report_period_s
        self._responses = ResponseStore()
        self._runners: OrderedDict[str, _Worker] = OrderedDict()  # of responses in the background
        self._folder: str | None = None  # of the sockets by which workers reach each other
        self._retired = MetricSums()  # what the workers that are gone had counted
        self._workers: dict[int, _Worker] = {}  # by their place
        self._all_began = asyncio.Event()  # once, all places had a worker that was ready
        self._all_ready = False
        self._engine_address: str | None = None
        self._draining = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None

    def engine_started(self, address: str) -> None:
        self._engine_address = address
        self._tell_all(EngineStarted(address))

    def engine_gone(self, why: str) -> None:
        self._engine_address = None
        self._all_ready = False
        for worker in self._workers.values():
            worker.is_ready = False
        self._tell_all(EngineGone(why))

    async def wait_ready(self) -> None:
        """Until, at the start, every place has a worker that takes model work."""
        await self._all_began.wait()

    def begin(self, listener: socket.socket) -> "asyncio.Task[None]":
        listener.listen(BACKLOG)  # here, so that nobody is refused while the workers start
        self._folder = tempfile.mkdtemp(prefix="deltaserve-")  # mode 0700
        self._serving = asyncio.create_task(self._run(listener))
        return self._serving

    async def drain(self, orders: StopOrders, timeout_s: float) -> None:
        assert self._serving is not None
        self._draining.set()
        self._tell_all(Drain())
        for worker in self._workers.values():
            if not worker.is_listening:
                worker.process.kill()
        second = asyncio.create_task(orders.second.wait())
        await asyncio.wait(
            [self._serving, second],
            timeout=timeout_s + ABORT_GRACE_S + EXIT_GRACE_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        second.cancel()

    async def end(self, serving: "asyncio.Task[None]", *, at_once: bool) -> None:
        self._draining.set()
        serving.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    async def scrape(self) -> bytes:
        """The metrics of all processes, past and present, as text."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.reported.clear()
            worker.tell(AskMetrics())
        waits = [asyncio.create_task(worker.reported.wait()) for worker in workers]
        if waits:
            await asyncio.wait(waits, timeout=SCRAPE_WAIT_S)
        for wait in waits:
            wait.cancel()
        sums = MetricSums()
        sums.add(self._metrics.families())
        sums.add(self._retired.families())
        for worker in self._workers.values():
            sums.add(worker.families)
        return sums.render()

    async def _run(self, listener: socket.socket) -> None:
        """Returns when all workers have ended for good."""
        watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.TaskGroup() as places:
                for index in range(self._num_workers):
                    places.create_task(self._fill(index, listener))
        finally:
            for task in (watching, *self._calls):
                task.cancel()
            await asyncio.gather(watching, *self._calls, return_exceptions=True)

    async def _fill(self, index: int, listener: socket.socket) -> None:
        """Keep one place filled: the only code that starts, watches and ends its workers."""
        restarts: list[float] = []
        num_before = 0
        while True:
            was_listening, why = await self._run_worker(index, num_before, listener)
            num_before += 1
            if self._draining.is_set():
                return
            now = time.monotonic()
            restarts = [at for at in restarts if now - at < RESTART_WINDOW_S]
            if len(restarts) >= MAX_RESTARTS:
                self._lifecycle.fail(f"{why}; it died {len(restarts) + 1} times lately: giving up")
                return
            if num_before == 1 and not was_listening:
                self._lifecycle.fail(f"cannot start: {why}")
                return
            backoff_s = min(MAX_BACKOFF_S, 2.0 ** (len(restarts) - 4)) if restarts else 0.0
            restarts.append(now)
            _log.error("%s; starting it again in %g s", why, backoff_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), backoff_s)
                return

    async def _run_worker(
        self, index: int, num_before: int, listener: socket.socket
    ) -> tuple[bool, str]:
        """Whether a new worker came to listen, and how it ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(theirs.fileno()),
                    str(listener.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), listener.fileno()),
                )
            except BaseException:
                writer.close()
                raise
        name = f"api-{index}-{num_before}"
        worker = _Worker(name.encode(), f"{self._folder}/{name}.sock", process, writer)
        self._workers[index] = worker
        settings = self._settings.for_worker(index, num_before)
        worker.tell(Start(worker.name, settings, worker.path, waits=self._all_ready))
        if self._engine_address is not None:
            worker.tell(EngineStarted(self._engine_address))
        try:
            code = await self._follow(index, worker, reader)
        finally:
            writer.close()
            del self._workers[index]
            self._retired.add(worker.families)
            for response_id in [i for i, runner in self._runners.items() if runner is worker]:
                del self._runners[response_id]
            worker.reported.set()
            self._on_lost(worker.name)
            self._note_ready()
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        return worker.is_listening, f"API worker {index} {how}"

    async def _follow(self, index: int, worker: _Worker, reader: asyncio.StreamReader) -> int:
        """Listen to a worker until it ends, or says what it must not; return its exit code."""
        process = worker.process
        reading = asyncio.create_task(self._read(index, worker, reader))
        exited = asyncio.create_task(process.wait())
        try:
            if self._draining.is_set():
                process.kill()
            await asyncio.wait([reading, exited], return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and (error := reading.exception()):
                _log.error("reading from API worker %d failed", index, exc_info=error)
            else:  # its end and that of its line come together
                await asyncio.wait([reading, exited], timeout=LAST_WORDS_S)
        finally:
            if process.returncode is None:
                process.kill()
            code = await exited
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return code

    async def _read(self, index: int, worker: _Worker, reader: asyncio.StreamReader) -> None:
        """Take what a worker says, until its line closes."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                message: ToParent = decode_to_parent(await reader.readexactly(length))
                match message:
                    case Listening():
                        worker.is_listening = True
                        self._note_ready()
                    case Ready(address):
                        worker.is_ready = address == self._engine_address
                        if worker.is_ready and self._all_ready:
                            worker.tell(AllReady())
                        self._note_ready()
                    case MetricsReport(families):
                        worker.families = families
                        worker.num_unanswered = 0
                        worker.reported.set()
                    case Call(number, ask):
                        self._answer(worker, number, ask)
                    case _:
                        assert_never(message)

    def _note_ready(self) -> None:
        """Tell all workers once every one of them can take work, or will before it listens.

        Before that no probe may say so: the next request may come to another worker.
        """
        if self._all_ready:
            return
        workers = self._workers.values()
        is_begun = self._all_began.is_set() or (
            len(workers) == self._num_workers and all(worker.is_listening for worker in workers)
        )
        if is_begun and workers and all(worker.is_ready for worker in workers):
            self._all_ready = True
            self._all_began.set()
            self._tell_all(AllReady())

    def _answer(self, worker: _Worker, number: int, ask: Ask) -> None:
        match ask:
            case Scrape():
                task = asyncio.create_task(self._answer_scrape(worker, number))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
                return
            case RunsResponse(response_id):
                self._runners[response_id] = worker
                if len(self._runners) > MAX_RUNNERS:
                    self._runners.popitem(last=False)
                result = Done(found=True)
            case FindRunner(response_id):
                runner = self._runners.get(response_id)
                result = Runner(runner.path) if runner is not None else Done(found=False)
            case _:
                result = answer_from(self._responses, ask)
        worker.tell(Answer(number, result))

    async def _answer_scrape(self, worker: _Worker, number: int) -> None:
        worker.tell(Answer(number, Text(await self.scrape())))

    async def _watch(self) -> None:
        """Ask all workers how they are, again and again, and kill one that is stuck."""
        # Counted, not timed: time in which this loop does not turn proves nothing.
        max_unanswered = max(1, round(self._stall_limit_s / self._report_period_s))
        while True:
            await asyncio.sleep(self._report_period_s)
            for index, worker in self._workers.items():
                if worker.is_listening and worker.num_unanswered > max_unanswered:
                    _log.error("API worker %d has not answered for long: killing it", index)
                    worker.process.kill()
                    worker.num_unanswered = 0
                worker.num_unanswered += 1
                worker.tell(AskMetrics())

    def _tell_all(self, message: ToWorker) -> None:
        for worker in self._workers.values():
            worker.tell(message)
