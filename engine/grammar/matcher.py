"""One answer on its way through its grammar: ids in, masks of the ids that may follow out.

A mask is a row of int32 words; id i is bit i % 32 of word i // 32. Ids without text (padding rows,
control tokens) are never allowed by a grammar, ids that end an answer only where it is complete,
and where it can only end, nothing else.
"""

import numpy as np
from llguidance import LLMatcher

from engine.grammar.bits import Mask, allow
from engine.grammar.numbers import NumberBound
from engine.grammar.spec import GrammarSpec
from engine.grammar.vocabulary import Vocabulary


class GrammarError(Exception):
    """A grammar cannot be compiled, or ran into a limit while it was matched."""


class Matcher:
    """Belongs to one thread at a time."""

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        spec: GrammarSpec,
        *,
        usable: Mask,
        waiting_mask: Mask | None,
        numbers: NumberBound | None,
    ) -> None:
        """`waiting_mask` is what is allowed before `spec.after_token_id`.

        No id outside `usable` is ever allowed: a client's grammar can name any id of the engine.
        """
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._after_token_id = spec.after_token_id
        self._usable = usable
        self._waiting_mask = waiting_mask
        self._ended = False  # by an end token
        self._numbers = numbers

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        if self._waiting_mask is not None or self._matcher.is_error():
            return False
        return self._ended or self._matcher.is_stopped()

    def accept(self, token_id: int) -> bool:
        """Take the next token of the answer. False: the grammar does not allow it here."""
        if self._waiting_mask is not None:
            if token_id == self._after_token_id:
                self._waiting_mask = None
            return True
        if self._ended:
            return token_id in self._vocabulary.eos_ids
        if token_id in self._vocabulary.eos_ids:
            self._ended = self._matcher.is_accepting()
            return self._ended
        if not self._matcher.consume_token(token_id):
            return False
        if self._numbers is not None:
            self._numbers.append(token_id)
        return True

    def fill(self, mask_row: Mask) -> None:
        """Write the mask of what may come next: at least one id. Raises `GrammarError`."""
        assert mask_row.dtype == np.int32
        assert mask_row.shape == (self._vocabulary.num_words,)
        assert mask_row.flags.c_contiguous
        if self._waiting_mask is not None:
            mask_row[:] = self._waiting_mask
            return
        if self._ended:
            mask_row[:] = 0
            for token_id in self._vocabulary.eos_ids:
                allow(mask_row, token_id)
            return
        self._matcher.unsafe_compute_mask_ptr(mask_row.ctypes.data, mask_row.nbytes)
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error())
        mask_row &= self._usable
        if not mask_row.any():
            raise GrammarError("the grammar allows nothing to follow")
        if self._numbers is not None:
            self._numbers.apply(mask_row)
