"""KV pages as ids: which are free, and none of the bytes behind them.

Page 0 is scratch and never handed out. A page is free, or belongs to exactly one sequence or node
of the prefix cache; only scheduler and cache call. Freed pages are handed out again last-in
first-out, so that a small load keeps touching the same memory.
"""

from engine.plan import PAGE_TOKENS


def pages_for(num_tokens: int) -> int:
    """Pages that hold `num_tokens` tokens."""
    return -(-num_tokens // PAGE_TOKENS)


class PagePool:
    def __init__(self, num_pages: int) -> None:
        """`num_pages` usable pages, with ids 1 to `num_pages`."""
        self.num_pages = num_pages
        self._free = list(range(num_pages, 0, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    def acquire(self, count: int) -> list[int]:
        assert count <= len(self._free), "the scheduler asks for what is free"
        if count == 0:
            return []
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        return taken

    def release(self, pages: list[int]) -> None:
        self._free.extend(reversed(pages))

    def check(self, held: list[int]) -> None:
        """Assert that free and held pages are every page, once."""
        assert sorted(self._free + held) == list(range(1, self.num_pages + 1))
