"""Finds out whose request makes steps fail, by trying fewer and fewer of them together.

A step that raised does not say which of its requests is guilty. All of them are suspects: they are
computed again up to where it happened and a token further, in groups, one group after another, and
whoever gets there is cleared. A group that fails again is halved. Who fails again in a step of its
own is guilty. So a fault that does not come back costs nobody, and one request costs its own life.

While there are suspects nobody else runs beside those on trial: that a request fails alone proves
something only if it was alone.
"""


class Suspects:
    def __init__(self) -> None:
        # The last group is on trial. By request: tokens of it when the failed step would have ended
        self._groups: list[dict[str, int]] = []

    def __contains__(self, request_id: str) -> bool:
        return any(request_id in group for group in self._groups)

    @property
    def ids(self) -> set[str]:
        return {request_id for group in self._groups for request_id in group}

    def may_run(self, request_id: str) -> bool:
        """It is on trial, or nobody is."""
        return not self._groups or request_id in self._groups[-1]

    def accuse(self, ends: dict[str, int], *, alone: bool) -> str | None:
        """A step of these requests failed, which computed each up to so many tokens.

        `alone`: nothing else was in the step. Returns the one that is guilty, if that is clear now.
        """
        guilty = next((one for one in ends if alone and one in self), None)
        for request_id in ends:
            self.clear(request_id)
        if guilty is None:
            members = list(ends.items())
            half = len(members) // 2
            self._groups += [dict(few) for few in (members[half:], members[:half]) if few]
        return guilty

    def passed(self, request_id: str, end: int) -> None:
        """The request was computed up to `end` tokens."""
        if self._groups and end > self._groups[-1].get(request_id, end):
            self.clear(request_id)

    def clear(self, request_id: str) -> None:
        """It is no suspect, or not any more: it may have passed, or ended otherwise."""
        for group in self._groups:
            group.pop(request_id, None)
        self._groups = [group for group in self._groups if group]

    def check(self, alive: set[str]) -> None:
        """Assert that every suspect is one of the requests there are, and in one group."""
        assert all(self._groups)
        assert sum(map(len, self._groups)) == len(self.ids)
        assert self.ids <= alive
