"""A device that computes on the CPU at once, and writes down what it was asked, in order.

Events happen only when someone waits for them, or `finish` is called: the host can never count on
more. What a GPU would hand over late is spoiled until then, so that who reads too early sees it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.runner.device import Array, CopyOut, Event, Graph


@dataclass
class RecordingDevice:
    captures: bool = True
    fails_to_capture: Callable[[int], bool] = lambda number: False  # the how manieth capture
    log: list[str] = field(default_factory=list[str])
    torch_device = torch.device("cpu")
    events: "list[_Event]" = field(default_factory=list["_Event"])
    _pinned: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    _num_graphs: int = 0

    def take_log(self) -> list[str]:
        taken, self.log = self.log, []
        return taken

    def finish(self) -> None:
        """The device catches up with all it was asked."""
        for event in self.events:
            event.happen()

    def pinned(self, num_bytes: int) -> torch.Tensor:
        self._pinned.append(torch.empty(num_bytes, dtype=torch.uint8))
        return self._pinned[-1]

    def copy_in(self, source: torch.Tensor, target: torch.Tensor) -> None:
        number = [pinned.data_ptr() for pinned in self._pinned].index(source.data_ptr())
        self.log.append(f"copy in {number}")
        target.copy_(source)

    def upload(self, array: Array) -> torch.Tensor:
        self.log.append("upload")
        return torch.from_numpy(np.array(array))

    def record(self) -> Event:
        self.events.append(_Event(self, len(self.events), lambda: None))
        self.log.append(f"record {self.events[-1].number}")
        return self.events[-1]

    def copy_out(self, tensors: Sequence[torch.Tensor]) -> CopyOut:
        self.log.append(f"copy out {len(tensors)}")
        sources = [tensor.clone() for tensor in tensors]
        targets = [torch.full_like(tensor, -77) for tensor in tensors]

        @torch.inference_mode()
        def arrive() -> None:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)

        self.events.append(_Event(self, len(self.events), arrive))
        return CopyOut(tuple(targets), self.events[-1])

    def capture(self, run: Callable[[], torch.Tensor]) -> Graph:
        number, self._num_graphs = self._num_graphs, self._num_graphs + 1
        if self.fails_to_capture(number):
            self.log.append("capture fails")
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.log.append(f"capture {number}")
        return _Graph(self, number, run)

    def synchronize(self) -> None:
        self.log.append("synchronize")
        self.finish()


class _Event:
    def __init__(self, device: RecordingDevice, number: int, arrive: Callable[[], None]) -> None:
        self._device, self.number, self._arrive = device, number, arrive
        self._has_happened = False

    def happen(self) -> None:
        if not self._has_happened:
            self._has_happened = True
            self._arrive()

    def is_done(self) -> bool:
        return self._has_happened

    def wait(self, timeout_s: float | None = None) -> None:
        if not self._has_happened:
            self._device.log.append(f"wait {self.number}")
            if timeout_s == 0:
                raise TimeoutError
            for event in self._device.events[: self.number + 1]:  # what is queued before comes too
                event.happen()


class _Graph:
    """What is replayed is what was captured: the same closure, on the same memory."""

    def __init__(
        self, device: RecordingDevice, number: int, run: Callable[[], torch.Tensor]
    ) -> None:
        self._device, self._number, self._run = device, number, run
        self._result: torch.Tensor | None = None

    def replay(self) -> torch.Tensor:
        self._device.log.append(f"replay {self._number}")
        result = self._run()
        if self._result is None:
            self._result = result
        else:
            assert self._result.shape == result.shape, "a graph has one shape"
            self._result.copy_(result)
        return self._result
