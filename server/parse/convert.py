"""One parameter value: the text the model wrote, to JSON text of a type that its schema allows.

The types say what to look for and the text never does: a string stays as it is, however much it
looks like a number. Where a type is allowed besides strings, text that fits it is converted; what
does not fit stays a string, so that nothing the model wrote is lost. Whatever comes out is strict
JSON: no NaN or Infinity, no unpaired surrogates; and numbers keep their digits.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from server.parse.schema import Types

_MAX_DEPTH = 100  # of objects and arrays
_MAX_LITERAL = 1 << 16  # characters read as a Python literal: its syntax tree is some 100x larger

# Possessive, so that they stay linear on whatever the model writes.
_INTEGER = re.compile(r"[+-]?[0-9]++")
_INTEGRAL = re.compile(r"([+-]?[0-9]++)\.0*+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?+")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+")

_escape = json.encoder.encode_basestring


class _Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


def to_json(text: str, types: Types) -> str:
    """JSON text of the value `text`."""
    return quoted(text) if types.is_string else _converted(text, types) or quoted(text)


def may_be_null(text: str) -> bool:
    """Whether a nullable string that begins with `text` can turn out to be null."""
    return "null".startswith(text) or "None".startswith(text)


def quoted(text: str) -> str:
    return _escape(text)


def escaped(text: str) -> str:
    """The inside of a JSON string. Pieces of a text may be escaped one by one."""
    return _escape(text)[1:-1]


def _converted(text: str, types: Types) -> str | None:
    """JSON text of `text` as something other than a string, or None if it fits no such type."""
    names = types.names
    if text in types.literals:
        return None
    word = text.strip()
    if "string" in names:
        if "null" in names and text in ("null", "None"):
            return "null"
    elif word.lower() in ("null", "none"):
        return "null"
    if "boolean" in names and word.lower() in ("true", "false"):
        return word.lower()
    if "integer" in names or "number" in names:
        number = _number(word, fractions="number" in names)
        if number is not None:
            return number
    elif "boolean" in names and word in ("0", "1"):
        return "true" if word == "1" else "false"
    if "object" in names or "array" in names:
        return _container(word, names)
    return None


def _number(word: str, *, fractions: bool) -> str | None:
    if _INTEGER.fullmatch(word):
        return _integer(word)
    if not fractions:
        match = _INTEGRAL.fullmatch(word)
        return _integer(match[1]) if match else None
    if not _NUMBER.fullmatch(word) or not math.isfinite(float(word)):
        return None
    return word if _JSON_NUMBER.fullmatch(word) else repr(float(word))


def _integer(word: str) -> str:
    sign = "-" if word.startswith("-") else ""
    return sign + (word.lstrip("+-").lstrip("0") or "0")


def _container(word: str, names: frozenset[str]) -> str | None:
    """An object or array, written as JSON or else as a Python literal."""
    for read in (_DECODER.decode, _read_literal):
        try:
            value = read(word)
            fits = "object" in names if isinstance(value, dict) else "array" in names
            if fits and isinstance(value, dict | list | tuple):
                return "".join(_written(value, _MAX_DEPTH))
        # Deep nesting ends the readers by any of these; unhashable keys are a TypeError.
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _finite(number: str) -> _Number:
    if not math.isfinite(float(number)):
        raise ValueError("not finite")
    return _Number(number)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# Not strict: models break lines inside JSON strings, and what they mean is plain.
_DECODER = json.JSONDecoder(
    parse_int=_Number, parse_float=_finite, parse_constant=_refuse, strict=False
)


def _read_literal(word: str) -> Any:
    if len(word) > _MAX_LITERAL:
        raise ValueError("too long")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the model's escapes: "\d" is none in Python
        return ast.literal_eval(word)


def _written(value: Any, depth: int) -> Iterator[str]:
    """JSON text of what JSON or a Python literal can say; ValueError for what JSON cannot."""
    if depth == 0:
        raise ValueError("too deep")
    match value:
        case None:
            yield "null"
        case bool():
            yield "true" if value else "false"
        case _Number():
            yield value
        case str():
            yield quoted(_paired(value))
        case int():
            yield str(value)  # a ValueError for thousands of digits, which hexadecimal can hide
        case float() if math.isfinite(value):
            yield repr(value)
        case list() | tuple():
            yield "["
            for i, item in enumerate(value):
                yield ", " if i else ""
                yield from _written(item, depth - 1)
            yield "]"
        case dict():
            yield "{"
            for i, (key, item) in enumerate(_named(value).items()):
                yield f"{', ' if i else ''}{quoted(key)}: "
                yield from _written(item, depth - 1)
            yield "}"
        case _:
            raise ValueError(f"{type(value).__name__} is not JSON")


def _named(members: dict[Any, Any]) -> dict[str, Any]:
    """Members by the name JSON gives them: a Python literal may have integers as keys."""
    if not all(isinstance(key, str) or type(key) is int for key in members):
        raise ValueError("a key that is no name")
    return {_paired(str(key)): item for key, item in members.items()}


def _paired(text: str) -> str:
    """`text` with halves of surrogate pairs joined, and those without another half replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
