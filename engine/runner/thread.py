"""The runner's own thread: jobs in order, and something useful when there are none.

Like an executor of one thread, but for two things. It notices that nothing has come for a moment.
And nobody waits for it at the end of the process: what hangs in a device must not hang that.
"""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

IDLE_S = 0.02  # without a job; longer than the gap between two steps

T = TypeVar("T")


class RunnerThread:
    def __init__(self, *, begin: Callable[[], None], when_idle: Callable[[], bool]) -> None:
        """`begin` runs first; `when_idle` does a little and says whether there is more to do."""
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._when_idle = when_idle
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(begin,), name="runner", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()
        if self._stopped:
            raise RuntimeError("the runner was stopped")
        self._jobs.put((future, job))
        return future

    def stop(self) -> None:
        """Drop the jobs that have not begun, and wait for the one that has."""
        self._stopped = True
        with contextlib.suppress(Empty):
            while True:
                dropped = self._jobs.get_nowait()
                if dropped is not None:
                    dropped[0].cancel()
        self._jobs.put(None)
        self._thread.join()

    def _run(self, begin: Callable[[], None]) -> None:
        begin()
        has_more = True
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S if has_more else None)
            except Empty:
                has_more = self._when_idle()
                continue
            if job is None:
                return
            has_more = True
            future, run = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = run()
            except BaseException as error:  # for who waits for the future, whatever it is
                future.set_exception(error)
            else:
                future.set_result(result)
            del job, future, run  # a step's tensors are not kept until the next job
