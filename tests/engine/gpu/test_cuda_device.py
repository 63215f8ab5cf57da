"""The device interface on a real one: what the recording fake only says."""

import numpy as np
import pytest
import torch

from engine.runner.cuda import CudaDevice
from engine.runner.staging import Staging, staged_bytes


@pytest.fixture
def device() -> CudaDevice:
    return CudaDevice()


def test_what_is_sent_arrives_in_order_and_at_one_address(device: CudaDevice) -> None:
    staging = Staging(device, staged_bytes(2, 1000))
    copies = []
    addresses = set()
    for i in range(50):
        ids, lengths = staging.send([np.full(1000, i), np.full(7, -i, np.int32)])
        addresses.add((ids.data_ptr(), lengths.data_ptr()))
        copies.append((ids.clone(), lengths.clone()))
    for i, (ids, lengths) in enumerate(copies):
        assert (ids == i).all()
        assert (lengths == -i).all()
    assert len(addresses) == 1
    assert all(address % 16 == 0 for pair in addresses for address in pair)


def test_copies_back_hold_what_was_computed_when_they_were_asked_for(device: CudaDevice) -> None:
    x = torch.zeros(1 << 20, device="cuda")
    copies = []
    for _ in range(20):
        x += 1
        copies.append(device.copy_out([x[:3], x.view(1 << 10, -1)[:, 0]]))
    del x
    for i, copy in enumerate(copies, 1):
        copy.done.wait()
        assert copy.tensors[0].tolist() == [i] * 3
        assert (copy.tensors[1] == i).all()


def test_an_event_times_out(device: CudaDevice) -> None:
    torch.cuda._sleep(1_000_000_000)
    event = device.record()
    assert not event.is_done()
    with pytest.raises(TimeoutError):
        event.wait(timeout_s=0.001)
    event.wait(timeout_s=60)
    assert event.is_done()


def test_a_graph_replays_on_what_its_buffers_hold_now(device: CudaDevice) -> None:
    staging = Staging(device, staged_bytes(1, 8))
    (numbers,) = staging.send([np.arange(8)])

    def run() -> torch.Tensor:
        return numbers * 2 + 1

    run()
    graph = device.capture(run)
    for i in range(5):
        staging.send([np.full(8, i)])
        assert graph.replay().tolist() == [2 * i + 1] * 8


def test_a_failed_capture_leaves_the_thread_where_it_was(device: CudaDevice) -> None:
    stream = torch.cuda.current_stream()
    x = torch.ones(4, device="cuda")

    def waits() -> torch.Tensor:
        return x * x.sum().item()

    with pytest.raises(RuntimeError):
        device.capture(waits)
    assert torch.cuda.current_stream() == stream
    assert (x + 1).tolist() == [2.0] * 4
    good = device.capture(lambda: x + 2)
    assert good.replay().tolist() == [3.0] * 4
    held = held_bytes()
    for _ in range(20):  # memory that another stream used comes free again
        device.copy_out([torch.ones(1 << 20, device="cuda")]).done.wait()
        torch.ones(1, device="cuda")  # the allocator looks at its events now
    assert held_bytes() <= held + (8 << 20)


def held_bytes() -> int:
    """What is in use, and what waits for another stream's events: "allocated" omits these."""
    return torch.cuda.memory_stats()["active_bytes.all.current"]
