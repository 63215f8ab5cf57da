"""From validated choices to bytes: one stream of chunks, or one object folded from the same chunks.

An endpoint describes its answer as a `Draft`: which engine requests to run, and one `Choice` per
request that turns deltas into chunk choices. This file runs them, counts usage, keeps the clocks
and writes the answer. Nothing is sent before the first engine output, so a refusal is still a
plain HTTP error. Chunks are dicts of plain values, encoded by msgspec; the fields that all chunks
of an answer share are encoded once.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from engine import CallerError, EngineClient, FinishReason, TokenDelta
from server import sse
from server.exchange import Exchange
from server.generate import TokenStreams
from server.metrics import ChoiceClock, Ending, Metrics
from server.timings import Timings
from server.valid import Generation, StreamOptions

_encode = msgspec.json.Encoder().encode


class Choice(Protocol):
    """One choice of an answer."""

    @property
    def finish(self) -> FinishReason | None:
        """Set once the choice is complete."""
        ...

    @property
    def num_tokens(self) -> int:
        """Completion tokens so far."""
        ...

    @property
    def num_reasoning_tokens(self) -> int: ...

    def push(self, delta: TokenDelta) -> list[dict[str, Any]]:
        """The stream chunks, as `choices` entries, that `delta` makes; often one, maybe none."""
        ...

    def fold(self, chunk: dict[str, Any]) -> None:
        """Take one of `push`'s chunks into the whole choice."""
        ...

    def whole(self) -> dict[str, Any]:
        """The `choices` entry of an answer that is not streamed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An answer to be: generation k*n .. k*n+n-1 of `choices` continue `generations[k]`."""

    id_prefix: str
    object_whole: str
    object_chunk: str
    model: str
    generations: tuple[Generation, ...]
    choices: Sequence[Choice]
    stream: StreamOptions | None
    system_fingerprint: str | None = None
    # Fields of the answer that tell of the prompt: whole answers have them, streams in their first
    # chunk. Called once the engine's first delta is in.
    prompt_fields: Callable[[], dict[str, Any]] = dict[str, Any]
    timings: bool = False  # the end of the answer says where its time went
    tells_cache_writes: bool = False  # its usage says how much of the prompt is cached now


class Usage:
    """Token counts of one answer, by the engine's word."""

    def __init__(self, draft: Draft) -> None:
        self._choices = draft.choices
        self._num_cached = [0] * len(draft.generations)
        self._num_saved = 0
        self._tells_cache_writes = draft.tells_cache_writes
        self._n = draft.generations[0].n
        self.num_prompt = sum(len(generation.prompt_ids) for generation in draft.generations)

    def set_cached(self, index: int, num_cached: int, num_saved: int) -> None:
        """Book a choice's cached tokens, and those it wrote to the cache.

        A prompt counts once, by its first choice: the others find what that one computed.
        """
        if index % self._n == 0:
            self._num_cached[index // self._n] = num_cached
            self._num_saved += num_saved

    @property
    def num_cached(self) -> int:
        return sum(self._num_cached)

    @property
    def num_completion(self) -> int:
        return sum(choice.num_tokens for choice in self._choices)

    def as_json(self) -> dict[str, Any]:
        num_completion = self.num_completion
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": self.num_prompt + num_completion,
            "prompt_tokens_details": self._prompt_details(),
            "completion_tokens_details": {
                "reasoning_tokens": sum(choice.num_reasoning_tokens for choice in self._choices)
            },
        }

    def _prompt_details(self) -> dict[str, int]:
        details = {"cached_tokens": self.num_cached}
        if self._tells_cache_writes:
            details["cache_write_tokens"] = self._num_saved
        return details


class Answer:
    """Runs a draft and sends it."""

    def __init__(
        self,
        draft: Draft,
        exchange: Exchange,
        engine: EngineClient,
        metrics: Metrics,
        *,
        arrived: float,
    ) -> None:
        unique = uuid.uuid4().hex
        self._draft = draft
        self._exchange = exchange
        self._engine = engine
        self._metrics = metrics
        self._usage = Usage(draft)
        requests = [
            generation.request(f"{unique}-{k * generation.n + choice}", choice)
            for k, generation in enumerate(draft.generations)
            for choice in range(generation.n)
        ]
        self._requests = [
            msgspec.structs.replace(request, seats=0 if at else len(requests))
            for at, request in enumerate(requests)
        ]
        self._head: dict[str, Any] = {
            "id": draft.id_prefix + unique,
            "object": draft.object_chunk if draft.stream else draft.object_whole,
            "created": int(time.time()),
            "model": draft.model,
        }
        if draft.system_fingerprint is not None:
            self._head["system_fingerprint"] = draft.system_fingerprint
        now = time.monotonic()
        self._clocks = [
            ChoiceClock(metrics, arrived=arrived, submitted=now) for _ in self._requests
        ]
        self._timings = Timings(arrived=arrived, submitted=now)

    async def run(self) -> None:
        """Generate and send. Raises what the engine raises; the exchange knows what was sent.

        The sending is a task of its own: a token wakes a task through every frame that awaits it,
        and the web framework's, above this one, are many.
        """
        ending: Ending | None = "error"
        sending = asyncio.create_task(self._generate_and_send())
        sending.add_done_callback(_note_exception)
        try:
            await sending
        except CallerError:
            if not any(clock.has_started for clock in self._clocks):
                ending = None  # it never ran
            raise
        except asyncio.CancelledError:
            ending = "abort"
            raise
        finally:
            self._book(ending)

    async def _generate_and_send(self) -> None:
        async with (
            TokenStreams(self._engine, self._requests) as streams,
            aclosing(self._chunks(streams)) as chunks,
        ):
            if self._draft.stream is None:
                await self._send_whole(chunks)
            else:
                await self._send_stream(chunks, self._draft.stream)

    async def _chunks(self, streams: TokenStreams) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The chunks of each delta, as it comes; the list may be empty."""
        choices = self._draft.choices
        async with aclosing(streams.deltas()) as deltas:
            async for index, delta in deltas:
                choice = choices[index]
                num_before = choice.num_tokens
                chunks = choice.push(delta)
                self._note(index, delta, choice.num_tokens - num_before)
                if choice.finish is not None and delta.finish is None:
                    streams.stop(index)
                yield chunks

    def _note(self, index: int, delta: TokenDelta, num_new: int) -> None:
        """Book the times and the cache use that `delta` tells."""
        clock = self._clocks[index]
        now = time.monotonic()
        if not clock.has_started:
            clock.started(now, delta.queue_s)
            self._timings.started(now, self._requests[index], delta)
            self._usage.set_cached(index, delta.num_cached_tokens, delta.num_saved_tokens)
            num_prompt = len(self._requests[index].prompt_ids)
            self._metrics.count_cache(num_prompt, delta.num_cached_tokens)
        else:
            clock.stepped(now, num_new)
            self._timings.stepped(now, num_new)
        finish = self._draft.choices[index].finish
        if finish is not None:
            clock.ended(now, finish.value)

    def _book(self, ending: Ending | None) -> None:
        """Book the end of the answer and of the choices that did not get to theirs."""
        now = time.monotonic()
        for choice, clock in zip(self._draft.choices, self._clocks, strict=True):
            if choice.finish is None and ending is not None:
                clock.ended(now, ending)
        self._exchange.num_prompt_tokens = self._usage.num_prompt
        self._exchange.num_completion_tokens = self._usage.num_completion
        if any(clock.has_started for clock in self._clocks):
            self._metrics.count_usage(self._usage.num_prompt, self._usage.num_completion)

    def _timing_fields(self) -> dict[str, Any]:
        if not self._draft.timings:
            return {}
        usage = self._usage
        timings = self._timings.as_json(
            time.monotonic(),
            num_prompt=usage.num_prompt,
            num_cached=usage.num_cached,
            num_completion=usage.num_completion,
        )
        return {"timings": timings}

    async def _send_whole(self, chunks: AsyncGenerator[list[dict[str, Any]], None]) -> None:
        choices = self._draft.choices
        async for step in chunks:
            for chunk in step:
                choices[chunk["index"]].fold(chunk)
        whole = {
            **self._head,
            "choices": [choice.whole() for choice in choices],
            "usage": self._usage.as_json(),
            **self._draft.prompt_fields(),
            **self._timing_fields(),
        }
        await self._exchange.reply(_encode(whole))

    async def _send_stream(
        self, chunks: AsyncGenerator[list[dict[str, Any]], None], options: StreamOptions
    ) -> None:
        exchange = self._exchange
        prefix = b"data: " + _encode(self._head)[:-1] + b',"choices":['
        suffix = b'],"usage":null}\n\n' if options.include_usage else b"]}\n\n"
        is_first = True
        async for step in chunks:
            if not exchange.streaming:
                await exchange.start_stream()
            if not step:
                continue
            if options.continuous_usage:
                suffix = b'],"usage":' + _encode(self._usage.as_json()) + b"}\n\n"
            events = [prefix + _encode(chunk) + suffix for chunk in step]
            if is_first and (fields := self._draft.prompt_fields()):
                first = prefix + _encode(step[0]) + b"]," + _encode(fields)[1:-1]
                events[0] = first + suffix.removeprefix(b"]")
            is_first = False
            await exchange.send_events(b"".join(events))
        end = sse.DONE
        last: dict[str, Any] = {"usage": self._usage.as_json()} if options.include_usage else {}
        last |= self._timing_fields()
        if last:
            end = prefix + b"]," + _encode(last)[1:] + b"\n\n" + end
        await exchange.send_events(end, last=True)


def _note_exception(task: asyncio.Task[None]) -> None:
    """Whoever awaits `task` raises it, unless cancelled at that moment: asyncio would log it."""
    if not task.cancelled():
        task.exception()
