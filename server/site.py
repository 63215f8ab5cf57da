"""What every route shares, and the one way in which model work is done.

Model work is a `Flight`: it can be drained, timed out, and ends when its client goes away. JSON,
templates and tokenizing run in small thread pools, so the loop and the probes stay quick: large
bodies, whose prompts may take a minute to tokenize, in one of their own, so that the others never
wait for them. Images and videos are loaded between two turns in it, and grammars compiled, so that
a slow one holds no thread.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from fastapi import FastAPI, Request, Response

from engine import EngineClient
from server.answer import Answer
from server.body import check_json_headers, read_body
from server.constraints import GrammarQueue, NotCompiled
from server.exchange import Exchange, Receive, Scope, Send
from server.json_body import LARGE_BYTES
from server.lifecycle import Lifecycle
from server.limits import Limits
from server.media_wait import AwaitsMedia, MediaSource, media_held
from server.metrics import Metrics
from server.tokenizer import Tokenizer
from server.validate import Validator

NUM_VALIDATION_THREADS = 4
EXCHANGE = "deltaserve.exchange"  # keys in an ASGI scope: what the shell gives to routes
FAULT = "deltaserve.fault"

Handler = Callable[[Exchange], Awaitable[None]]
T = TypeVar("T")
D = TypeVar("D", contravariant=True)


def _make_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(NUM_VALIDATION_THREADS, thread_name_prefix="validate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    engine: EngineClient
    validator: Validator
    tokenizer: Tokenizer
    served_names: tuple[str, ...]  # the first is what answers call the model by default
    model_root: str
    version: str
    lifecycle: Lifecycle
    metrics: Metrics
    limits: Limits
    media: MediaSource | None = None  # None: only where the validator serves none
    grammars: GrammarQueue | None = None  # None: the validator waits for grammars itself
    scrape: Callable[[], Awaitable[bytes]] | None = None  # None: `metrics` are all there are
    created: int = field(default_factory=lambda: int(time.time()))
    pool: ThreadPoolExecutor = field(default_factory=_make_pool)
    large_pool: ThreadPoolExecutor = field(default_factory=_make_pool)

    @property
    def fingerprint(self) -> str:
        return f"deltaserve-{self.version}"

    async def reply(
        self, exchange: Exchange, read: Callable[[bytes], bytes | AwaitsMedia[bytes]]
    ) -> None:
        """Answer with what `read` makes of the body."""

        async def answer(reply: bytes, arrived: float, held: AsyncExitStack) -> None:
            await exchange.reply(reply)

        await self.work(exchange, read, answer)

    async def generate(
        self,
        exchange: Exchange,
        read: Callable[[bytes], T | AwaitsMedia[T]],
        maker: "AnswerMaker[T]",
    ) -> None:
        """Generate what `read` makes of the body, and answer as `maker` does."""

        async def answer(draft: T, arrived: float, held: AsyncExitStack) -> None:
            await maker(draft, exchange, self.engine, self.metrics, arrived=arrived).run()

        await self.work(exchange, read, answer)

    async def work(
        self,
        exchange: Exchange,
        read: Callable[[bytes], T | AwaitsMedia[T]],
        answer: Callable[[T, float, AsyncExitStack], Awaitable[None]],
    ) -> None:
        """Take one request from its headers to the end of its answer.

        `read` runs in a thread and may raise BadRequest; `answer` gets what came of it, the time
        at which the request arrived, and what is let go when it returns: whoever needs the media
        for longer takes it over.
        """
        arrived = time.monotonic()
        self.lifecycle.check_ready()
        check_json_headers(exchange, max_bytes=self.limits.max_body_bytes)
        async with self.lifecycle.flight(exchange) as flight, AsyncExitStack() as held:
            body = await read_body(
                exchange, max_bytes=self.limits.max_body_bytes, pause_s=self.limits.body_pause_s
            )
            flight.watch()
            reading = self._finish(read, body, held)
            del body  # it may be large, and an answer long
            await answer(await reading, arrived, held)
        self.metrics.count_ok()

    async def _finish(
        self, read: Callable[[bytes], T | AwaitsMedia[T]], body: bytes, held: AsyncExitStack
    ) -> T:
        """What `read` makes of the body; what it needs to be loaded stays in `held`."""
        pool = self.large_pool if len(body) > LARGE_BYTES else self.pool
        got = await self._read(partial(read, body), pool)
        if not isinstance(got, AwaitsMedia):
            return got
        assert self.media is not None, "a validator that serves media, and nobody to load them"
        media = await held.enter_async_context(media_held(self.media, got.refs))
        return await self._read(partial(got.go_on, media), pool)

    async def _read(self, read: Callable[[], T], pool: ThreadPoolExecutor) -> T:
        """Read in a thread; from the start again once a grammar is compiled that it stopped at."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(pool, read)
            except NotCompiled as stop:
                assert self.grammars is not None, "nobody compiles for this validator"
                await self.grammars.compile(stop.question)


class AnswerMaker(Protocol[D]):
    """`Answer`, or a kind of it that writes another API's answers."""

    def __call__(
        self,
        draft: D,
        exchange: Exchange,
        engine: EngineClient,
        metrics: Metrics,
        *,
        arrived: float,
    ) -> Answer: ...


class Sent(Response):
    """What a route returns: the exchange has sent the answer already, or never will."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


def add_route(api: FastAPI, path: str, handler: Handler, *methods: str) -> None:
    """Serve `path` by `handler`, which answers through the exchange and may raise anything.

    What it raises reaches the shell around the application, which alone writes error answers.
    """

    async def endpoint(request: Request) -> Response:
        try:
            await handler(request.scope[EXCHANGE])
        except Exception as error:
            request.scope[FAULT].append(error)
        return Sent()

    api.add_api_route(path, endpoint, methods=list(methods), response_class=Sent)
