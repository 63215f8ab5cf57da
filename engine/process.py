"""The engine's child process: started, watched, restarted, never waited for in vain.

Owns the child, the folder of its socket, and the link by which this process speaks to it, all on
one asyncio loop. What can happen:

- the child dies, or its step counters stand still for `stall_limit_s` while there is work: every
  open stream raises EngineDied, the state is `dead`, and the engine is started again after 1, 2,
  4 .. 60 s, at most `MAX_RESTARTS` times in `RESTART_WINDOW_S`; then `on_give_up` is called;
- the first start fails: `start` raises EngineDied and no child is left;
- this process dies: the child sees its standard input close, and ends.

Other processes with a link of their own are told where each new child listens, and when it is gone.
"""

import asyncio
import contextlib
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.client import EngineInfo, EngineStats
from engine.config import EngineConfig
from engine.errors import EngineDied
from engine.ipc import Start
from engine.link import EngineLink
from engine.unread import UnreadBounds
from engine.worker import EXIT_BAD_CONFIG, start_frame

MAX_RESTARTS = 5
RESTART_WINDOW_S = 600.0
WATCH_PERIOD_S = 0.5
STOP_GRACE_S = 5.0

_ROOT = Path(__file__).resolve().parents[1]
# Not `-m`: that looks for `engine` in the user's working directory first.
WORKER_COMMAND = (
    sys.executable,
    "-P",
    "-c",
    f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from engine.build import main; main()",
)

_log = logging.getLogger(__name__)


class EngineProcess:
    """An engine in a child process. `link` is this process's line to it, whichever child it is."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        stall_limit_s: float = 60.0,
        first_backoff_s: float = 1.0,
        unread_bounds: UnreadBounds | None = None,
        on_stats: Callable[[EngineStats], None] | None = None,
        on_give_up: Callable[[], None] | None = None,
        on_started: Callable[[str], None] | None = None,
        on_gone: Callable[[str], None] | None = None,
    ) -> None:
        """`on_started` gets the address of a new child, `on_gone` why there is none any more."""
        self._config = config
        self._command = tuple(command)
        self._stall_limit_s = stall_limit_s
        self._first_backoff_s = first_backoff_s
        self._on_give_up = on_give_up
        self._on_started = on_started
        self._on_gone = on_gone
        self.link = EngineLink(
            on_ready=self._note_ready, on_stats=on_stats, unread_bounds=unread_bounds
        )
        self._first_ready: asyncio.Future[EngineInfo] | None = None
        self._folder: str | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    async def start(self) -> EngineInfo:
        """Start the child and wait until it is ready. Raises EngineDied if it ends before that."""
        self._folder = tempfile.mkdtemp(prefix="deltaserve-")  # mode 0700
        self._first_ready = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(self._first_ready))
        try:
            return await self._first_ready
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the child and everything still open. Safe to call twice."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        self.link.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _note_ready(self, info: EngineInfo) -> None:
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_result(info)

    async def _supervise(self, first_ready: asyncio.Future[EngineInfo]) -> None:
        """Keep one child running: the only place that starts, watches and ends it."""
        restarts: list[float] = []
        backoff_s = self._first_backoff_s
        while True:
            why = await self._run_child()
            self.link.disconnect(why)
            if self._on_gone is not None:
                self._on_gone(why)
            if not first_ready.done():
                first_ready.set_exception(EngineDied(why))
                return
            now = time.monotonic()
            restarts = [at for at in restarts if now - at < RESTART_WINDOW_S]
            if len(restarts) >= MAX_RESTARTS:
                _log.critical("%s; it died %d times lately: giving up", why, MAX_RESTARTS + 1)
                if self._on_give_up is not None:
                    self._on_give_up()
                return
            backoff_s = min(60.0, backoff_s * 2) if restarts else self._first_backoff_s
            restarts.append(now)
            _log.error("%s; starting it again in %g s", why, backoff_s)
            await asyncio.sleep(backoff_s)

    async def _run_child(self) -> str:
        """Start a child, serve until it ends or hangs, leave nothing of it, say what happened."""
        assert self._folder is not None
        address = f"ipc://{self._folder}/{time.monotonic_ns()}.sock"
        child = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.PIPE)
        self._child = child
        receiver = self.link.connect(address)
        if self._on_started is not None:
            self._on_started(address)
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                child.stdin.write(start_frame(Start(self._config, address)))
                await child.stdin.drain()
            return await self._watch(child, receiver)
        finally:
            await _end(child)

    async def _watch(
        self, child: asyncio.subprocess.Process, receiver: "asyncio.Task[None]"
    ) -> str:
        """Wait for the child to end, to stall, or to send a broken frame; return what it was."""
        exited = asyncio.create_task(child.wait())
        still_s, looked_at = 0.0, time.monotonic()
        try:
            while True:
                await asyncio.wait(
                    (exited, receiver),
                    timeout=WATCH_PERIOD_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if exited.done():
                    code = exited.result()
                    if code == EXIT_BAD_CONFIG:
                        return "the engine cannot run this configuration"
                    how = (
                        f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
                    )
                    return f"the engine process {how}"
                if receiver.done():
                    _log.error("reading from the engine failed", exc_info=receiver.exception())
                    return "the engine process sent a broken frame"
                # Time in which this loop did not turn, either, proves nothing against the engine.
                now = time.monotonic()
                since_s = min(now - looked_at, 2 * WATCH_PERIOD_S)
                still_s = 0.0 if self.link.take_moved() else still_s + since_s
                looked_at = now
                if self.link.state == "ready" and still_s > self._stall_limit_s:
                    child.kill()
                    return f"the engine process made no progress for {still_s:.0f} s"
        finally:
            exited.cancel()


async def _end(child: asyncio.subprocess.Process) -> None:
    """Close the child's lifeline; kill it if it does not go."""
    if child.stdin is not None:
        child.stdin.close()
    try:
        await asyncio.wait_for(child.wait(), STOP_GRACE_S)
    except TimeoutError:
        child.kill()
        await child.wait()
