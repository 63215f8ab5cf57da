"""Which device an engine runs on, and what it says where that is not the one that is there."""

import pytest
import torch

from engine.build import choose_device
from engine.runner.cuda import CudaDevice
from engine.runner.device import CpuDevice


@pytest.fixture
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of some compute capability, as far as torch is asked about one here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: request.param)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))


@pytest.mark.parametrize("gpu", [(7, 5)], indirect=True)
@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_kernels_are_not_built_for_is_left_alone() -> None:
    device, warnings = choose_device("auto", captures=True)
    assert isinstance(device, CpuDevice)
    assert warnings == (
        "Tesla T4 is not used: it has compute capability 7.5, and 8.0 or more is needed; "
        "serving on the CPU",
    )


@pytest.mark.parametrize("gpu", [(7, 5)], indirect=True)
@pytest.mark.usefixtures("gpu")
def test_who_asks_for_it_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"device cuda: Tesla T4 has compute capability 7\.5, and 8\.0 or more"
    ):
        choose_device("cuda", captures=True)


@pytest.mark.parametrize("gpu", [(8, 0), (9, 0), (12, 1)], indirect=True)
@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_kernels_are_built_for_is_used(name: str) -> None:
    device, warnings = choose_device(name, captures=True)
    assert isinstance(device, CudaDevice)
    assert warnings == ()


@pytest.mark.parametrize("gpu", [(9, 0)], indirect=True)
@pytest.mark.usefixtures("gpu")
def test_the_cpu_is_used_where_it_is_asked_for() -> None:
    device, warnings = choose_device("cpu", captures=True)
    assert isinstance(device, CpuDevice)
    assert warnings == ()


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, warnings = choose_device("auto", captures=True)
    assert isinstance(device, CpuDevice)
    assert warnings == ()
    with pytest.raises(ValueError, match="device cuda: torch finds no CUDA device it can use"):
        choose_device("cuda", captures=True)
    with pytest.raises(ValueError, match="device tpu is not one of auto, cpu, cuda"):
        choose_device("tpu", captures=True)
