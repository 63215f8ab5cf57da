"""Responses that run without anybody waiting for them: `background: true`.

A `Job` is a flight of its own, so it is drained, timed out and cancelled like any other, and the
client that asked for it may go. It keeps the numbered events of a response that was asked for with
`stream: true`, and any number of clients can follow them, from the first or from behind one. What
ended, however it ended, goes to the store like any stored response.

Bounds: at most `max_running` jobs run; a job keeps at most `MAX_LOG_BYTES` of events, the newest;
jobs that ended are kept for `KEPT_S` seconds, at most `max_ended` of them and
`MAX_KEPT_BYTES` of their events, for clients that still follow. All of it belongs to the event loop
of one process, and ends with it.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, MutableMapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

import msgspec

from engine import EngineClient, QueueFull, StreamTooSlow
from server.answer import Usage
from server.errors import INTERNAL_ERROR, ErrorAnswer, Unavailable, answer_to
from server.exchange import Exchange, Scope
from server.fault_log import log_fault
from server.lifecycle import Flight, Lifecycle
from server.metrics import Metrics
from server.responses.answer import ResponseAnswer
from server.responses.read import ResponseDraft
from server.responses.store import StoredItem, StoredResponse, off_loop
from server.responses.stream import Event, encoded, error_facts
from server.valid import StreamOptions

MAX_ENDED = 256
MAX_LOG_BYTES = 16 << 20
MAX_KEPT_BYTES = 64 << 20
KEPT_S = 600.0

_encode = msgspec.json.Encoder().encode


# What an answer is written to that nobody waits for.
_NO_REQUEST: Scope = {"method": "POST", "path": "", "headers": []}


async def _receive_nothing() -> MutableMapping[str, Any]:
    return await asyncio.Future[MutableMapping[str, Any]]()


async def _send_nowhere(message: MutableMapping[str, Any]) -> None:
    del message


class _Cancelled(Exception):
    """The client does not want the response any more."""


class _Log:
    """The newest events of a job, as they are sent."""

    def __init__(self) -> None:
        self._events: deque[bytes] = deque()
        self.num_bytes = 0
        self.start = 0  # sequence number of the oldest that is kept
        self.has_ended = False
        self._grew = asyncio.Event()

    @property
    def end(self) -> int:
        return self.start + len(self._events)

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            data = encoded([event])
            self._events.append(data)
            self.num_bytes += len(data)
        while self.num_bytes > MAX_LOG_BYTES and len(self._events) > 1:
            self.num_bytes -= len(self._events.popleft())
            self.start += 1
        self._wake()

    def close(self) -> None:
        self.has_ended = True
        self._wake()

    async def read(self, start: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """The events from number `start` on, several at a time, and the number behind each."""
        while True:
            if start < self.start:
                raise StreamTooSlow("its oldest events are gone")
            if start < self.end:
                first = start - self.start
                data = [self._events[i] for i in range(first, len(self._events))]
                start = self.end
                yield start, b"".join(data)
            elif self.has_ended:
                return
            else:
                await self._grew.wait()

    def _wake(self) -> None:
        self._grew.set()
        self._grew = asyncio.Event()


class Job(ResponseAnswer):
    """One response on its way. Its events begin before the engine says anything."""

    def __init__(
        self,
        draft: ResponseDraft,
        engine: EngineClient,
        metrics: Metrics,
        *,
        arrived: float,
        held: AsyncExitStack,
    ) -> None:
        self.exchange = Exchange(_NO_REQUEST, _receive_nothing, _send_nowhere)
        super().__init__(draft, self.exchange, engine, metrics, arrived=arrived)
        self.draft = draft
        self._held = held.pop_all()  # media, until it is over
        self.id: str = self._head["id"]
        self.log = _Log() if draft.draft.stream is not None else None
        self.flight: Flight | None = None
        self.task: asyncio.Task[None]  # set by who starts it
        self.is_forgotten = False
        self.ended_at = 0.0
        self._last: Sequence[Event] = ()  # how it ended
        self._add(self._events.queue())

    async def let_go(self) -> None:
        """Keep what was said, and no pixels of what it was said about."""
        generations = tuple(replace(one, media=()) for one in self._draft.generations)
        self._draft = replace(
            self._draft, generations=generations, choices=(), prompt_fields=dict[str, Any]
        )
        self._response_draft = self.draft = replace(self.draft, draft=self._draft)
        self._usage = Usage(self._draft)
        self._requests = []
        await self._held.aclose()

    def stored(self) -> StoredResponse:
        """The response as it stands."""
        items = (StoredItem(item.id, _encode(item.as_json())) for item in self._events.items)
        return StoredResponse(
            self.id,
            self.draft.owner,
            body=_encode(self._events.response()),
            input_items=self.draft.input_items,
            output_items=tuple(items),
            previous=self.draft.previous,
        )

    async def _generate_and_send(self) -> None:
        self._add(self._events.start())
        await super()._generate_and_send()

    async def _send_whole(self, chunks: AsyncGenerator[list[dict[str, Any]], None]) -> None:
        async for step in chunks:
            for chunk in step:
                self._add(self._events.push(chunk))
        self._last = self._events.close(self._usage_json(), self._timing_fields())

    async def _send_stream(
        self, chunks: AsyncGenerator[list[dict[str, Any]], None], options: StreamOptions
    ) -> None:
        await self._send_whole(chunks)

    @property
    def is_over(self) -> bool:
        """Nothing more will come of it; it may still be on its way to the store."""
        return bool(self._last)

    def cancel(self) -> None:
        self._last = self._last or self._events.cancel(self._usage_json())

    def fail(self, error: ErrorAnswer) -> None:
        self._last = self._last or self._events.fail(error)

    def close(self) -> None:
        """Tell those who follow how it ended."""
        self._add(self._last)
        if self.log is not None:
            self.log.close()

    def _add(self, events: Sequence[Event]) -> None:
        if self.log is not None:
            self.log.add(events)


async def follow(job: Job, start: int, exchange: Exchange) -> None:
    """Stream the events of a job from number `start` on, to its end or the client's."""
    assert job.log is not None, "it keeps no events"
    reached = start

    def told(error: ErrorAnswer) -> bytes:
        facts = error_facts(error)
        ours = {"type": "error", "sequence_number": reached, "error": facts}
        return encoded([{**facts, **ours}])  # in both places where clients look

    exchange.error_events = told
    await exchange.start_stream()
    async with aclosing(job.log.read(start)) as pieces:
        async for end, events in pieces:
            reached = end
            await exchange.send_events(events)
    await exchange.send_events(b"", last=True)


class BackgroundJobs:
    """The jobs of one application, running and ended."""

    def __init__(
        self,
        engine: EngineClient,
        lifecycle: Lifecycle,
        metrics: Metrics,
        *,
        max_running: int,
        max_ended: int = MAX_ENDED,
    ) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._max_running = max_running
        self._max_ended = max_ended
        self._running: dict[str, Job] = {}
        self._ended: OrderedDict[str, Job] = OrderedDict()  # oldest first

    def start(self, draft: ResponseDraft, *, arrived: float, held: AsyncExitStack) -> Job:
        """Begin a response, which takes over the media in `held`. Raises QueueFull."""
        if len(self._running) >= self._max_running:
            raise QueueFull("too many responses run in the background")
        job = Job(draft, self._engine, self._metrics, arrived=arrived, held=held)
        self._running[job.id] = job
        job.task = asyncio.create_task(self._run(job))
        return job

    def find(self, owner: bytes, response_id: str) -> Job | None:
        """A job that runs, or that ended a short while ago."""
        self._drop_old()
        job = self._running.get(response_id) or self._ended.get(response_id)
        return job if job is not None and job.draft.owner == owner else None

    async def settle(self, job: Job) -> None:
        """Wait until a job that is over is stored."""
        if job.is_over:
            await asyncio.wait([job.task])

    async def cancel(self, job: Job) -> None:
        """End a job; one that has ended stays as it is."""
        while job.flight is None and not job.task.done():
            await asyncio.sleep(0)  # it has not begun
        if job.flight is not None:
            job.flight.abort(_Cancelled())
        await asyncio.wait([job.task])

    async def forget(self, job: Job) -> None:
        """End a job and keep nothing of it."""
        job.is_forgotten = True
        await self.cancel(job)
        self._ended.pop(job.id, None)

    async def _run(self, job: Job) -> None:
        try:
            async with self._lifecycle.flight(job.exchange) as job.flight:
                await job.run()
            self._metrics.count_ok()
        except _Cancelled:
            self._metrics.count_abort()
            job.cancel()
        except Unavailable as error:
            self._metrics.count_error(answer_to(error))
            if error.code == "draining":
                job.cancel()
            else:
                job.fail(answer_to(error))
        except Exception as error:  # whatever went wrong, whoever asks for the response is told
            answer = answer_to(error)
            if answer is INTERNAL_ERROR:
                log_fault(job.id, error)
            self._metrics.count_error(answer)
            job.fail(answer)
        finally:
            await job.let_go()
            await self._end(job)

    async def _end(self, job: Job) -> None:
        """Store the response, and only then tell anybody that it is over: it can be continued."""
        if job.draft.store is not None and not job.is_forgotten:
            await off_loop(job.draft.store, job.draft.store.add, job.stored())
        job.close()
        del self._running[job.id]
        job.ended_at = time.monotonic()
        if not job.is_forgotten:
            self._ended[job.id] = job
            self._drop_old()

    def _drop_old(self) -> None:
        limit = time.monotonic() - KEPT_S
        num_bytes = sum(job.log.num_bytes for job in self._ended.values() if job.log is not None)
        while self._ended:
            oldest = next(iter(self._ended.values()))
            kept = len(self._ended) <= self._max_ended and num_bytes <= MAX_KEPT_BYTES
            if kept and oldest.ended_at > limit:
                return
            del self._ended[oldest.id]
            num_bytes -= oldest.log.num_bytes if oldest.log is not None else 0
