"""What CUDA is asked, and in which order, when a capture fails: torch's calls are written down."""

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pytest
import torch

from engine.runner.cuda import CudaDevice


class FakeCuda:
    """As much of torch.cuda as a capture needs."""

    def __init__(self, *, fails: bool, ends_itself: bool = False) -> None:
        self.log: list[str] = []
        self.fails = fails
        self.ends_itself = ends_itself  # as newer torches do
        self.graphs: list[weakref.ref[Any]] = []
        self._num_pools = 0

    def graph_pool_handle(self) -> tuple[int, int]:
        self._num_pools += 1
        self.log.append(f"pool {self._num_pools}")
        return (0, self._num_pools)

    def current_stream(self, device: object = None) -> str:
        return "main"

    def set_stream(self, stream: str) -> None:
        self.log.append(f"stream {stream}")

    def make_graph(self) -> "FakeGraph":
        graph = FakeGraph(self)
        self.graphs.append(weakref.ref(graph))
        return graph

    def end_allocate(self, device: int, pool: tuple[int, int]) -> None:
        self.log.append(f"end {device} {pool}")
        if not self.fails or self.ends_itself:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    def capture(fake, graph: "FakeGraph", pool: tuple[int, int], **_: object) -> Any:
        class Capture:
            def __enter__(self) -> None:
                fake.log.append(f"capture into {pool}")

            def __exit__(
                self,
                kind: type[BaseException] | None,
                error: BaseException | None,
                trace: TracebackType | None,
            ) -> None:
                if fake.fails:
                    raise torch.AcceleratorError(
                        "CUDA error: operation failed due to a previous error during capture"
                    )

        return Capture()


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def __del__(self) -> None:
        self._cuda.log.append("destroyed")

    def replay(self) -> None:
        pass


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[FakeCuda, CudaDevice]]:
    def make(**facts: bool) -> tuple[FakeCuda, CudaDevice]:
        cuda = FakeCuda(**facts)
        monkeypatch.setattr(torch.cuda, "Stream", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", cuda.graph_pool_handle)
        monkeypatch.setattr(torch.cuda, "current_stream", cuda.current_stream)
        monkeypatch.setattr(torch.cuda, "set_stream", cuda.set_stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", cuda.make_graph)
        monkeypatch.setattr(torch.cuda, "graph", cuda.capture)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_allocate, raising=False)
        return cuda, CudaDevice()

    return make


def run() -> torch.Tensor:
    return torch.zeros(2)


Make = Callable[..., tuple[FakeCuda, CudaDevice]]


def test_graphs_share_one_pool(make: Make) -> None:
    cuda, device = make(fails=False)
    graphs = [device.capture(run) for _ in range(2)]
    assert [graph.replay().shape for graph in graphs] == [(2,), (2,)]
    assert cuda.log == [
        "pool 1",
        *("capture into (0, 1)", "stream main"),
        *("capture into (0, 1)", "stream main"),
    ]


@pytest.mark.parametrize("ends_itself", [False, True])
def test_a_failed_capture_gives_its_pool_up(make: Make, ends_itself: bool) -> None:
    """Else the allocator believes for ever that it captures, and frees nothing that was shared
    with another stream; and the next capture cannot use the pool."""
    cuda, device = make(fails=True, ends_itself=ends_itself)
    with pytest.raises(torch.AcceleratorError, match="during capture"):
        device.capture(run)
    cuda.fails = False
    device.capture(run)
    assert cuda.log[:6] == [
        "pool 1",
        *("capture into (0, 1)", "stream main", "end 0 (0, 1)", "pool 2"),
        "capture into (0, 2)",
    ]


def test_a_failed_graph_outlives_its_capture(make: Make) -> None:
    """The allocator's filter looks at it, by its address."""
    cuda, device = make(fails=True)
    with pytest.raises(torch.AcceleratorError):
        device.capture(run)
    assert "destroyed" not in cuda.log
    assert cuda.graphs[0]() is not None
    del device


def test_a_run_that_raises_leaves_the_pool_as_sound(make: Make) -> None:
    cuda, device = make(fails=False)

    def raises() -> torch.Tensor:
        raise KeyError("x")

    with pytest.raises(KeyError):
        device.capture(raises)
    assert cuda.log[1:] == ["capture into (0, 1)", "stream main", "end 0 (0, 1)", "pool 2"]
