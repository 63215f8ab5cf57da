"""Counters by which the last of several programs knows that it is the last.

Where a result needs what many programs found (a sum cut into parts, the best of all experts), the
last one to arrive finishes the work in the same launch. It sets the counter back, so counters are
zero between launches; they are shared by everything that runs on one stream, in order.
"""

import functools

import torch

NUM_ARRIVALS = 4096


@functools.cache
def arrivals(device: torch.device) -> torch.Tensor:
    """int32 zeros that stay where they are, also for captured graphs.

    `device` is a tensor's own, which has a number: "cuda" alone would be given other counters.
    """
    assert device.type != "cuda" or device.index is not None, f"{device} has no number"
    return torch.zeros(NUM_ARRIVALS, dtype=torch.int32, device=device)
