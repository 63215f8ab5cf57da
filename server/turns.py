"""Where prompts of one conversation, or of one application, are likely to part from each other.

The prefix cache saves recurrent states there. A state is large, so three places are named and no
more: behind the first turn (system prompt and tools, which all conversations of an application
share), behind the last question of the user (what the model thinks after it is left out once the
next one is asked), and where the answer begins.
"""

from collections.abc import Iterator, Sequence

from server.template import TURN_HEADER
from server.tokenizer import Tokenizer

_QUESTION_HEADER = TURN_HEADER + "user"
_TOOL_RESULT = "<tool_response>"  # begins a turn of the user which no user wrote


class Turns:
    """Knows the headers of turns in a tokenizer's ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._header = tokenizer.id_of(TURN_HEADER)  # None: another chat format
        self._question = tokenizer.encode(_QUESTION_HEADER)
        self._tool_result = tokenizer.id_of(_TOOL_RESULT)

    def boundaries(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Token counts, rising, of a rendered chat; none if it has no two turns."""
        starts = [*self._starts(ids), len(ids)]
        ends = {starts[1] if len(starts) > 2 else 0, starts[-2] if len(starts) > 1 else 0}
        for start, end in zip(reversed(starts[:-1]), reversed(starts[1:]), strict=True):
            if self._is_question(ids, start):
                ends.add(end)
                break
        return tuple(sorted(ends - {0, len(ids)}))

    def _starts(self, ids: Sequence[int]) -> Iterator[int]:
        if self._header is None:
            return
        at = -1
        while True:
            try:
                at = ids.index(self._header, at + 1)
            except ValueError:
                return
            yield at

    def _is_question(self, ids: Sequence[int], start: int) -> bool:
        behind = start + len(self._question)
        if list(ids[start:behind]) != self._question:
            return False
        return self._tool_result is None or self._tool_result not in ids[behind : behind + 2]
