"""Stop strings on text that arrives in pieces.

The match that starts first wins, and among matches that start together the shortest, which is the
one completed first: the text comes out as if it had been cut, whole, before (or after, `include`)
that match, however it was split into pieces. So a stop string that starts inside an earlier, still
possible one is settled only when the earlier one completes or fails.

An Aho-Corasick automaton reads each character once. Its state is the longest suffix of the text
that begins some stop string: exactly the text that has to be held back.
"""

from collections import deque


class StopMatcher:
    def __init__(self, stops: tuple[str, ...], include: bool) -> None:
        """`stops` are not empty strings; `include` keeps the matched text in the output."""
        self._include = include
        self._held = ""  # read, not released
        self._state = 0
        self._match: tuple[int, str] | None = None  # where in `_held` the best match starts
        self.matched: str | None = None  # final; nothing is released any more
        self._build(_without_extensions(stops))

    def push(self, text: str, *, too_early: bool = False) -> str:
        """Read `text`; return what no later text can make part of a match.

        A match that is completed `too_early` is text; one that only begins there is a match.
        """
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        position = len(self._held)
        self._held += text
        for char in text:
            position += 1
            self._state = self._step(self._state, char)
            ended = self._ends[self._state]
            is_first = ended is not None and (
                self._match is None or position - len(ended) < self._match[0]
            )
            if ended is not None and is_first and not too_early:
                self._match = (position - len(ended), ended)
            if self._match is not None and position - self._depth[self._state] >= self._match[0]:
                return self._release_match()
        keep_from = position - self._depth[self._state]
        released, self._held = self._held[:keep_from], self._held[keep_from:]
        if self._match is not None:
            self._match = (self._match[0] - keep_from, self._match[1])
        return released

    def flush(self) -> str:
        """End the text: settle an open match (see `matched`), or release what was held."""
        if self._match is not None:
            return self._release_match()
        released, self._held = self._held, ""
        return released

    def _release_match(self) -> str:
        assert self._match is not None
        start, self.matched = self._match
        released = self._held[: start + len(self.matched) if self._include else start]
        self._held, self._match = "", None
        return released

    def _step(self, state: int, char: str) -> int:
        while char not in self._next[state]:
            if state == 0:
                return 0
            state = self._fallback[state]
        return self._next[state][char]

    def _build(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._next: list[dict[str, int]] = [{}]  # state 0: nothing of any stop string
        self._depth = [0]  # characters of a stop string read so far
        self._ends: list[str | None] = [None]  # the longest stop string that ends here
        self._fallback = [0]  # the longest proper suffix that is a state
        for stop in stops:
            state = 0
            for char in stop:
                if char not in self._next[state]:
                    self._next[state][char] = len(self._next)
                    self._next.append({})
                    self._depth.append(self._depth[state] + 1)
                    self._ends.append(None)
                    self._fallback.append(0)
                state = self._next[state][char]
            self._ends[state] = stop
        todo = deque(self._next[0].values())
        while todo:  # breadth first: a fallback is shorter, so it is done already
            state = todo.popleft()
            for char, child in self._next[state].items():
                self._fallback[child] = self._step(self._fallback[state], char)
                if self._ends[child] is None:
                    self._ends[child] = self._ends[self._fallback[child]]
                todo.append(child)


def _without_extensions(stops: tuple[str, ...]) -> tuple[str, ...]:
    """Drop what begins with another stop string: that one always completes first."""
    kept: list[str] = []
    for stop in sorted(set(stops)):  # a prefix sorts right before its extensions
        if not kept or not stop.startswith(kept[-1]):
            kept.append(stop)
    return tuple(kept)
