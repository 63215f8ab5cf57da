"""Splits what the model writes into tags and the text between them.

The lexer knows spelling only. A tag looks the same in reasoning, in content and inside a value;
what it means there is for the machine to say, which is why every lexeme keeps its source text and
any tag can be turned back into text. Joined, the `raw` of all lexemes are the input.

It holds back one unfinished tag at most, so no more than MAX_NAME characters and a few, and looks
at a character a bounded number of times: a tag ends before the next `<`, whether it is one or not.
"""

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

MAX_NAME = 256  # characters in the name of a function or parameter; a longer one is malformed


class Kind(Enum):
    TEXT = auto()
    THINK = auto()
    END_THINK = auto()
    TOOL_CALL = auto()
    END_TOOL_CALL = auto()
    FUNCTION = auto()
    END_FUNCTION = auto()
    PARAMETER = auto()
    END_PARAMETER = auto()


class Lexeme(NamedTuple):
    kind: Kind
    raw: str  # never empty
    name: str = ""  # of FUNCTION and PARAMETER; empty when missing or malformed

    @property
    def is_space(self) -> bool:
        return self.kind is Kind.TEXT and self.raw.isspace()


_THINK_TAGS = {"<think>": Kind.THINK, "</think>": Kind.END_THINK}
_CALL_TAGS = {
    "<tool_call>": Kind.TOOL_CALL,
    "</tool_call>": Kind.END_TOOL_CALL,
    "<function=": Kind.FUNCTION,
    "</function>": Kind.END_FUNCTION,
    "<parameter=": Kind.PARAMETER,
    "</parameter>": Kind.END_PARAMETER,
}
_LONGEST = max(map(len, _THINK_TAGS | _CALL_TAGS))
# What ends a name. The template writes parameter names as they are, so these may hold spaces.
_NAME_ENDS = {Kind.FUNCTION: re.compile(r"[<>\s]"), Kind.PARAMETER: re.compile(r"[<>\n]")}
_UNFINISHED = Lexeme(Kind.TEXT, "<")  # the text ends inside what may become a tag


class Lexer:
    """Text pieces in, lexemes out. Without `calls` only the think tags are tags."""

    def __init__(self, *, calls: bool) -> None:
        self._kinds = _THINK_TAGS | _CALL_TAGS if calls else _THINK_TAGS
        self._tags = tuple(self._kinds)
        self._held = ""

    def is_plain(self, piece: str) -> bool:
        """Whether `feed` would hand out just `piece`, as text. Most are."""
        return not self._held and piece != "" and "<" not in piece

    def feed(self, piece: str) -> Iterator[Lexeme]:
        text = self._held + piece
        self._held = ""
        start = 0  # of the text that has not been handed out
        at = text.find("<")
        while at >= 0:
            tag = self._tag_at(text, at)
            if tag is None:
                at = text.find("<", at + 1)
                continue
            if start < at:
                yield Lexeme(Kind.TEXT, text[start:at])
            if tag is _UNFINISHED:
                self._held = text[at:]
                return
            yield tag
            start = at + len(tag.raw)
            at = text.find("<", start)
        if start < len(text):
            yield Lexeme(Kind.TEXT, text[start:])

    def finish(self) -> Lexeme | None:
        """What the end of the text left unfinished: plain text, or an opener without its name."""
        held, self._held = self._held, ""
        if not held:
            return None
        return Lexeme(
            next((k for t, k in self._kinds.items() if held.startswith(t)), Kind.TEXT), held
        )

    def _tag_at(self, text: str, at: int) -> Lexeme | None:
        if text.startswith(self._tags, at):
            tag = next(tag for tag in self._tags if text.startswith(tag, at))
            kind = self._kinds[tag]
            if kind in _NAME_ENDS:
                return _named_tag(kind, text, at, at + len(tag))
            return Lexeme(kind, tag)
        if len(text) - at < _LONGEST and any(tag.startswith(text[at:]) for tag in self._tags):
            return _UNFINISHED
        return None


def _named_tag(kind: Kind, text: str, at: int, name_at: int) -> Lexeme:
    end = _NAME_ENDS[kind].search(text, name_at, name_at + MAX_NAME + 1)
    if end is None:
        if len(text) - name_at <= MAX_NAME:
            return _UNFINISHED
        return Lexeme(kind, text[at : name_at + MAX_NAME])
    name = text[name_at : end.start()]
    if end[0] != ">":
        return Lexeme(kind, text[at : end.start()])
    return Lexeme(kind, text[at : end.end()], name)
