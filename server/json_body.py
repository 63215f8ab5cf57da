"""JSON from outside, decoded without giving a client a way to hurt us.

Depth and the number of containers are checked on the raw bytes, in linear time, before anything is
allocated; then msgspec decodes, which refuses NaN, Infinity, numbers past a double, integers past
4300 digits, lone surrogates and broken UTF-8. Nothing of the input is ever repeated in an error.
"""

import re
from typing import Any

import msgspec

from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS

MAX_CONTAINERS = 1_000_000  # a container costs up to 30 times its bytes of JSON

# What lies before the next bracket outside strings. Possessive throughout: no backtracking.
_NEXT_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+([\[\]{}])', re.DOTALL)
_DECODER = msgspec.json.Decoder()


def decode_json(body: bytes, max_depth: int = DEFAULT_LIMITS.max_json_depth) -> dict[str, Any]:
    """Decode a request body, which must be one JSON object."""
    return decode_object(body, what="the request body", param=None, max_depth=max_depth)


def decode_object(
    text: bytes, *, what: str, param: str | None, max_depth: int = DEFAULT_LIMITS.max_json_depth
) -> dict[str, Any]:
    """Decode one JSON object; `what` names it in the refusal."""
    _check_nesting(text, what, param, max_depth)
    try:
        value = _DECODER.decode(text)
    except msgspec.ValidationError:
        raise BadRequest(f"{what} holds a number that is out of range", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        if not _is_utf8(text):
            raise BadRequest(f"{what} is not valid UTF-8", param=param) from None
        raise BadRequest(
            f"{what} is not valid JSON: malformed, cut off, or with half a surrogate pair",
            param=param,
        ) from None
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object", param=param)
    return value


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_nesting(text: bytes, what: str, param: str | None, max_depth: int) -> None:
    if text.count(b"[") + text.count(b"{") <= max_depth:
        return
    depth = num_containers = position = 0
    while found := _NEXT_BRACKET.match(text, position):
        position = found.end()
        if text[position - 1] in b"]}":
            depth -= 1
            continue
        depth += 1
        num_containers += 1
        if depth > max_depth:
            raise BadRequest(f"{what} is nested deeper than {max_depth} levels", param=param)
        if num_containers > MAX_CONTAINERS:
            raise BadRequest(
                f"{what} holds more than {MAX_CONTAINERS} lists and objects", param=param
            )
