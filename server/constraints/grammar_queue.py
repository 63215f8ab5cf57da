"""The line of requests that wait for a grammar to be compiled.

A few are compiled at a time, first come, first served, and only so many may wait; requests that
need nothing compiled never come here. One that goes away gives its place back at once: the worker
that is at its grammar is ended.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from engine import QueueFull, QueueTimeout
from server.constraints.checker import NUM_WORKERS, Asking, Compiles, Question

MAX_WAITING = 64
QUEUE_LIMIT_S = 60.0


class GrammarQueue:
    """Belongs to one event loop."""

    def __init__(
        self,
        checker: Compiles,
        *,
        num_places: int = NUM_WORKERS,
        max_waiting: int = MAX_WAITING,
        limit_s: float = QUEUE_LIMIT_S,
    ) -> None:
        """`limit_s` bounds the wait for a place, not what is done there."""
        self._checker = checker
        self._places = asyncio.Semaphore(num_places)
        self._threads = ThreadPoolExecutor(num_places, thread_name_prefix="grammar")
        self._max_waiting = max_waiting
        self._limit_s = limit_s
        self._num_waiting = 0

    async def compile(self, question: Question) -> None:
        """Have the checker know the answer. Raises BadRequest, QueueFull or QueueTimeout."""
        await self._take_place()
        asking = Asking()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, self._checker.answer, question, asking)
        work.add_done_callback(self._give_place_back)
        try:
            await asyncio.shield(work)  # the place is free when the thread is
        except asyncio.CancelledError:
            asking.give_up()
            raise

    async def _take_place(self) -> None:
        if self._num_waiting >= self._max_waiting:
            raise QueueFull(f"{self._max_waiting} requests wait for grammars already")
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self._limit_s):
                await self._places.acquire()
        except TimeoutError:
            message = f"no grammar was taken up within {self._limit_s:g} s"
            raise QueueTimeout(message) from None
        finally:
            self._num_waiting -= 1

    def _give_place_back(self, work: "asyncio.Future[str]") -> None:
        if not work.cancelled():
            work.exception()  # seen, also where nobody waits for it any more
        self._places.release()
