"""What may be written before a grammar begins: anything that nobody takes for its beginning.

The grammar begins behind a token, `</think>`. But who parses the answer reads text, and a tag is a
tag whichever tokens spell it. So no other token may complete the tag here, nor, where a tool call
is not to begin yet, that of the call. Half a tag is text to everybody, and stays free.

What was written is remembered as far back as a tag may have begun in it.
"""

from collections.abc import Sequence

import numpy as np

from engine.grammar.bits import Mask, packed
from engine.grammar.spec import GrammarSpec
from engine.grammar.vocabulary import Vocabulary


class FreeText:
    """The masks of one kind of free text, shared by all answers that begin with it."""

    def __init__(self, vocabulary: Vocabulary, spec: GrammarSpec, *, free: Mask) -> None:
        """`spec` has an `after_token_id`; `free` are the ids that may stand in text at all."""
        assert spec.after_token_id is not None
        self.end_id = spec.after_token_id
        self._vocabulary = vocabulary
        self._tags = [vocabulary.names[i] for i in (self.end_id, *spec.banned_before)]
        self.reach = max(map(len, self._tags)) - 1  # bytes of a tag that may have begun
        whole = [i for i, text in enumerate(vocabulary.token_bytes) if self._has_tag(text)]
        never = [*spec.banned_before, *(i for i in whole if i != self.end_id)]
        self._free = free & ~self._packed(never)
        # By what is left of a begun tag, the tokens that complete it.
        rests = {tag[n:] for tag in self._tags for n in range(1, len(tag))}
        begins_so = tuple(rests)
        ids_by_rest: dict[bytes, list[int]] = {rest: [] for rest in rests}
        for token_id, text in enumerate(vocabulary.token_bytes):
            if text.startswith(begins_so):
                for rest in rests:
                    if text.startswith(rest):
                        ids_by_rest[rest].append(token_id)
        self._completing = {rest: self._packed(ids) for rest, ids in ids_by_rest.items()}

    def fill(self, mask_row: Mask, tail: bytes) -> None:
        """The mask of what may follow text that ends in `tail`, its last `reach` bytes."""
        mask_row[:] = self._free
        for tag in self._tags:
            for begun in range(1, min(len(tag), len(tail) + 1)):
                if tail.endswith(tag[:begun]):
                    mask_row &= ~self._completing[tag[begun:]]

    def after(self, tail: bytes, token_id: int) -> bytes:
        """The new tail."""
        return (tail + self._vocabulary.token_bytes[token_id])[-self.reach :]

    def _has_tag(self, text: bytes) -> bool:
        return any(tag in text for tag in self._tags)

    def _packed(self, ids: Sequence[int]) -> Mask:
        chosen = np.zeros(self._vocabulary.num_rows, dtype=np.bool_)
        chosen[list(ids)] = True
        return packed(chosen, num_words=self._vocabulary.num_words)
