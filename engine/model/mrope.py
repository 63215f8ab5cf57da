"""Rotary positions of a prompt with pictures: three streams, time, height and width.

A counter walks the prompt. Text takes one position for each token, the same in all streams. The
tokens of a picture all stand at the counter in time, and at the counter plus their row or column in
height and width; then the counter moves on by the longer side. So a picture is shorter in positions
than in tokens, and whatever comes after it, generated tokens too, stands at its index plus a shift.
A video is several pictures with text between them. No torch here.

X tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a picture stands in its prompt, and its sides in tokens."""

    start: int
    height: int
    width: int

    @property
    def end(self) -> int:
        return self.start + self.height * self.width


def mrope_positions(grids: Sequence[Grid]) -> tuple[Positions, int]:
    """position_3X from the start of the prompt to the end of the last picture, and the shift of
    every index from there on. `grids` in order, not overlapping; may be empty."""
    parts: list[Positions] = [np.zeros((3, 0), dtype=np.int64)]
    index = counter = 0
    for grid in grids:
        num_text = grid.start - index
        parts.append(np.tile(np.arange(counter, counter + num_text), (3, 1)))
        counter += num_text
        block_3HW = np.zeros((3, grid.height, grid.width), dtype=np.int64)
        block_3HW[1] = np.arange(grid.height)[:, None]
        block_3HW[2] = np.arange(grid.width)
        parts.append(block_3HW.reshape(3, -1) + counter)
        counter += max(grid.height, grid.width)
        index = grid.end
    return np.concatenate(parts, axis=1), counter - index
