"""Decode steps as graphs: one launch instead of some five hundred.

A graph fixes shapes and addresses, so there is one for each size of a short list, and a batch is
padded to the next size with rows of scratch. Prefills, and batches larger than any size, are
launched piece by piece.

Graphs are captured when the server is already up, one at a time, between steps: when nothing else
is to do, smallest first; or, when steps that would have had a graph have gone without it
`PATIENCE` times, at once, because a capture costs what it saves in a few tens of steps. A capture
that fails turns the rest off: steps without graphs are slower and no less right.
"""

import logging
from collections import Counter
from collections.abc import Callable

import torch

from engine.runner.device import Device, Graph

PATIENCE = 8
_FIRST_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
_STEP = 64  # between sizes from there on

_log = logging.getLogger(__name__)


def batch_sizes(max_rows: int) -> tuple[int, ...]:
    """The list, up to and with `max_rows`."""
    sizes = {*_FIRST_SIZES, *range(_FIRST_SIZES[-1], max_rows, _STEP), max_rows}
    return tuple(sorted(size for size in sizes if size <= max_rows))


class DecodeGraphs:
    def __init__(
        self, device: Device, prepare: Callable[[int], Callable[[], torch.Tensor]], *, max_rows: int
    ) -> None:
        """`prepare(num_rows)` stages that many rows of scratch and returns what to run on them."""
        self._device = device
        self._prepare = prepare
        self._missing = list(batch_sizes(max_rows)) if device.captures else []
        self._graphs: dict[int, Graph] = {}
        self._num_misses = Counter[int]()
        self.failure: str | None = None  # of a capture; not the error, which holds its tensors

    @property
    def is_complete(self) -> bool:
        """Nothing is left to capture."""
        return not self._missing

    @property
    def is_urgent(self) -> bool:
        """Steps are waiting for a graph that is not there."""
        return any(count >= PATIENCE for count in self._num_misses.values())

    def find(self, num_rows: int) -> tuple[int, Graph] | None:
        """The graph for a decode step of so many rows, and its size."""
        sizes = sorted((*self._graphs, *self._missing))
        size = next((size for size in sizes if size >= num_rows), None)
        if size is None:
            return None
        if size in self._missing:
            self._num_misses[size] += 1
            return None
        return size, self._graphs[size]

    def capture_one(self) -> None:
        """Capture the size that was missed most, else the smallest. Never raises."""
        size = max(self._missing, key=lambda size: (self._num_misses[size], -size))
        try:
            run = self._prepare(size)
            run()  # compiles what is new, and takes the memory it needs, outside of the capture
            graph = self._device.capture(run)
        except Exception as error:  # whatever it is, serving goes on without
            self.failure = f"the graph for {size} decodes could not be captured ({error})"
            _log.warning(
                "%s; steps of more than %d rows are launched piece by piece",
                self.failure,
                max(self._graphs, default=0),
            )
            self._missing.clear()
        else:
            self._graphs[size] = graph
            self._missing.remove(size)
        self._num_misses.clear()
