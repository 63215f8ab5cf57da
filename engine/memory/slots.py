"""Recurrent-state slots as ids. Slot 0 is scratch; a slot is free or held by exactly one owner.

A running slot is never shared: recurrent state cannot be rewound, so a state to keep is a copy in a
slot of its own. Those have a pool and ids of their own, behind the running sequences' ids.
"""


class SlotPool:
    def __init__(self, num_slots: int, *, first: int = 1) -> None:
        """`num_slots` usable slots, with ids from `first` on."""
        self.num_slots = num_slots
        self._first = first
        self._free = list(range(first + num_slots - 1, first - 1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_slots - len(self._free)

    def acquire(self) -> int:
        return self._free.pop()

    def release(self, slot: int) -> None:
        self._free.append(slot)

    def check(self, held: list[int]) -> None:
        """Assert that free and held slots are every slot, once."""
        every = range(self._first, self._first + self.num_slots)
        assert sorted(self._free + held) == list(every)
