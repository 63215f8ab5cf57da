"""One answer on its way through its grammar: ids in, masks of the ids that may follow out.

A mask is a row of int32 words; id i is bit i % 32 of word i // 32. Ids without text (padding rows,
control tokens) are never allowed by a grammar, ids that end an answer only where it is complete,
and where it can only end, nothing else.
"""

from typing import Protocol

import numpy as np
from llguidance import LLMatcher

from engine.grammar.bits import Mask, allow
from engine.grammar.numbers import NumberBound
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.waiting import FreeText

_LEXER_ERROR = "lexer error"  # begins so; its stop reason is no other than that of a wrong token


class GrammarError(Exception):
    """A grammar cannot be compiled, or ran into a limit while it was matched."""


class Compilation(Protocol):
    def first(self) -> LLMatcher: ...

    def unforced(self) -> LLMatcher: ...

    def own(self) -> LLMatcher | None: ...


class Matcher:
    """Belongs to one thread at a time."""

    def __init__(
        self,
        compilation: Compilation,
        vocabulary: Vocabulary,
        *,
        usable: Mask,
        free_text: FreeText | None,
        numbers: NumberBound | None,
    ) -> None:
        """`free_text` stands before the grammar's beginning; None: it begins at once.

        No id outside `usable` is ever allowed: a client's grammar can name any id of the engine.
        """
        self._compilation = compilation
        self._matcher = compilation.first()
        self._vocabulary = vocabulary
        self._usable = usable
        self._free_text = free_text  # None: the grammar has begun
        self._tail = b""  # of the free text
        self._ended = False  # by an end token
        self._numbers = numbers
        self._token_ids: list[int] = []  # that the grammar has seen

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        if self._free_text is not None or self._matcher.is_error():
            return False
        return self._ended or self._matcher.is_stopped()

    def accept(self, token_id: int) -> bool:
        """Take the next token of the answer. False: the grammar does not allow it here."""
        if self._free_text is not None:
            self._tail = self._free_text.after(self._tail, token_id)
            if token_id == self._free_text.end_id:
                self._free_text = None
            return True
        if self._ended:
            return token_id in self._vocabulary.eos_ids
        if token_id in self._vocabulary.eos_ids:
            self._ended = self._matcher.is_accepting()
            return self._ended
        if not self._consume(token_id):
            return False
        self._token_ids.append(token_id)
        if self._numbers is not None:
            self._numbers.append(token_id)
        return True

    def fill(self, mask_row: Mask) -> None:
        """Write the mask of what may come next: at least one id. Raises `GrammarError`."""
        assert mask_row.dtype == np.int32
        assert mask_row.shape == (self._vocabulary.num_words,)
        assert mask_row.flags.c_contiguous
        if self._free_text is not None:
            self._free_text.fill(mask_row, self._tail)
            return
        if self._ended:
            mask_row[:] = 0
            for token_id in self._vocabulary.eos_ids:
                allow(mask_row, token_id)
            return
        self._compute(mask_row)
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error())
        mask_row &= self._usable
        if not mask_row.any():
            raise GrammarError("the grammar allows nothing to follow")
        if self._numbers is not None:
            self._numbers.apply(mask_row)

    def _consume(self, token_id: int) -> bool:
        return self._matcher.consume_token(token_id) or (
            self._has_room_again() and self._matcher.consume_token(token_id)
        )

    def _compute(self, mask_row: Mask) -> None:
        self._vocabulary.met_long_text()
        self._matcher.unsafe_compute_mask_ptr(mask_row.ctypes.data, mask_row.nbytes)
        if self._vocabulary.met_long_text():
            self._replace(self._compilation.unforced())
            self._matcher.unsafe_compute_mask_ptr(mask_row.ctypes.data, mask_row.nbytes)
        if self._has_room_again():
            self._compute(mask_row)

    def _has_room_again(self) -> bool:
        """Whether a limit was met that other answers had used up, and is out of the way."""
        if _LEXER_ERROR not in self._matcher.get_error():
            return False
        own = self._compilation.own()
        if own is None:
            return False
        self._replace(own)
        return not self._matcher.is_error()

    def _replace(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._matcher.consume_tokens(self._token_ids)
