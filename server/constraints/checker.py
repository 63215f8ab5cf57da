"""Finds out whether a grammar compiles, in worker processes that are killed after a time limit.

A thread cannot be stopped, and a few lines of schema can keep a compiler busy for ever, so the
first compilation of every grammar happens where it can be ended. What passed is remembered; what
was refused or timed out is not. Methods may be called from several threads, and block; where that
would hold up others, `KnownGrammars` says what there is to wait for.
"""

import hashlib
import queue
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from server.child import Child, ReadFrame
from server.constraints.effort import param_of, shortened
from server.constraints.worker import Answer, Ask
from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS, Limits

TIME_LIMIT_S = 5.0
NUM_WORKERS = 2
MAX_REMEMBERED_CHARS = 4 << 20  # of grammars and their keys

_WORKER = "server.constraints.worker"

# What the engine says, and what a client is told of it: never the engine's own words.
_REASONS = (
    ("oneof", "it has a oneOf whose branches do not exclude each other"),
    ("properties only supported", "minProperties or maxProperties stand beside optional ones"),
    ("patternproperties", "its patternProperties overlap each other or its properties"),
    ("unsatisfiable", "nothing fits it"),
    ("allows nothing", "nothing fits it"),
    ("noextension", "nothing fits it"),
    ("regex is empty", "nothing fits it"),
    ("invalid regex", "it is malformed: it has a regular expression that is"),
    ("unknown name", "it is malformed: it names a rule that is not there"),
    ("cannot be used in terminals", "it is malformed: it makes a terminal of what only rules hold"),
    ("not supported", "it is malformed: it has something that is not supported"),
    ("recursion", "it is nested too deeply"),
    ("too", "it is too complex"),
    ("fuel", "it is too complex"),
    ("limit", "it is too complex"),
)
# What the engine quotes of the grammar, and the lines of it that it shows.
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*+"|`[^`]*+`|\n.*', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a grammar compiles, which a client gave in the part of a request at `path`."""

    ask: Ask
    path: str
    terminal_paths: tuple[str, ...] = ()  # where each of the terminals comes from
    schema_paths: tuple[str, ...] = ()  # and each of the schemas

    def key(self) -> bytes:
        """The same for questions that have the same answer."""
        return hashlib.sha256(msgspec.msgpack.encode(self.ask)).digest()


class NotCompiled(Exception):
    """A request cannot be read before the question is answered."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question


class GivenUp(Exception):
    """Nobody waits for this answer any more."""


class Asking:
    """A question on its way. Whoever asked may give it up, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: Child | None = None
        self._is_given_up = False

    @property
    def is_given_up(self) -> bool:
        return self._is_given_up

    def give_up(self) -> None:
        """End the worker that is at it; it starts anew for the next question."""
        with self._lock:
            self._is_given_up = True
            if self._worker is not None:
                self._worker.kill()

    def begin(self, worker: Child) -> None:
        with self._lock:
            self._worker = worker
        self.check()

    def end(self) -> None:
        with self._lock:
            self._worker = None

    def check(self) -> None:
        if self._is_given_up:
            raise GivenUp


class Checks(ABC):
    """What a reader of constraints asks. Both may raise BadRequest that names `path`."""

    def check(
        self,
        grammar: str,
        path: str,
        terminals: Mapping[str, str] | None = None,
        *,
        schemas: Mapping[str, str] | None = None,
    ) -> str:
        """`grammar`, if it compiles.

        `terminals` are expressions in it that have to match something, with the path of each;
        `schemas` are the client's, as JSON, by their path.
        """
        named, given = terminals or {}, schemas or {}
        ask = Ask(grammar, tuple(named), schemas=tuple(given.values()))
        return self.answer(Question(ask, path, tuple(named.values()), tuple(given)))

    def from_ebnf(self, grammar: str, path: str, limits: Limits = DEFAULT_LIMITS) -> str:
        """A client's grammar in the notation of `GrammarSpec`, if it compiles.

        `limits` are those of schemas and repetitions in it.
        """
        return self.answer(Question(Ask(grammar, is_ebnf=True, limits=limits), path))

    @abstractmethod
    def answer(self, question: Question) -> str:
        """The grammar for a `GrammarSpec`."""


class Compiles(Protocol):
    """`GrammarChecker`, or a fake one."""

    def known(self, question: Question) -> str | None: ...

    def answer(self, question: Question, asking: Asking | None = None) -> str: ...


class GrammarChecker(Checks):
    """Workers start when they are first needed; `close` ends them."""

    def __init__(
        self, *, time_limit_s: float = TIME_LIMIT_S, num_workers: int = NUM_WORKERS
    ) -> None:
        self._time_limit_s = time_limit_s
        self._workers: queue.LifoQueue[Child] = queue.LifoQueue()
        self._all = [Child(_WORKER) for _ in range(num_workers)]
        for worker in self._all:
            self._workers.put(worker)
        self._lock = threading.Lock()
        self._passed: OrderedDict[bytes, str] = OrderedDict()
        self._num_chars = 0

    def start(self) -> None:
        """Start the workers, so that the first request does not wait for one."""
        for worker in self._all:
            worker.start()

    def close(self) -> None:
        for worker in self._all:
            worker.close()
            worker.stop()

    def known(self, question: Question) -> str | None:
        """The answer, if the grammar compiled before."""
        key = question.key()
        with self._lock:
            if key not in self._passed:
                return None
            self._passed.move_to_end(key)
            return self._passed[key] or question.ask.grammar

    def answer(self, question: Question, asking: Asking | None = None) -> str:
        """The grammar, compiled by a worker. Raises BadRequest, or GivenUp if `asking` was."""
        known = self.known(question)
        if known is not None:
            return known
        asking = asking or Asking()
        worker = self._workers.get()
        try:
            asking.begin(worker)
            answer = worker.ask(question.ask, self._time_limit_s, _take)
            if answer is None and not worker.is_late:  # it may have been somebody's kill, once
                asking.check()
                answer = worker.ask(question.ask, self._time_limit_s, _take)
        finally:
            asking.end()
            self._workers.put(worker)
        asking.check()
        grammar = _passed(question, answer)
        self._remember(question.key(), grammar if question.ask.is_ebnf else "")
        return grammar

    def _remember(self, key: bytes, grammar: str) -> None:
        """Keep `grammar`, or of one that was asked for as it is, only that it compiles."""
        with self._lock:
            if key in self._passed:
                return
            self._passed[key] = grammar
            self._num_chars += len(grammar) + len(key)
            while self._num_chars > MAX_REMEMBERED_CHARS:
                _, old = self._passed.popitem(last=False)
                self._num_chars -= len(old) + len(key)


class KnownGrammars(Checks):
    """The checker as it is asked where nobody may wait: what has to be compiled is an exception."""

    def __init__(self, checker: "Compiles") -> None:
        self._checker = checker

    def answer(self, question: Question) -> str:
        known = self._checker.known(question)
        if known is None:
            raise NotCompiled(question)
        return known


def _passed(question: Question, answer: Answer | None) -> str:
    """The grammar for a `GrammarSpec`. Raises BadRequest that names what is wrong."""
    path = question.path
    if answer is None:
        raise BadRequest(f"{path} takes too long to compile", param=param_of(path))
    if answer.empty_terminal is not None:
        at = question.terminal_paths[answer.empty_terminal]
        raise BadRequest(f"{at} allows no value", param=param_of(at))
    if answer.error is not None:
        where = "" if answer.line is None else f"in line {answer.line} "
        said = where + (answer.rule or _reason(answer.error))
        if answer.schema is not None:
            path = question.schema_paths[answer.schema]
        at = shortened(".".join((path, *map(str, answer.part))))
        raise BadRequest(f"{at} cannot be used: {said}", param=param_of(path))
    return answer.grammar


def _reason(error: str) -> str:
    said = _QUOTED.sub("", error).lower()
    return next((reason for word, reason in _REASONS if word in said), "it is malformed")


def _take(read: ReadFrame) -> Answer | None:
    body = read()
    return None if body is None else msgspec.msgpack.decode(body, type=Answer)
