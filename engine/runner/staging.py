"""One copy per step: what the host knows is packed into pinned memory and sent in one go.

Pinned buffers take turns, because step N + 1 is packed while the copy of step N may still wait in
the queue; before a buffer is filled again its last copy must be done. On the device there is one
buffer, always at the same address, where captured graphs find their inputs: steps run in order, so
none is overwritten before it was read.
"""

from collections.abc import Sequence

import numpy as np
import torch

from engine.runner.device import Array, Device, Event

NUM_BUFFERS = 2
ALIGNMENT = 256  # bytes; kernels are compiled for the alignment of what they are given


class Staging:
    def __init__(self, device: Device, num_bytes: int) -> None:
        num_bytes = _aligned(num_bytes)
        self._device = device
        self._pinned = [device.pinned(num_bytes) for _ in range(NUM_BUFFERS)]
        self._bytes = [pinned.numpy() for pinned in self._pinned]
        self._copied: list[Event | None] = [None] * NUM_BUFFERS
        self._turn = 0
        self._target = torch.zeros(num_bytes, dtype=torch.uint8, device=device.torch_device)
        self._views = {  # of the same memory
            np.dtype(np.int64): self._target.view(torch.int64),
            np.dtype(np.int32): self._target.view(torch.int32),
        }

    def send(self, arrays: Sequence[Array]) -> list[torch.Tensor]:
        """Flat arrays of int64 or int32 as views on the device, good until the next step's.

        Where an array lands depends only on the sizes of those before it.
        """
        turn, self._turn = self._turn, (self._turn + 1) % NUM_BUFFERS
        if (copied := self._copied[turn]) is not None:
            copied.wait()
        views: list[torch.Tensor] = []
        begin = end = 0
        for array in arrays:
            end = begin + array.nbytes
            self._bytes[turn][begin:end] = array.view(np.uint8)
            first = begin // array.itemsize
            views.append(self._views[array.dtype][first : first + len(array)])
            begin = _aligned(end)
        self._device.copy_in(self._pinned[turn][:end], self._target[:end])
        self._copied[turn] = self._device.record()
        return views


def staged_bytes(num_arrays: int, longest: int) -> int:
    """Enough for that many arrays of that many int64 each."""
    return num_arrays * _aligned(8 * longest)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
