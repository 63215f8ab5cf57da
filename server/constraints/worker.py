"""Compiles grammars in a process of its own, which can be killed when one takes too long.

Run by `server.child`: an `Ask` is answered by an `Answer`. The vocabulary is one token per byte:
what a grammar costs to compile does not depend on it.
"""

import contextlib
import os
import re
import resource
import sys
import time
import traceback
from typing import Any

import msgspec
import numpy as np

from engine import GrammarCompiler, GrammarError, GrammarSpec, Vocabulary
from server.child import read_frame, write_frame
from server.constraints.blame import faulty_part
from server.constraints.calls import json_text
from server.constraints.client_grammar import ClientGrammar
from server.constraints.lark import UnusableGrammar
from server.constraints.schema import normalized
from server.errors import BadRequest
from server.limits import BOUNDS, DEFAULT_LIMITS, Limits

MAX_MEMORY_BYTES = 4 << 30
QUICK_S = 0.5  # what takes less to fail is tried again without each of its parts, for as long
NICENESS = 10  # below the engine and the server, where all share few cores

# The whole was within the operator's limits, and so are its parts.
_WIDEST = Limits(
    **{
        name: int(BOUNDS[name].most)
        for name in BOUNDS
        if name.startswith("max_schema_") or name in ("max_enum_values", "max_repeat")
    }
)
_LOCATION = re.compile(r"(?:at )?([0-9]{1,9})\([0-9]+\): ")  # what the engine's words begin with


class Ask(msgspec.Struct, frozen=True, array_like=True):
    grammar: str
    terminals: tuple[str, ...] = ()  # expressions of the grammar that have to match something
    is_ebnf: bool = False  # with `root ::=`, or Lark; else what `GrammarSpec` takes
    schemas: tuple[str, ...] = ()  # the client's, which alone may keep the grammar from compiling
    limits: Limits = DEFAULT_LIMITS  # of what is in a client's grammar


class Answer(msgspec.Struct, frozen=True, array_like=True):
    grammar: str = ""  # for a GrammarSpec
    error: str | None = None  # the engine's words; not for clients
    line: int | None = None  # of a client's grammar, the one that is at fault
    rule: str | None = None  # which of our rules that line breaks
    schema: int | None = None  # the first of the client's that does not compile
    part: tuple[str | int, ...] = ()  # of that schema, the one that is at fault
    empty_terminal: int | None = None  # the first of them that matches nothing


def byte_compiler() -> GrammarCompiler:
    tokens = [bytes((byte,)) for byte in range(256)]
    return GrammarCompiler(Vocabulary([*tokens, b"<end>"], num_rows=257, eos_ids=(256,)))


def compiled(compiler: GrammarCompiler, ask: Ask) -> Answer:
    # A terminal that matches nothing is found at the start of a grammar only: later, it would be
    # where an answer cannot go on.
    for index, expression in enumerate(ask.terminals):
        if error := _error(compiler, f"start: TEXT\nTEXT: {expression}"):
            return Answer(error=error, empty_terminal=index)
    if ask.is_ebnf:
        return _client_grammar(compiler, ask.grammar, ask.limits)
    began = time.monotonic()
    error = _error(compiler, ask.grammar)
    if error is None:
        return Answer(grammar=ask.grammar)
    if time.monotonic() - began >= QUICK_S:
        return Answer(error=error)
    return _with_part(compiler, Answer(error=error), ask.schemas)


def _with_part(compiler: GrammarCompiler, answer: Answer, schemas: tuple[str, ...]) -> Answer:
    """`answer` with the schema that is at fault, and the part of it, if they are soon found."""

    def compiles(part: Any) -> bool:
        try:
            body = json_text(normalized(part, path="schema", limits=_WIDEST))
        except BadRequest:
            return False
        return _error(compiler, f"start: %json {body}") is None

    deadline = time.monotonic() + QUICK_S
    for index, text in enumerate(schemas):
        schema = msgspec.json.decode(text)
        if len(schemas) > 1 and compiles(schema):
            continue
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        part = faulty_part(schema, compiles, limit_s=left_s)
        return msgspec.structs.replace(answer, schema=index, part=part)
    return answer


def _client_grammar(compiler: GrammarCompiler, text: str, limits: Limits) -> Answer:
    try:
        grammar = ClientGrammar(text, limits)
    except UnusableGrammar as error:
        return Answer(error=str(error), line=error.line, rule=str(error))
    except (RecursionError, MemoryError) as error:
        return Answer(error=type(error).__name__)
    error = _error(compiler, grammar.lark)
    if error is None:
        return Answer(grammar=grammar.lark)
    where = _LOCATION.match(error)
    return Answer(error=error, line=grammar.line_of(int(where[1])) if where else None)


def _error(compiler: GrammarCompiler, grammar: str) -> str | None:
    try:
        matcher = compiler.matcher(GrammarSpec(grammar=grammar))
        matcher.fill(np.zeros(compiler.vocabulary.num_words, dtype=np.int32))
    except (GrammarError, MemoryError) as error:
        return str(error) or type(error).__name__
    return None


def main() -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower limit is already set
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    os.nice(NICENESS)
    compiler = byte_compiler()
    write_frame(sys.stdout.buffer, Answer())  # ready: the clock of the first question starts now
    while (body := read_frame(sys.stdin.buffer)) is not None:
        ask = msgspec.msgpack.decode(body, type=Ask)
        write_frame(sys.stdout.buffer, _answer(compiler, ask))


def _answer(compiler: GrammarCompiler, ask: Ask) -> Answer:
    """As `compiled`; what we did not think of refuses a grammar, and is told to the operator."""
    try:
        return compiled(compiler, ask)
    except Exception as error:
        traceback.print_exc()
        return Answer(error=repr(error))


if __name__ == "__main__":
    main()
