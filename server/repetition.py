"""Loops in the output: the last tokens are a pattern, several times over.

The rule is vLLM's `repetition_detection`: for some size from `min_size` to `max_size`, the output
ends with `min_count` copies of the same tokens. A pattern of size p is there so often if each of
the last p * (min_count - 1) tokens equals the one p places before it. So it is enough to count, per
p, how long that has been the case, and only places where the newest token occurred before have a
p whose count does not fall to 0.
"""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionRule:
    min_size: int  # at least 1
    max_size: int
    min_count: int  # at least 2


class LoopDetector:
    def __init__(self, rule: RepetitionRule) -> None:
        self._rule = rule
        self._num_tokens = 0
        self._seen: dict[int, deque[int]] = {}  # places of each token, the last `max_size` of all
        self._recent: deque[int] = deque()
        self._runs: dict[int, int] = {}  # size -> tokens that equal the one so far before

    def push(self, token_id: int) -> bool:
        """Whether the output ends in a loop with this token."""
        rule, place = self._rule, self._num_tokens
        runs: dict[int, int] = {}
        loops = False
        for earlier in self._seen.get(token_id, ()):
            size = place - earlier
            runs[size] = run = self._runs.get(size, 0) + 1
            loops |= size >= rule.min_size and run >= size * (rule.min_count - 1)
        self._runs = runs
        self._remember(token_id)
        return loops

    def _remember(self, token_id: int) -> None:
        self._seen.setdefault(token_id, deque()).append(self._num_tokens)
        self._recent.append(token_id)
        self._num_tokens += 1
        if len(self._recent) > self._rule.max_size:
            oldest = self._recent.popleft()
            self._seen[oldest].popleft()
            if not self._seen[oldest]:
                del self._seen[oldest]
