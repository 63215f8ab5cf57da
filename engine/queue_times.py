"""How long requests wait before a step computes anything of them, and which have waited too long.

The time-out counts the wait for capacity. A request whose prompt a running one is computing waits
for no capacity: when its time is up it gets that time anew, and once more when the other is done.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class _Wait:
    submitted_at: float
    since: float  # the time-out counts from here
    followed: bool = False  # it waited for another's prompt when it was last looked at


class QueueTimes:
    """Of requests that were in no plan yet. Times are `time.monotonic()`'s."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._waits: dict[str, _Wait] = {}  # by `since`

    def start(self, request_id: str) -> None:
        now = time.monotonic()
        self._waits[request_id] = _Wait(now, now)

    def end(self, request_id: str, now: float) -> float | None:
        """The seconds it waited; None if it is not waiting."""
        wait = self._waits.pop(request_id, None)
        return None if wait is None else now - wait.submitted_at

    def expired(self, follows: Callable[[str], bool]) -> Iterator[str]:
        """Who has waited too long. `follows` says whether one waits for another's prompt."""
        now = time.monotonic()
        for request_id, wait in list(self._waits.items()):
            if wait.since > now - self.timeout_s:
                break
            followed, wait.followed = wait.followed, follows(request_id)
            if not (followed or wait.followed):
                yield request_id
                continue
            wait.since = now
            self._waits[request_id] = self._waits.pop(request_id)  # the last again
