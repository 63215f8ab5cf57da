"""Turns the text that the model writes into reasoning, content and tool calls.

    START ---> REASONING --- </think> ---> CONTENT <---> CALL
                   |                                      ^
                   +----- <tool_call> <function=NAME> ----+

One machine for streamed and whole answers. A state is a method that takes the next lexeme; it
acts on it, holds it back, or hands it to the state it moved to. What is held back is never read
twice, so the work is linear in the text, and what was decided depends on the text alone, not on
the pieces it came in.

Held back are: one unfinished tag (`lexer`); newlines while a `<think>` may follow; whitespace,
which goes if a call follows; a `<tool_call>` until its `<function=NAME>` (here); and inside a call
what `call` says. Every character of the text is markup, or whitespace that the format drops, or
stray text between the values of a call, or in an event.

Where the token limit cuts the text, a call stays as far as it came. An opener that got no name is
dropped, but half a tag is text: `<tool_call>` is one token, so half of it was not meant as one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.parse.call import Call
from server.parse.events import CallArguments, CallEnd, CallStart, Content, Event, Reasoning, joined
from server.parse.lexer import Kind, Lexeme, Lexer
from server.parse.schema import Parameters

_UNKNOWN = Parameters(None)
_FUNCTION = "<function="
_BLANK_LINE = len("\n\n")


class OutputParser:
    """Parses one answer: `feed` it pieces of text, then `finish` it; both return what became known.

    `thinking` says that the prompt ends inside an open think block. Without `tools` (OpenAI tool
    definitions) there are no calls: their markup is text like any other. Calls after the first
    `max_calls` are read but not reported. `content_is_bound`: a grammar says what content looks
    like, or has calls in its place; tags in it are part of what was asked for, and text.
    `bound_calls` are the tools whose arguments a grammar makes fit their schemas: JSON in them is
    JSON for certain.

    >>> weather = {
    ...     "type": "function",
    ...     "function": {
    ...         "name": "weather",
    ...         "parameters": {
    ...             "type": "object",
    ...             "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    ...         },
    ...     },
    ... }
    >>> parser = OutputParser(thinking=True, tools=[weather])
    >>> parser.feed("They ask for rain")
    [Reasoning(text='They ask for rain')]
    >>> parser.feed(".\\n</thi")
    [Reasoning(text='.')]
    >>> parser.feed("nk>\\n\\nI look it up.\\n\\n<tool_call>\\n<function=wea")
    [Content(text='I look it up.')]
    >>> parser.feed("ther>\\n<parameter=city>\\nPa")
    [CallStart(index=0, name='weather'), CallArguments(index=0, text='{"city": "Pa')]
    >>> parser.feed("ris\\n</parameter>\\n<parameter=days>\\n")
    [CallArguments(index=0, text='ris"')]
    >>> parser.feed("3\\n</parameter>\\n</function>\\n")
    [CallArguments(index=0, text=', "days": 3}'), CallEnd(index=0)]
    >>> parser.feed("</tool_call>")
    []
    >>> parser.finish(cut=False)
    []
    >>> parser.num_calls, parser.has_finished_call
    (1, True)
    """

    def __init__(
        self,
        *,
        thinking: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        max_calls: int | None = None,
        content_is_bound: bool = False,
        bound_calls: frozenset[str] = frozenset(),
    ) -> None:
        functions = [tool["function"] for tool in tools or ()]
        self._tools = {f["name"]: Parameters(f.get("parameters")) for f in functions}
        self._max_calls = max_calls
        self._content_is_bound = content_is_bound
        self._bound_calls = bound_calls
        self._lexer = Lexer(calls=bool(functions))
        self._events: list[Event] = []
        self._thinking = thinking
        self._state: Callable[[Lexeme], None] = self._start
        self._part: type[Reasoning] | type[Content] = Content  # what text is now
        self.in_reasoning = thinking  # whether what comes next is reasoning, as far as is known

        self._num_newlines = 0  # held back at the start
        self._skips: str | None = ""  # characters dropped until another comes; None: whitespace
        self._max_skipped: int | None = None  # so many of them at most
        self._holds: str | None = ""  # characters held back until another comes; None: whitespace
        self._space: list[str] = []  # held back
        self._opener: list[Lexeme] = []  # a `<tool_call>` and whitespace, held back
        self._has_thought = False  # the think block is behind us
        self._has_content = False

        self._reports = False  # whether events tell of the call in progress
        self._call = Call(_UNKNOWN, self._write_arguments)  # that one, or the last
        self._after_call = False  # nothing but whitespace and closers since
        self._in_block = False  # the `<tool_call>` around it is open
        self._num_calls = 0
        self._num_finished = 0

    @property
    def num_calls(self) -> int:
        """Calls reported so far."""
        return self._num_calls

    @property
    def has_finished_call(self) -> bool:
        return self._num_finished > 0

    def feed(self, text: str) -> list[Event]:
        if self._lexer.is_plain(text):
            self._state(Lexeme(Kind.TEXT, text))
        else:
            for lexeme in self._lexer.feed(text):
                self._state(lexeme)
        return self._take_events()

    def finish(self, cut: bool) -> list[Event]:
        """End the text: `cut` by the token limit, or else by the model or a stop string."""
        unfinished = self._lexer.finish()
        if self._state == self._start:
            self._leave_start()
        if cut and self._state == self._in_call:
            if self._call.cut(unfinished):
                self._end_call()
        elif cut and self._lacks_name(unfinished):
            self._opener, self._space = [], []
        else:
            if unfinished is not None:
                self._state(unfinished)
            self._reopen()
            if self._state == self._in_call:
                self._call.end()
                self._end_call()
        self._end_text()
        return self._take_events()

    # States

    def _start(self, lexeme: Lexeme) -> None:
        if lexeme.kind is Kind.TEXT and not lexeme.raw.strip("\n"):
            self._num_newlines += len(lexeme.raw)
        elif lexeme.kind is Kind.THINK and (self._thinking or not self._content_is_bound):
            self._enter_reasoning()
        else:
            self._leave_start()
            self._state(lexeme)

    def _reasoning(self, lexeme: Lexeme) -> None:
        if self._opener and self._follow_opener(lexeme):
            return
        if lexeme.kind is Kind.TEXT:
            self._text(lexeme.raw)
            return
        match lexeme.kind:
            case Kind.TOOL_CALL:
                self._opener = [lexeme]
            case Kind.END_THINK:
                self._end_text()
                self._enter_content(skips="\n")
                if self._content_is_bound:  # behind the blank line all is what was asked for
                    self._max_skipped = _BLANK_LINE
            case _:
                self._text(lexeme.raw)

    def _content(self, lexeme: Lexeme) -> None:
        if self._opener and self._follow_opener(lexeme):
            return
        if lexeme.kind is Kind.TEXT or (self._content_is_bound and self._has_content):
            self._text(lexeme.raw)
            return
        match lexeme.kind:
            case Kind.TOOL_CALL:
                self._opener = [lexeme]
            case Kind.FUNCTION if lexeme.name in self._tools or self._continues_block(lexeme):
                self._start_call(lexeme.name)
            case Kind.END_TOOL_CALL | Kind.END_FUNCTION | Kind.END_PARAMETER if self._after_call:
                self._space = []
                self._in_block = self._in_block and lexeme.kind is not Kind.END_TOOL_CALL
            case Kind.END_TOOL_CALL if self._in_block:
                self._in_block = False
            case Kind.END_THINK if self._has_thought and not self._content_is_bound:
                pass
            case _:
                self._text(lexeme.raw)

    def _in_call(self, lexeme: Lexeme) -> None:
        if not self._call.take(lexeme):
            self._end_call()
            self._text(self._call.tail)
            self._state(lexeme)

    # Transitions

    def _leave_start(self) -> None:
        if self._thinking:
            self._enter_reasoning()
        else:
            self._enter_content(skips="")
            self._text("\n" * self._num_newlines)

    def _enter_reasoning(self) -> None:
        self._state, self._part = self._reasoning, Reasoning
        self.in_reasoning = True
        self._skips = "\n"
        self._holds = None if self._tools else "\n"
        self._has_thought = True

    def _enter_content(self, *, skips: str | None) -> None:
        self._state, self._part = self._content, Content
        self.in_reasoning = False
        self._skips = skips
        self._holds = None if self._tools else ""

    def _follow_opener(self, lexeme: Lexeme) -> bool:
        """Decide what a `<tool_call>` is by what follows it. True: it was all of one call."""
        if lexeme.is_space:
            self._opener.append(lexeme)
        elif lexeme.kind is Kind.FUNCTION and lexeme.name:
            self._opener = []
            self._in_block = True
            self._start_call(lexeme.name)
        else:
            self._reopen()
            return False
        return True

    def _reopen(self) -> None:
        """A `<tool_call>` that was held back opened nothing: it is text."""
        opener, self._opener = self._opener, []
        for lexeme in opener:
            self._text(lexeme.raw)

    def _continues_block(self, lexeme: Lexeme) -> bool:
        return bool(lexeme.name) and self._in_block and self._after_call

    def _start_call(self, name: str) -> None:
        self._space = []
        self._state = self._in_call
        self.in_reasoning = False
        self._reports = self._max_calls is None or self._num_calls < self._max_calls
        if self._reports:
            self._events.append(CallStart(self._num_calls, name))
            self._num_calls += 1
        self._call = Call(
            self._tools.get(name, _UNKNOWN),
            self._write_arguments,
            is_bound=name in self._bound_calls,
        )

    def _end_call(self) -> None:
        if self._reports:
            self._events.append(CallEnd(self._num_calls - 1))
            self._num_finished += 1
        self._after_call = True
        self._enter_content(skips="" if self._has_content else None)

    def _lacks_name(self, tag: Lexeme | None) -> bool:
        """Whether a text that breaks off, perhaps inside `tag`, ends in a call without its name."""
        if self._opener:
            return tag is None or _FUNCTION.startswith(tag.raw[: len(_FUNCTION)])
        if tag is None or self._state != self._content:
            return False
        if self._in_block and self._after_call:
            return True  # only markup is expected here
        name = tag.raw.removeprefix(_FUNCTION)
        return tag.kind is Kind.FUNCTION and any(known.startswith(name) for known in self._tools)

    # Output

    def _text(self, text: str) -> None:
        """More reasoning or content, with the whitespace that frames it."""
        if self._skips != "":
            num_skipped = len(text) - len(text.lstrip(self._skips))
            if self._max_skipped is not None:
                num_skipped = min(num_skipped, self._max_skipped)
                self._max_skipped -= num_skipped
            text = text[num_skipped:]
        if not text:
            return
        self._skips = ""
        body = text.rstrip(self._holds)
        if body:
            space = "".join(self._space) if self._space else ""
            self._events.append(self._part(space + body))
            self._space = []
            self._after_call = False
            self._has_content = self._part is Content
        if len(body) < len(text):
            self._space.append(text[len(body) :])

    def _end_text(self) -> None:
        """Reasoning or content ends here: settle the whitespace that was held back."""
        space = "".join(self._space)
        self._space = []
        if self._part is Reasoning:
            space = space.rstrip("\n")
        elif self._after_call:
            space = ""
        if space:
            self._events.append(self._part(space))

    def _write_arguments(self, text: str) -> None:
        if text and self._reports:
            self._events.append(CallArguments(self._num_calls - 1, text))

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return joined(events) if len(events) > 1 else events
