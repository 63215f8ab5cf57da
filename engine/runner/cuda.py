"""The device interface on CUDA: the only file of the runner that knows streams, events and graphs.

The main stream is the thread's current one (the default stream, unless someone chose another): the
model, the sampler and the copies to the device run there in order. Copies back run on a stream of
their own, which waits for the main one and which nothing waits for, so that the results of step N
travel while step N + 1 computes.

Pinned memory that `upload` and `copy_out` take comes from torch's cache of such memory, which hands
a block out again only when the copies that used it are done.
"""

import contextlib
import time
from collections.abc import Callable, Sequence

import torch

from engine.runner.device import Array, CopyOut, Event, Graph

POLL_S = 2e-5  # between two looks at an event by a host that may be told to stop waiting


class CudaDevice:
    def __init__(self, index: int = 0, *, captures: bool = True) -> None:
        self.torch_device = torch.device("cuda", index)
        self.captures = captures
        self._way_back = torch.cuda.Stream(self.torch_device)
        self._graph_pool = torch.cuda.graph_pool_handle()  # one for all: they never run at once
        self._failed_graphs: list[torch.cuda.CUDAGraph] = []

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.torch_device)

    def free_and_total_bytes(self) -> tuple[int, int]:
        """As the driver counts: what torch keeps in its cache is not free."""
        return torch.cuda.mem_get_info(self.torch_device)

    def pinned(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def copy_in(self, source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def upload(self, array: Array) -> torch.Tensor:
        source = torch.from_numpy(array).pin_memory()
        return source.to(self.torch_device, non_blocking=True)

    def record(self) -> Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.torch_device))
        return _CudaEvent(event)

    def copy_out(self, tensors: Sequence[torch.Tensor]) -> CopyOut:
        # Contiguous first and on the main stream, so that each copy is a single transfer.
        sources = [tensor.contiguous() for tensor in tensors]
        self._way_back.wait_stream(torch.cuda.current_stream(self.torch_device))
        with torch.cuda.stream(self._way_back):
            targets = tuple(self._copy_back(source) for source in sources)
            event = torch.cuda.Event()
            event.record(self._way_back)
        return CopyOut(targets, _CudaEvent(event))

    def _copy_back(self, source: torch.Tensor) -> torch.Tensor:
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        target.copy_(source, non_blocking=True)
        source.record_stream(self._way_back)  # its memory is not handed out before the copy is done
        return target

    def capture(self, run: Callable[[], torch.Tensor]) -> Graph:
        main = torch.cuda.current_stream(self.torch_device)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the loop's thread may look at events meanwhile.
            with torch.cuda.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"):
                result = run()
        except BaseException:
            torch.cuda.set_stream(main)  # a failed capture leaves the thread on its own stream
            self._give_up(graph)
            raise
        torch.cuda.set_stream(main)
        return _CudaGraph(graph, result)

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """Undo what a failed capture may have left of itself in torch's allocator.

        While one is under way, the allocator keeps all memory that another stream used, as every
        result that is copied out, and takes no other capture into the pool. Not every torch ends
        that when a failed capture ends (pytorch/pytorch#180395). What the allocator asks whether
        memory is a capture's refers to the graph, so that is kept.
        """
        self._failed_graphs.append(graph)
        with contextlib.suppress(RuntimeError):  # "not currently recording": torch ended it
            torch._C._cuda_endAllocateToPool(  # pyright: ignore[reportPrivateUsage]
                self.torch_device.index, self._graph_pool
            )
        self._graph_pool = torch.cuda.graph_pool_handle()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)


class _CudaEvent:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def is_done(self) -> bool:
        return self._event.query()

    def wait(self, timeout_s: float | None = None) -> None:
        if timeout_s is None:
            self._event.synchronize()
            return
        deadline = time.monotonic() + timeout_s
        while not self._event.query():
            if time.monotonic() >= deadline:
                raise TimeoutError("the device has not come so far")
            time.sleep(POLL_S)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, result: torch.Tensor) -> None:
        self._graph = graph
        self._result = result

    def replay(self) -> torch.Tensor:
        self._graph.replay()
        return self._result
