"""Keeps JSON numbers short and finite: JSON itself bounds neither their digits nor their exponents.

A number that is `MAX_NUMBER_CHARS` long may only end, and no exponent may make it infinite, as far
as the grammar has another way on. What a number is, is told by the text: characters of numbers
after a structural one, where a letter could not stand (in a string it could).
"""

import math

import numpy as np

from engine.grammar.bits import Mask, forbid, is_allowed
from engine.grammar.vocabulary import Vocabulary

MAX_NUMBER_CHARS = 40  # any 128-bit integer and any double

_IN_NUMBER = frozenset(b"0123456789+-.eE")
_BEFORE_NUMBER = frozenset(b":,[ \t\n\r")
_ONLY_TEXT = b"z"  # in no number, literal or structural character of JSON


class NumberTokens:
    """The tokens that could begin or continue a number, and where their bits are in a mask."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.token_bytes = vocabulary.token_bytes
        ids = [i for i, text in enumerate(self.token_bytes) if text and text[0] in _IN_NUMBER]
        self.id_N = np.array(ids, dtype=np.int64)
        self.word_N = self.id_N // 32
        self.bit_N = np.left_shift(np.uint32(1), (self.id_N % 32).astype(np.uint32)).view(np.int32)
        self.letter_id = next(
            (i for i, text in enumerate(self.token_bytes) if text == _ONLY_TEXT), None
        )


class NumberBound:
    """Follows the text of one answer."""

    def __init__(self, tokens: NumberTokens) -> None:
        self._tokens = tokens
        self._number = b""  # the characters of numbers that the text ends in
        self._may_be_one = True  # by what is before them; an answer may begin with a number

    def append(self, token_id: int) -> None:
        text = self._number + self._tokens.token_bytes[token_id]
        start = len(text)
        while start and text[start - 1] in _IN_NUMBER:
            start -= 1
        if start:
            self._may_be_one = text[start - 1] in _BEFORE_NUMBER
        self._number = text[start:]

    def apply(self, mask: Mask) -> None:
        """Take away what makes the number too long or infinite, unless nothing would be left."""
        tokens = self._tokens
        if not self._may_be_one or tokens.letter_id is None:
            return
        if is_allowed(mask, tokens.letter_id):
            return
        allowed_N = tokens.id_N[np.flatnonzero(mask[tokens.word_N] & tokens.bit_N)]
        ids = allowed_N.tolist()
        if not _forbid_some(mask, [i for i in ids if not self._fits(i)]):
            # Too long, and not complete: a bound may want one digit that is not 0 (`-0.000`).
            _forbid_some(mask, [i for i in ids if tokens.token_bytes[i][:1] == b"0"])

    def _fits(self, token_id: int) -> bool:
        text = self._number
        for byte in self._tokens.token_bytes[token_id]:
            if byte not in _IN_NUMBER:
                break
            text += bytes((byte,))
        if len(text) > MAX_NUMBER_CHARS:
            return False
        if b"e" not in text.lower():
            return True
        try:
            return math.isfinite(float(text))
        except ValueError:  # not complete yet: `1e-`
            return True


def _forbid_some(mask: Mask, token_ids: list[int]) -> bool:
    """Forbid these ids. False: that would have left nothing, and nothing is forbidden."""
    before = mask.copy()
    for token_id in token_ids:
        forbid(mask, token_id)
    if mask.any():
        return True
    mask[:] = before
    return False
