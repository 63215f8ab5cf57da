"""Finds out whether a grammar compiles, in worker processes that are killed after a time limit.

A thread cannot be stopped, and a few lines of schema can keep a compiler busy for ever, so the
first compilation of every grammar happens where it can be ended. What passed is remembered; what
was refused or timed out is not. Methods may be called from several threads, and block.
"""

import hashlib
import queue
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import msgspec

from server.child import Child, ReadFrame
from server.constraints.worker import Answer, Ask
from server.errors import BadRequest

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


class GrammarChecker:
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
            worker.stop()

    def check(self, grammar: str, path: str, terminals: Mapping[str, str] | None = None) -> str:
        """`grammar`, if it compiles. Raises BadRequest that names it by `path`.

        `terminals` are expressions in it that have to match something, with the path of each.
        """
        return self._ask(
            Ask(grammar, tuple(terminals or ())), path, tuple((terminals or {}).values())
        )

    def from_ebnf(self, grammar: str, path: str) -> str:
        """A client's grammar in the notation of `GrammarSpec`, if it compiles."""
        return self._ask(Ask(grammar, is_ebnf=True), path)

    def _ask(self, ask: Ask, path: str, terminal_paths: Sequence[str] = ()) -> str:
        key = hashlib.sha256(msgspec.msgpack.encode(ask)).digest()
        with self._lock:
            if key in self._passed:
                self._passed.move_to_end(key)
                return self._passed[key] or ask.grammar
        worker = self._workers.get()
        try:
            answer = worker.ask(ask, self._time_limit_s, _take)
            if answer is None and not worker.is_late:  # it may have been somebody's kill, once
                answer = worker.ask(ask, self._time_limit_s, _take)
        finally:
            self._workers.put(worker)
        param = path.split(".", 1)[0]
        if answer is None:
            raise BadRequest(f"{path} takes too long to compile", param=param)
        if answer.empty_terminal is not None:
            raise BadRequest(
                f"{terminal_paths[answer.empty_terminal]} allows no value", param=param
            )
        if answer.error is not None:
            where = "" if answer.line is None else f"in line {answer.line} "
            said = where + (answer.rule or _reason(answer.error))
            raise BadRequest(f"{path} cannot be used: {said}", param=param)
        self._remember(key, answer.grammar if ask.is_ebnf else "")
        return answer.grammar

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


def _reason(error: str) -> str:
    said = _QUOTED.sub("", error).lower()
    return next((reason for word, reason in _REASONS if word in said), "it is malformed")


def _take(read: ReadFrame) -> Answer | None:
    body = read()
    return None if body is None else msgspec.msgpack.decode(body, type=Answer)
