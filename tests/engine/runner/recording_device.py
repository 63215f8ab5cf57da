"""A device that computes on the CPU at once, and writes down what it was asked, in order.

Events happen only when someone waits for them, or `finish` is called: the host can never count on
more. What a GPU would hand over late is spoiled until then, so that who reads too early sees it;
and what it would read late must be the same by then, or the event fails. In a graph there is no
host: neither when it is captured nor when it is replayed may anything be asked of it.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
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
    _copies_in: list[tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=list[tuple[torch.Tensor, torch.Tensor]]
    )  # pinned memory that a copy may still read, and what it has to read there
    _num_graphs: int = 0
    _is_in_graph: bool = False

    def take_log(self) -> list[str]:
        taken, self.log = self.log, []
        return taken

    def finish(self) -> None:
        """The device catches up with all it was asked."""
        for event in self.events:
            event.happen()

    @contextmanager
    def in_graph(self) -> Generator[None]:
        self._is_in_graph = True
        try:
            yield
        finally:
            self._is_in_graph = False

    def _asked(self, what: str) -> None:
        assert not self._is_in_graph, f"{what} in a graph"
        self.log.append(what)

    def _event(self, arrive: Callable[[], None]) -> "_Event":
        """Who sees it happen knows that the copies before it are done, too."""
        copies, self._copies_in = self._copies_in, []

        def happen() -> None:
            for source, expected in copies:
                assert torch.equal(source, expected), (
                    "pinned memory was written before its copy was done"
                )
            arrive()

        self.events.append(_Event(self, len(self.events), happen))
        return self.events[-1]

    def pinned(self, num_bytes: int) -> torch.Tensor:
        self._pinned.append(torch.empty(num_bytes, dtype=torch.uint8))
        return self._pinned[-1]

    def copy_in(self, source: torch.Tensor, target: torch.Tensor) -> None:
        number = [pinned.data_ptr() for pinned in self._pinned].index(source.data_ptr())
        self._asked(f"copy in {number}")
        target.copy_(source)
        self._copies_in.append((source, source.clone()))

    def upload(self, array: Array) -> torch.Tensor:
        self._asked("upload")
        return torch.from_numpy(np.array(array))

    def record(self) -> Event:
        self._asked(f"record {len(self.events)}")
        return self._event(lambda: None)

    def copy_out(self, tensors: Sequence[torch.Tensor]) -> CopyOut:
        self._asked(f"copy out {len(tensors)}")
        sources = [tensor.contiguous() for tensor in tensors]
        expected = [source.clone() for source in sources]
        targets = [torch.full_like(tensor, -77) for tensor in tensors]

        @torch.inference_mode()
        def arrive() -> None:
            for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
                same = (source == expected[i]) | (source != source) & (expected[i] != expected[i])
                assert same.all(), f"tensor {i} was written on its way to the host"
                target.copy_(source)

        return CopyOut(tuple(targets), self._event(arrive))

    def capture(self, run: Callable[[], torch.Tensor]) -> Graph:
        number, self._num_graphs = self._num_graphs, self._num_graphs + 1
        if self.fails_to_capture(number):
            self.log.append("capture fails")
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.log.append(f"capture {number}")
        with self.in_graph():
            result = run()
        return _Graph(self, number, run, result)

    def synchronize(self) -> None:
        self._asked("synchronize")
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
        self,
        device: RecordingDevice,
        number: int,
        run: Callable[[], torch.Tensor],
        result: torch.Tensor,
    ) -> None:
        self._device, self._number, self._run, self._result = device, number, run, result

    def replay(self) -> torch.Tensor:
        self._device.log.append(f"replay {self._number}")
        with self._device.in_graph():
            result = self._run()
        assert self._result.shape == result.shape, "a graph has one shape"
        self._result.copy_(result)
        return self._result
