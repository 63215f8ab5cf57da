"""The recording device notices what a GPU would compute wrongly, or refuse."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.engine.runner.recording_device import RecordingDevice


def pinned_copy(device: RecordingDevice) -> torch.Tensor:
    pinned = device.pinned(8)
    pinned.fill_(1)
    device.copy_in(pinned[:4], torch.empty(4, dtype=torch.uint8))
    return pinned


def test_pinned_memory_may_be_filled_again_when_its_copy_is_done() -> None:
    device = RecordingDevice()
    pinned = pinned_copy(device)
    pinned[4:] = 7  # not of what is copied
    device.record().wait()
    pinned.fill_(2)
    device.finish()


@pytest.mark.parametrize("asks", ["record", "copy out"])
def test_pinned_memory_must_not_be_filled_before(asks: str) -> None:
    device = RecordingDevice()
    pinned = pinned_copy(device)
    event = device.record() if asks == "record" else device.copy_out([]).done
    pinned[3] = 2
    with pytest.raises(AssertionError, match="pinned memory was written before its copy was done"):
        event.wait()


def test_what_is_copied_out_must_stay_until_it_arrived() -> None:
    device = RecordingDevice()
    values, ids = torch.tensor([1.0, torch.nan]), torch.arange(3)
    device.copy_out([values, ids]).done.wait()
    values[0], ids[0] = 2, 2
    late = device.copy_out([values, ids])
    ids[2] = 9
    with pytest.raises(AssertionError, match="tensor 1 was written on its way to the host"):
        late.done.wait()


def test_what_is_not_in_one_piece_is_copied_on_the_device_first() -> None:
    device = RecordingDevice()
    table = torch.zeros(2, 2)
    copy = device.copy_out([table[:, 0]])
    table.fill_(1)
    copy.done.wait()
    assert copy.tensors[0].tolist() == [0, 0]


HOST_WORK: dict[str, Callable[[RecordingDevice], object]] = {
    "upload": lambda device: device.upload(np.zeros(2)),
    "copy in": lambda device: device.copy_in(device.pinned(4), torch.empty(4, dtype=torch.uint8)),
    "copy out": lambda device: device.copy_out([torch.zeros(2)]),
    "record": lambda device: device.record(),
    "synchronize": lambda device: device.synchronize(),
}


@pytest.mark.parametrize("what", HOST_WORK)
def test_a_graph_has_nothing_of_the_hosts(what: str) -> None:
    device = RecordingDevice()

    def run() -> torch.Tensor:
        HOST_WORK[what](device)
        return torch.zeros(1)

    with pytest.raises(AssertionError, match=f"{what}.* in a graph"):
        device.capture(run)
    HOST_WORK[what](device)


def test_nor_is_anything_of_the_hosts_replayed() -> None:
    device = RecordingDevice()
    uploads = False

    def run() -> torch.Tensor:
        return device.upload(np.zeros(1)) if uploads else torch.zeros(1)

    graph = device.capture(run)
    assert graph.replay().tolist() == [0]
    uploads = True
    with pytest.raises(AssertionError, match="upload in a graph"):
        graph.replay()
