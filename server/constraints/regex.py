"""Regular expressions of clients, in the dialect of the grammar engine, for a whole match.

Clients write Python's or ECMAScript's syntax; the engine reads that of Rust's `regex` crate, which
gives some of the same characters another meaning (`[[a]`, `a++`, `.`). So an expression is parsed
here and written anew. Where the dialects disagree about what matches, the result matches only what
all of them do: `\\d` is `[0-9]`, and `\\D` is what no dialect takes for a digit.

An anchor says nothing at the ends of a whole match and is dropped there; elsewhere it is refused,
as are look-around, backreferences, possessive quantifiers and word boundaries, which a grammar
cannot express.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import NoReturn

from server.limits import DEFAULT_LIMITS

MAX_REPEAT = DEFAULT_LIMITS.max_repeat
MAX_DEPTH = 64  # of groups

ANYTHING = "(?s:.*)"

_SPECIAL = frozenset("\\.+*?()|[]{}^$#&-~/")
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}
_QUANTIFIER = re.compile(r"\{([0-9]{0,9})(,?)([0-9]{0,9})\}")
_PROPERTY = re.compile(r"\{([A-Za-z_]{1,32}(?:=[A-Za-z_]{1,32})?)\}")
_GROUP_NAME = re.compile(r"\?P?<[A-Za-z_][A-Za-z0-9_]*>")

# What goes between brackets for a class, and for its negation: subsets of every dialect's.
_CLASSES = {
    "d": ("0-9", r"^\p{Nd}"),
    "w": ("0-9A-Za-z_", r"^\p{L}\p{M}\p{N}\p{Pc}\x{200c}\x{200d}"),
    "s": (r" \t\n\r\x0b\x0c", r"^\s\x1c-\x1f\x{85}\x{feff}"),
}
_DOT = r"[^\n\r\x{2028}\x{2029}]"


class UnsupportedRegex(ValueError):
    """The message says what is wrong, and where, in fixed words; it never quotes the expression."""


class _Anchor(Enum):
    START = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class _Group:
    branches: "list[_Branch]"


@dataclass(frozen=True, slots=True)
class _Repeat:
    item: "_Item"
    quantifier: str


_Item = str | _Anchor | _Group | _Repeat  # a string is an expression of one character
_Branch = list[_Item]


def whole(pattern: str, max_repeat: int = MAX_REPEAT) -> str:
    """An expression that matches what `pattern` matches as a whole. Raises `UnsupportedRegex`."""
    return _written(_without_anchors(_Parser(pattern, max_repeat).parse(), start=True, end=True))


def found(pattern: str, max_repeat: int = MAX_REPEAT) -> str:
    """An expression for the whole texts that `pattern` is found in, as in JSON Schema."""
    branches = _Parser(pattern, max_repeat).parse().branches
    return "|".join(map(_found_branch, branches))


def literal(text: str) -> str:
    return "".join(map(_literal, text))


def _literal(char: str) -> str:
    if char in _SPECIAL:
        return "\\" + char
    return char if char.isprintable() else f"\\x{{{ord(char):x}}}"


class _Parser:
    def __init__(self, pattern: str, max_repeat: int) -> None:
        self._max_repeat = max_repeat
        self._text = pattern
        self._at = 0
        self._folds_case = False

    def parse(self) -> _Group:
        if self._text.startswith("(?i)"):
            self._at = 4
            self._folds_case = True
        group = self._alternatives(depth=0)
        if self._at < len(self._text):
            self._refuse("unbalanced parenthesis")
        return group

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        if self._at >= len(self._text):
            self._refuse("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _take(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        match = expression.match(self._text, self._at)
        if match:
            self._at = match.end()
        return match

    def _alternatives(self, depth: int) -> _Group:
        if depth > MAX_DEPTH:
            self._refuse(f"groups are nested deeper than {MAX_DEPTH} levels")
        branches: list[_Branch] = [[]]
        while (char := self._peek()) not in ("", ")"):
            if char == "|":
                self._at += 1
                branches.append([])
            else:
                branches[-1].append(self._quantified(self._item(depth)))
        return _Group(branches)

    def _item(self, depth: int) -> _Item:
        match char := self._next():
            case "(":
                return self._group(depth)
            case "[":
                return self._folded(self._bracket())
            case ".":
                return _DOT
            case "^":
                return _Anchor.START
            case "$":
                return _Anchor.END
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                self._refuse("a quantifier has nothing to repeat")
            case _:
                return self._folded(_literal(char))

    def _group(self, depth: int) -> _Group:
        if self._text.startswith("?:", self._at):
            self._at += 2
        elif self._peek() == "?" and not self._take(_GROUP_NAME):
            self._refuse("look-around, flags and other special groups are not supported")
        group = self._alternatives(depth + 1)
        if self._peek() != ")":
            self._refuse("unbalanced parenthesis")
        self._at += 1
        return group

    def _quantified(self, item: _Item) -> _Item:
        quantifier = self._quantifier()
        if not quantifier:
            return item
        if isinstance(item, _Anchor):
            self._refuse("an anchor cannot be repeated")
        if self._peek() == "?":  # lazy: the same texts match
            self._at += 1
        elif self._peek() == "+":
            self._refuse("possessive quantifiers are not supported")
        if self._peek() in ("*", "+", "?") and self._peek():
            self._refuse("a quantifier has nothing to repeat")
        return _Repeat(item, quantifier)

    def _quantifier(self) -> str:
        char = self._peek()
        if char and char in "*+?":
            self._at += 1
            return char
        at = self._at
        match = self._take(_QUANTIFIER) if char == "{" else None
        if match is None or not (match[1] or match[3]):
            self._at = at
            return ""
        least = int(match[1] or 0)
        most = int(match[3]) if match[3] else None if match[2] else least
        if max(least, most or 0) > self._max_repeat:
            self._refuse(f"a repetition is bounded by more than {self._max_repeat}")
        if most is not None and most < least:
            self._refuse("a repetition has its bounds the wrong way round")
        return f"{{{least},{'' if most is None else most}}}"

    def _escape(self) -> _Item:
        char = self._next()
        if char == "A":
            return _Anchor.START
        if char in "Zz":
            return _Anchor.END
        if char in "bB" or char in "123456789" or char == "k":
            self._refuse("word boundaries and backreferences are not supported")
        if char.lower() in _CLASSES:
            return f"[{_CLASSES[char.lower()][char.isupper()]}]"
        if char in "pP":
            return f"\\{char}{self._property()}"
        return self._folded(_literal(self._escaped_char(char)))

    def _escaped_char(self, char: str) -> str:
        """The character that an escape stands for, the backslash and `char` being read."""
        if char in _CONTROL:
            return _CONTROL[char]
        if char == "0":
            return "\0"
        if char in "xu":
            return self._code_point(2 if char == "x" else 4, braces=char == "u")
        if char.isalnum() or char == "_":
            self._refuse("it has an unknown escape")
        return char

    def _code_point(self, num_digits: int, *, braces: bool) -> str:
        if braces and self._peek() == "{":
            end = self._text.find("}", self._at)
            digits = self._text[self._at + 1 : end] if end > 0 else ""
            self._at = end + 1
        else:
            digits = self._text[self._at : self._at + num_digits]
            self._at += num_digits
            if len(digits) != num_digits:
                digits = ""
        if not re.fullmatch(r"[0-9A-Fa-f]{1,6}", digits):
            self._refuse("it has a malformed escape")
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            self._refuse("it names a character that does not exist")
        return chr(code)

    def _property(self) -> str:
        match = self._take(_PROPERTY)
        if match is None:
            self._refuse("it has a malformed character property")
        return match[0]

    def _bracket(self) -> str:
        """A bracket expression; the opening bracket is read."""
        negated = self._peek() == "^"
        self._at += negated
        parts: list[str] = []
        while (char := self._next()) != "]" or (not parts and self._has_closing_bracket()):
            first = self._bracket_item(char, negated)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._bracket_item(self._next(), negated)
                if len(first) != 1 or len(last) != 1 or first > last:
                    self._refuse("a bracket expression has a bad range")
                parts.append(f"{_literal(first)}-{_literal(last)}")
            else:
                parts.append(_literal(first) if len(first) == 1 else first)
        if not parts:
            self._refuse("a bracket expression is empty")
        return f"[{'^' if negated else ''}{''.join(parts)}]"

    def _has_closing_bracket(self) -> bool:
        """A `]` right after the opening bracket is a member, as in Python, if another follows."""
        return "]" in self._text[self._at :]

    def _bracket_item(self, char: str, negated: bool) -> str:
        """One character, or a class as text that is longer than one."""
        if char != "\\":
            return char
        escaped = self._next()
        if escaped.lower() in _CLASSES:
            ascii_only, complement = _CLASSES[escaped.lower()]
            wide = f"[{complement[1:]}]"
            if escaped.islower():
                return wide if negated else f"[{ascii_only}]"
            return f"[^{ascii_only}]" if negated else f"[{complement}]"
        if escaped in "pP":
            return f"\\{escaped}{self._property()}"
        if escaped == "b":
            return "\b"
        return self._escaped_char(escaped)

    def _folded(self, expression: str) -> str:
        return f"(?i:{expression})" if self._folds_case else expression

    def _refuse(self, why: str) -> NoReturn:
        """Name the last character that was read, or the end."""
        _refuse(f"{why}, at character {max(1, self._at)}")


def _without_anchors(group: _Group, *, start: bool, end: bool) -> _Group:
    """Drop the anchors where the whole match begins (`start`) or ends; refuse those elsewhere."""
    return _Group([_branch_without_anchors(branch, start, end) for branch in group.branches])


def _branch_without_anchors(branch: _Branch, start: bool, end: bool) -> _Branch:
    kept = list(branch)
    while start and kept and kept[0] is _Anchor.START:
        del kept[0]
    while end and kept and kept[-1] is _Anchor.END:
        del kept[-1]
    result: _Branch = []
    for i, item in enumerate(kept):
        at_start, at_end = start and i == 0, end and i == len(kept) - 1
        match item:
            case _Anchor():
                _refuse("an anchor is only supported at the beginning or the end")
            case _Group():
                result.append(_without_anchors(item, start=at_start, end=at_end))
            case _Repeat(item=_Group() as inner, quantifier=quantifier):
                result.append(_Repeat(_without_anchors(inner, start=False, end=False), quantifier))
            case _:
                result.append(item)
    return result


def _found_branch(branch: _Branch) -> str:
    starts = _is_anchored(_Group([branch]), _Anchor.START)
    ends = _is_anchored(_Group([branch]), _Anchor.END)
    body = _written(_Group([_branch_without_anchors(branch, starts, ends)]))
    return f"{'' if starts else ANYTHING}{body}{'' if ends else ANYTHING}"


def _is_anchored(group: _Group, anchor: _Anchor) -> bool:
    """Whether every way through the group begins, or ends, with the anchor."""
    place = 0 if anchor is _Anchor.START else -1
    return all(
        bool(branch)
        and (
            branch[place] is anchor
            or (isinstance(branch[place], _Group) and _is_anchored(branch[place], anchor))  # pyright: ignore[reportArgumentType]
        )
        for branch in group.branches
    )


def _written(item: _Item) -> str:
    match item:
        case str():
            return item
        case _Anchor():
            raise AssertionError("anchors are dropped before")
        case _Repeat():
            return _written(item.item) + item.quantifier
        case _Group():
            branches = ("".join(map(_written, branch)) for branch in item.branches)
            return f"(?:{'|'.join(branches)})"


def _refuse(why: str) -> NoReturn:
    raise UnsupportedRegex(why)
