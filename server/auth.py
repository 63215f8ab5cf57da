"""Who may ask. Denies by default: with a key set, only three of the probes are open.

The decision looks at the raw path as it came over the wire, so that no decoding, prefix or Host
header can make a guarded route look like an open one; and it is taken before the body is read.
"""

import hmac
from collections.abc import Iterable

from server.errors import BadRequest
from server.exchange import Exchange

OPEN_PATHS = frozenset({b"/live", b"/ready", b"/health"})
PROBES = OPEN_PATHS | {b"/ping"}  # what asks for health, often


class Keyring:
    """The configured keys; without any, everything is open."""

    def __init__(self, keys: Iterable[str], *, open_metrics: bool = False) -> None:
        self._keys = tuple(key.encode("utf-8") for key in keys)
        if not all(self._keys):
            raise ValueError("an API key must not be empty")
        self._open_paths = OPEN_PATHS | ({b"/metrics"} if open_metrics else set[bytes]())

    def check(self, raw_path: bytes, exchange: Exchange) -> None:
        """Raise a 401 unless the request may pass."""
        if not self._keys or raw_path in self._open_paths:
            return
        sent = exchange.header(b"authorization")
        scheme, _, token = sent[0].partition(b" ") if len(sent) == 1 else (b"", b"", b"")
        token = token.strip()
        matches = [hmac.compare_digest(token, key) for key in self._keys]  # all: no early exit
        if scheme.lower() != b"bearer" or not any(matches):
            raise BadRequest(
                "A valid API key is needed: send it as 'Authorization: Bearer KEY'.",
                status=401,
                type="authentication_error",
                code="invalid_api_key",
            )
