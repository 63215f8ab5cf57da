"""How near a kernel must come to an fp64 oracle, and why.

fp32: a sum of n rounded terms is off by about sqrt(n) * 2^-24 of their size; the sums here have up
to some 2,000 terms (2.7e-6), chained a few times. 2e-5 of the largest value leaves a factor of
about 3 above the worst seen and is far below what any wrong term would do.
bf16: the output keeps 8 bits, so it may be off by 2^-9 of itself; ops that round in between
(the hidden activation of an MLP, the sum of two projections) add as much again. 2^-7 of the largest
value covers three such roundings; inputs are rounded before the oracle sees them.
"""

import torch

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2.0**-7}


def assert_close(actual: torch.Tensor, oracle: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == oracle.shape
    if not actual.numel():
        return
    assert not actual.isnan().any()
    error = (actual.double() - oracle.double()).abs().max().item()
    largest = oracle.double().abs().max().item()
    assert error <= TOLERANCE[dtype] * max(largest, 1e-3), f"{error} off, largest {largest}"
