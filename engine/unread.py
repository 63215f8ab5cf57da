"""What the engine said of one request and nobody has taken yet, within bounds.

Whoever takes it may wait for a slow reader, and the engine does not wait for anybody. So deltas
that pile up are merged, and a pile that is too large and that nobody has taken from for a while is
given up: the stream ends with `StreamTooSlow`. Between the two it grows by what one request
generates in `patience_s`. Sizes are estimates of what Python holds.
"""

import time
from dataclasses import dataclass

import msgspec

from engine.request import TokenDelta

_ID_BYTES = 40
_LOGPROBS_BYTES = 120
_TOP_BYTES = 120  # of each entry in them


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadBounds:
    """On what may lie there for one request."""

    max_deltas: int = 256  # more are merged into one
    max_bytes: int = 1 << 20
    patience_s: float = 30.0  # without anybody taking from a pile larger than that


class Unread:
    """The deltas of one request, in order."""

    __slots__ = ("_bounds", "_deltas", "_num_bytes", "_since")

    def __init__(self, bounds: UnreadBounds) -> None:
        self._bounds = bounds
        self._deltas: list[TokenDelta] = []
        self._num_bytes = 0
        self._since = 0.0  # when the oldest came; `time.monotonic()`

    def __bool__(self) -> bool:
        return bool(self._deltas)

    def add(self, delta: TokenDelta) -> bool:
        """Take one more. False if the bounds are broken: nobody reads this."""
        if not self._deltas:
            self._since = time.monotonic()
        self._deltas.append(delta)
        self._num_bytes += _size(delta)
        if len(self._deltas) > self._bounds.max_deltas:
            self._deltas = [_merged(self._deltas)]
        if self._num_bytes <= self._bounds.max_bytes:
            return True
        return time.monotonic() - self._since < self._bounds.patience_s

    def take(self) -> TokenDelta:
        """All that is there, as one delta."""
        deltas, self._deltas, self._num_bytes = self._deltas, [], 0
        return _merged(deltas)

    def clear(self) -> None:
        self._deltas, self._num_bytes = [], 0


def _merged(deltas: list[TokenDelta]) -> TokenDelta:
    """One delta that says what several in a row said."""
    if len(deltas) == 1:
        return deltas[0]
    return msgspec.structs.replace(
        deltas[0],
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        logprobs=tuple(logprobs for delta in deltas for logprobs in delta.logprobs),
        finish=deltas[-1].finish,
    )


def _size(delta: TokenDelta) -> int:
    """Bytes, roughly. Those of the prompt's logprobs come once, and are bounded with the prompt."""
    num_bytes = _ID_BYTES * len(delta.token_ids)
    for logprobs in delta.logprobs:
        num_bytes += _LOGPROBS_BYTES + _TOP_BYTES * len(logprobs.top)
    return num_bytes
