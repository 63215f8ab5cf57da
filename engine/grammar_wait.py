"""Requests whose grammar is being compiled: the scheduler hears of them when it is ready.

Compiling happens in threads beside the loop, so a slow grammar holds up its own request and no
step. What was compiled for a request is kept until the request is over: the scheduler may let it
wait, or preempt it, and the runner never has to compile it again.

All methods belong to the loop's thread.
"""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from engine.errors import (
    EngineError,
    GrammarStuck,
    GrammarTooSlow,
    QueueFull,
    RequestFailed,
)
from engine.grammar import GrammarError, GrammarSpec
from engine.request import Request

COMPILE_LIMIT_S = 10.0  # the server has seen it compile within 5 s

_log = logging.getLogger(__name__)


class GrammarSource(Protocol):
    """What compiles grammars. Each `prepare` is followed by one `let_go`, whatever came of it."""

    def prepare(self, spec: GrammarSpec) -> "Future[None]":
        """Compile a grammar in a thread, and keep it. The future raises GrammarError."""
        ...

    def let_go(self, spec: GrammarSpec) -> None:
        """It need not be kept for this request any more."""
        ...


@dataclass(slots=True)
class _Held:
    request: Request
    spec: GrammarSpec
    compiled: "Future[None]"
    began_at: float | None = None  # None: no thread was seen at it yet


class GrammarWait:
    def __init__(
        self,
        source: GrammarSource | None,
        *,
        max_waiting: int,
        max_prepared: int,
        limit_s: float = COMPILE_LIMIT_S,
    ) -> None:
        """At most `max_prepared` requests have a grammar kept for them; others wait in line.

        Without a source no request waits here.
        """
        self._source = source
        self._max_waiting = max_waiting
        self._max_prepared = max_prepared
        self._limit_s = limit_s
        self._in_line: dict[str, Request] = {}  # oldest first, as the others
        self._held: dict[str, _Held] = {}
        self._passed: dict[str, GrammarSpec] = {}  # of requests that the scheduler has, or had

    @property
    def num_waiting(self) -> int:
        return len(self._in_line) + len(self._held)

    def takes(self, request: Request) -> bool:
        """Whether the request has to wait here first; it is taken, then. Raises QueueFull."""
        if self._source is None or request.sampling.grammar is None:
            return False
        if request.seats and self.num_waiting + request.seats > self._max_waiting:
            raise QueueFull(f"{self._max_waiting} requests wait for grammars already")
        self._in_line[request.id] = request
        return True

    def ready(self) -> Iterator[tuple[Request, EngineError | None]]:
        """The requests that need not wait any longer, each with what is wrong with its grammar."""
        self._start()
        now = time.monotonic()
        for held in list(self._held.values()):
            if held.compiled.done():
                error = _what_came_of(held)
            elif self._is_late(held, now):
                error = GrammarTooSlow(f"the grammar took more than {self._limit_s:g} s to compile")
            else:
                continue
            del self._held[held.request.id]
            self._passed[held.request.id] = held.spec
            yield held.request, error

    def end(self, request_id: str) -> None:
        """The request is over, or was cancelled. Unknown ids are fine."""
        self._in_line.pop(request_id, None)
        spec = self._passed.pop(request_id, None)
        if held := self._held.pop(request_id, None):
            held.compiled.cancel()
            spec = held.spec
        if spec is not None:
            assert self._source is not None
            self._source.let_go(spec)

    def _start(self) -> None:
        while self._in_line and len(self._held) + len(self._passed) < self._max_prepared:
            request = self._in_line.pop(next(iter(self._in_line)))
            spec = request.sampling.grammar
            assert spec is not None
            assert self._source is not None
            self._held[request.id] = _Held(request, spec, self._source.prepare(spec))

    def _is_late(self, held: _Held, now: float) -> bool:
        if held.began_at is None and held.compiled.running():
            held.began_at = now
        return held.began_at is not None and now - held.began_at > self._limit_s


def _what_came_of(held: _Held) -> EngineError | None:
    """What the compiler raised costs this request only, whatever it is."""
    error = held.compiled.exception()
    if error is None:
        return None
    if isinstance(error, GrammarError):
        return GrammarStuck("the grammar cannot be compiled")
    _log.error("the grammar of request %s broke the compiler", held.request.id, exc_info=error)
    return RequestFailed("the engine could not compile a grammar")
