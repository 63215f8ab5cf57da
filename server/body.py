"""Reads a request body within its limits, and refuses what is not plain JSON before reading it.

Bytes are counted while they come in, so a chunked body is bounded like an announced one, and
nothing is allocated for a length that was only claimed.
"""

import asyncio

from server.errors import BadRequest, ClientGone
from server.exchange import Exchange


def check_json_headers(exchange: Exchange, *, max_bytes: int) -> None:
    """Refuse by the headers alone: 415 for what is not JSON or is encoded, 413 for too long."""
    types = exchange.header(b"content-type")
    if len(types) != 1 or not _is_json(types[0]):
        raise BadRequest("The Content-Type must be application/json.", status=415)
    encodings = exchange.header(b"content-encoding")
    if any(value.strip().lower() != b"identity" for value in encodings):
        raise BadRequest("Content-Encoding is not supported: send plain JSON.", status=415)
    for length in exchange.header(b"content-length"):
        if not length.isdigit() or len(length) > 18:
            raise BadRequest("The Content-Length is not a sensible number.")
        if int(length) > max_bytes:
            raise _too_big(max_bytes)


async def read_body(exchange: Exchange, *, max_bytes: int, pause_s: float) -> bytes:
    """The whole body. Raises BadRequest (413, 408) or ClientGone."""
    body = bytearray()
    while True:
        try:
            async with asyncio.timeout(pause_s):
                message = await exchange.receive()
        except TimeoutError:
            raise BadRequest("The request body did not arrive in time.", status=408) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_big(max_bytes)
        if not message.get("more_body", False):
            exchange.is_body_read = True
            return bytes(body)


def _is_json(content_type: bytes) -> bool:
    media_type, _, parameters = content_type.lower().partition(b";")
    if media_type.strip() != b"application/json":
        return False
    charset = parameters.strip().removeprefix(b"charset=").strip(b'"')
    return charset in (b"", b"utf-8", b"utf8") or b"charset" not in parameters


def _too_big(max_bytes: int) -> BadRequest:
    return BadRequest(f"The request body is larger than {max_bytes} bytes.", status=413)
