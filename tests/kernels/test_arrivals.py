"""The counters that programs of one launch share."""

import pytest
import torch

from kernels.arrivals import arrivals


def test_counters_are_those_of_one_device() -> None:
    cpu = torch.empty(0).device
    assert arrivals(cpu) is arrivals(cpu)
    assert not arrivals(cpu).any()


def test_a_gpu_without_its_number_has_none() -> None:
    """A tensor's device is "cuda:0": counters kept for "cuda" would be others, and always zero."""
    with pytest.raises(AssertionError, match="cuda has no number"):
        arrivals(torch.device("cuda"))
