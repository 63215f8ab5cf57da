"""Recurrent-state slots as ids. Slot 0 is scratch; a slot is free or held by exactly one sequence.

A running slot is never shared: recurrent state cannot be rewound, so whatever wants a state to keep
needs a copy in a slot of its own.
"""


class SlotPool:
    def __init__(self, num_slots: int) -> None:
        """`num_slots` usable slots, with ids 1 to `num_slots`."""
        self.num_slots = num_slots
        self._free = list(range(num_slots, 0, -1))

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
        assert sorted(self._free + held) == list(range(1, self.num_slots + 1))
