"""How near a kernel must come to an fp64 oracle, and why.

fp32: a sum of n rounded terms is off by about sqrt(n) * 2^-24 of their size; the sums here have 64
to 2,300 terms (5e-7 to 3e-6). The worst seen is 1.5e-6 of the largest value; 6e-6 leaves room for
other vector widths and is far below what any wrong term would do.
bf16: the output keeps 8 bits, so it may be off by 2^-9 of itself; ops that round in between
(the hidden activation of an MLP, the sum of two projections) add as much again. 2^-7 of the largest
value covers three such roundings; inputs are rounded before the oracle sees them.
"""

import torch

TOLERANCE = {torch.float32: 6e-6, torch.bfloat16: 2.0**-7}


def assert_close(actual: torch.Tensor, oracle: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == oracle.shape
    if not actual.numel():
        return
    assert not actual.isnan().any()
    error = (actual.double() - oracle.double()).abs().max().item()
    largest = oracle.double().abs().max().item()
    assert error <= TOLERANCE[dtype] * max(largest, 1e-3), f"{error} off, largest {largest}"
