"""JSON from outside, decoded without giving a client a way to hurt us.

Depth, and how much there is to decode, are checked on the raw bytes, in linear time, before
anything is allocated; then msgspec decodes, which refuses NaN, Infinity, numbers past a double,
integers past 4300 digits, lone surrogates and broken UTF-8. Nothing of the input is ever repeated
in an error.

msgspec holds the interpreter's lock until it is through, and all of the process waits for that: so
what is bounded is its time. A number counts once, twice if it has a fraction or an exponent, a
string 16 times, and a list, an object or a member of one 32 times: about as it takes. The bound
lies above what 64 MiB of token ids hold, and is 0.3 to 0.7 s of a shared core (December 2026). The
scan before it lets others run between its pieces; `in_turn` keeps those times from adding up.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec

from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS

LARGE_BYTES = 1 << 20
MAX_COST = 1 << 24
_STRING_COST = 16
_CONTAINER_COST = 32  # of a member: half for its key, which is a string, half for its colon
_MEMBER_COST = _CONTAINER_COST - _STRING_COST
_PIECE_BYTES = 256 << 10  # scanned at once: under 10 ms

_NOT_BRACKETS = bytes(set(range(256)).difference(b"[]{}"))
_DECODER = msgspec.json.Decoder()
_TURN = threading.Lock()


def in_turn(body: bytes) -> AbstractContextManager[object]:
    """To be entered in a thread while `body` becomes a wire model: large ones one at a time."""
    return _TURN if len(body) > LARGE_BYTES else nullcontext()


def decode_json(body: bytes, max_depth: int = DEFAULT_LIMITS.max_json_depth) -> dict[str, Any]:
    """Decode a request body, which must be one JSON object."""
    return decode_object(body, what="the request body", param=None, max_depth=max_depth)


def decode_object(
    text: bytes, *, what: str, param: str | None, max_depth: int = DEFAULT_LIMITS.max_json_depth
) -> dict[str, Any]:
    """Decode one JSON object; `what` names it in the refusal."""
    _check_extent(text, what, param, max_depth)
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


def _check_extent(text: bytes, what: str, param: str | None, max_depth: int) -> None:
    is_short = len(text) * _CONTAINER_COST <= MAX_COST
    if is_short and text.count(b"[") + text.count(b"{") <= max_depth:
        return
    depth = cost = 0
    is_inside = False  # a string
    escape = b""  # the backslash that a piece ended with: what it escapes is in the next one
    for start in range(0, len(text), _PIECE_BYTES):
        piece = escape + text[start : start + _PIECE_BYTES]
        piece = piece.replace(rb"\\", b"").replace(rb"\"", b"")
        escape = b"\\" if piece.endswith(b"\\") else b""
        parts = piece.split(b'"')
        outside = b"".join(parts[is_inside::2])
        is_inside ^= len(parts) % 2 == 0
        for bracket in outside.translate(None, _NOT_BRACKETS):
            depth += 1 if bracket in b"[{" else -1
            if depth > max_depth:
                raise BadRequest(f"{what} is nested deeper than {max_depth} levels", param=param)
        cost += _cost(outside) + len(parts) // 2 * _STRING_COST
        if cost > MAX_COST:
            raise BadRequest(
                f"{what} holds too many values: at most {MAX_COST} numbers, or "
                f"{MAX_COST // _STRING_COST} strings, or {MAX_COST // _CONTAINER_COST} lists, "
                "objects and members of objects",
                param=param,
            )


def _cost(outside: bytes) -> int:
    """What decoding costs of what lies outside strings."""
    return (
        sum(outside.count(mark) for mark in (b",", b".", b"e", b"E"))
        + outside.count(b":") * _MEMBER_COST
        + (outside.count(b"[") + outside.count(b"{")) * _CONTAINER_COST
    )
