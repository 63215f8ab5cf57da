"""What the runner needs of a device, in one small interface, and the CPU's form of it.

Everything that only a GPU has is behind `Device`: pinned memory, copies that run beside the host,
events, a second stream for the way back, graphs. `engine.runner.cuda` implements it for CUDA; the
tests have a third form that computes on the CPU and writes down what it was asked, in order.

Work is queued in the order of the calls and runs in that order. On a CPU it is done when the call
returns. Nothing here waits for the device but `Event.wait` and `synchronize`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]


class Event(Protocol):
    """A point in the queue."""

    def is_done(self) -> bool: ...

    def wait(self, timeout_s: float | None = None) -> None:
        """Hold the host until the device has come here. Raises TimeoutError."""
        ...


class Graph(Protocol):
    def replay(self) -> torch.Tensor:
        """Queue what was captured. Always the same tensor: it holds until the next replay."""
        ...


@dataclass(frozen=True, slots=True)
class CopyOut:
    """Tensors on their way to the host: not to be read before `done`."""

    tensors: tuple[torch.Tensor, ...]
    done: Event


class Device(Protocol):
    @property
    def torch_device(self) -> torch.device: ...

    @property
    def captures(self) -> bool:
        """Whether graphs are to be captured; without them every step is launched piece by piece."""
        ...

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """Host memory [num_bytes] that `copy_in` reads without holding the host."""
        ...

    def copy_in(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Queue a copy from pinned memory, which must stay as it is until that copy is done."""
        ...

    def upload(self, array: Array) -> torch.Tensor:
        """A new tensor of what is in `array` now, without holding the host. For small things."""
        ...

    def record(self) -> Event:
        """The end of what is queued now."""
        ...

    def copy_out(self, tensors: Sequence[torch.Tensor]) -> CopyOut:
        """Copy what is computed by now to the host, beside whatever is queued next."""
        ...

    def capture(self, run: Callable[[], torch.Tensor]) -> Graph:
        """Keep what `run` queues instead of queueing it. It must have run before. May raise."""
        ...

    def synchronize(self) -> None:
        """Wait for all that is queued."""
        ...


class CpuDevice:
    """Everything at once."""

    torch_device = torch.device("cpu")
    captures = False

    def pinned(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def copy_in(self, source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(source)

    def upload(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.array(array))

    def record(self) -> Event:
        return _PAST

    def copy_out(self, tensors: Sequence[torch.Tensor]) -> CopyOut:
        return CopyOut(tuple(tensors), _PAST)

    def capture(self, run: Callable[[], torch.Tensor]) -> Graph:
        raise NotImplementedError("a CPU has no graphs")

    def synchronize(self) -> None:
        pass


class _Past:
    """An event that has been."""

    def is_done(self) -> bool:
        return True

    def wait(self, timeout_s: float | None = None) -> None:
        pass


_PAST = _Past()
