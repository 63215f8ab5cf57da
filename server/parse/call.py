"""One call, from behind its `<function=NAME>` to where it ends, which is not its to read.

A value is whatever stands between its tag and its end, other tags included, so its end is decided
by what comes behind it: a closer is held back, with the whitespace after it, until the next lexeme
says whether it closed the value or belongs to it. Between values only tags count; text there is
no part of any value and is skipped.

Inside a string of JSON that a grammar sees to, tags are data: nothing ends before its quote.
"""

import re
from collections.abc import Callable

from server.parse.arguments import Arguments
from server.parse.lexer import Kind, Lexeme
from server.parse.schema import Parameters

# A closer ends the value if one of these follows, or the end of the text.
_FOLLOWERS = {
    Kind.END_PARAMETER: {Kind.PARAMETER, Kind.END_FUNCTION, Kind.END_TOOL_CALL},
    Kind.END_FUNCTION: {Kind.END_TOOL_CALL, Kind.TOOL_CALL, Kind.FUNCTION},
}


_OPENERS = ("{", "[")
_TEXT_OR_NULL = frozenset(("string", "null"))
_QUOTE = re.compile(r'\\.|"', re.DOTALL)


class _JsonText:
    """Whether the text so far ends inside a string; escapes outside of one there are none."""

    def __init__(self) -> None:
        self.in_string = False
        self._escapes = False  # it ends in a backslash that escapes what comes next

    def add(self, text: str) -> None:
        text = "\\" * self._escapes + text
        last = 0
        for found in _QUOTE.finditer(text):
            last = found.end()
            if found[0] == '"':
                self.in_string = not self.in_string
        self._escapes = text.endswith("\\") and last < len(text)


class Call:
    """Takes the lexemes of one call and writes its arguments; `is_bound`: a grammar saw to them."""

    def __init__(
        self, parameters: Parameters, write: Callable[[str], None], *, is_bound: bool = False
    ) -> None:
        self._is_bound = is_bound
        self._json: _JsonText | None = None  # of the value, where it is JSON for certain
        self._may_be_json = False  # its first character will tell
        self._parameters = parameters
        self._arguments = Arguments(parameters)
        self._write = write
        self.tail = ""  # whitespace that was read past the end of the call
        self._in_value = False
        self._at_value_start = False
        self._newline = ""  # one that frames the value if its end comes next
        self._begins_line = False  # the next character of the value would be a line's first
        self._closer: list[Lexeme] = []  # the one held back, and whitespace
        write(self._arguments.open())

    def take(self, lexeme: Lexeme) -> bool:
        """Read one lexeme. False: the call ended before it."""
        if not self._in_value:
            return self._between(lexeme)
        if self._json is not None and self._json.in_string:
            self._data(lexeme.raw)
            return True
        if self._closer:
            if lexeme.is_space:
                self._closer.append(lexeme)
                return True
            closer, *spaces = self._closer
            if lexeme.kind in _FOLLOWERS[closer.kind]:
                self._end_value()
                if closer.kind is Kind.END_PARAMETER:
                    return self._between(lexeme)
                self._close()
                self.tail = "".join(space.raw for space in spaces)
                return False
            self._reopen()
        self._value(lexeme)
        return True

    def end(self) -> None:
        """The model ended its text inside the call."""
        if self._in_value:
            self._end_value()
        self._close()

    def cut(self, unfinished: Lexeme | None) -> bool:
        """The token limit ended the text inside the call, which stays as it is.

        Only a closer may have been settled by a tag whose name is not complete. True: the call
        ended at it.
        """
        if unfinished is None or not self._closer:
            return False
        return unfinished.kind in _FOLLOWERS[self._closer[0].kind] and not self.take(unfinished)

    def _between(self, lexeme: Lexeme) -> bool:
        match lexeme.kind:
            case Kind.PARAMETER if self._is_key(lexeme.name):
                self._start_value(lexeme.name)
                return True
            case Kind.END_FUNCTION | Kind.END_TOOL_CALL | Kind.TOOL_CALL:
                self._close()
                return False
            case Kind.FUNCTION if lexeme.name:
                self._close()
                return False
            case _:
                return True  # text, nameless parameters, tags that mean nothing here

    def _value(self, lexeme: Lexeme) -> None:
        match lexeme.kind:
            case Kind.END_PARAMETER | Kind.END_FUNCTION:
                self._closer = [lexeme]
            case Kind.PARAMETER if self._begins_line and self._is_key(lexeme.name):
                self._end_value()
                self._start_value(lexeme.name)
            case _:
                self._data(lexeme.raw)

    def _reopen(self) -> None:
        """What was held back closed nothing: it is part of the value."""
        for lexeme in self._closer:
            self._data(lexeme.raw)
        self._closer = []

    def _start_value(self, key: str) -> None:
        self._write(self._arguments.start(key))
        types = self._parameters.types(key)
        self._json = _JsonText() if self._is_bound and "string" not in types.names else None
        self._may_be_json = (
            self._is_bound
            and bool(types.names - _TEXT_OR_NULL)
            and not any(text.startswith(_OPENERS) for text in types.literals)
        )
        self._in_value = self._at_value_start = True
        self._begins_line = False
        self._newline = ""

    def _data(self, text: str) -> None:
        """More of the value, which loses one newline at each end."""
        if self._may_be_json and (begin := text.lstrip("\n")[:1]):
            self._may_be_json = False
            if (
                self._json is None and begin in _OPENERS
            ):  # text that could be something else begins with a letter
                self._json = _JsonText()
        if self._json is not None:
            self._json.add(text)
        self._begins_line = text.endswith("\n")
        if self._at_value_start:
            self._at_value_start = False
            text = text.removeprefix("\n")
        if text:
            text = self._newline + text
            self._newline = "\n" if text.endswith("\n") else ""
            self._write(self._arguments.add(text.removesuffix("\n")))

    def _end_value(self) -> None:
        self._write(self._arguments.end())
        self._in_value = False
        self._closer = []

    def _close(self) -> None:
        self._write(self._arguments.close())

    def _is_key(self, name: str) -> bool:
        """A name with spaces is one only if the tool has such a parameter."""
        if not name:
            return False
        return not any(map(str.isspace, name)) or name in self._parameters
