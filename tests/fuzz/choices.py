"""Bytes as a row of small choices; see `targets.py`."""

from collections.abc import Sequence
from typing import Any


class Choices:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at >= len(self._data)

    def number(self, count: int) -> int:
        """0 to `count` - 1."""
        if self.is_empty:
            return 0
        self._at += 1
        return self._data[self._at - 1] % count

    def one_of(self, values: Sequence[Any]) -> Any:
        return values[self.number(len(values))]
