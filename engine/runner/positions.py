"""Which rotary positions the tokens of each slot have; see `engine.model.mrope`.

Numbers on the host. A slot without pictures has its indices, and so has every decode of one with
pictures, plus the shift of its slot.

Letters: I slices, T tokens of the step, P slots.
"""

from collections.abc import Sequence

import numpy as np

from engine.model.mrope import Grid, Positions, mrope_positions
from engine.plan import Slice


class SlotPositions:
    def __init__(self, num_slots: int) -> None:
        """`num_slots` counts the scratch slot."""
        self._streams: list[Positions | None] = [None] * num_slots  # to the last picture's end
        self._shift_P = np.zeros(num_slots, dtype=np.int64)  # of each index after that

    def admit(self, slot: int, grids: Sequence[Grid]) -> None:
        """The slot belongs to a sequence with pictures at `grids`, or with none."""
        streams, self._shift_P[slot] = mrope_positions(grids)
        self._streams[slot] = streams if grids else None

    def of(self, slices: Sequence[Slice], index_T: Positions) -> tuple[Positions, Positions | None]:
        """position_T, and position_3T if the streams differ anywhere: then only that counts.

        `index_T` holds the slices' indices one after the other.
        """
        shift_I = self._shift_P[[part.slot for part in slices]]
        if not shift_I.any() and not any(self._streams[part.slot] is not None for part in slices):
            return index_T, None
        position_T = index_T + shift_I.repeat([part.num_tokens for part in slices])
        position_3T = None
        row = 0
        for part in slices:
            streams_3X = self._streams[part.slot]
            if streams_3X is not None and part.start < streams_3X.shape[1]:
                if position_3T is None:
                    position_3T = np.tile(position_T, (3, 1))
                few_3X = streams_3X[:, part.start : part.start + part.num_tokens]
                position_3T[:, row : row + few_3X.shape[1]] = few_3X
            row += part.num_tokens
        return position_T, position_3T
