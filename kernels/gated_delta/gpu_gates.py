# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""What the Triton kernels of Gated DeltaNet share: the gates, in fp32."""

import triton
import triton.language as tl


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def write_strength(b):
    """beta, in 0..1."""
    return 1.0 / (1.0 + tl.exp(-b.to(tl.float32)))


@triton.jit
def log_decay(a, A_log, dt_bias):
    """g <= 0, the log of what the state keeps: -exp(A_log) softplus(a + dt_bias)."""
    x = a.to(tl.float32) + dt_bias
    e = tl.exp(tl.minimum(x, 20.0))
    # log(1 + e) loses a small e in rounding, and slow decays are made of small e.
    series = e * (1.0 - e * (0.5 - e * (1.0 / 3.0)))
    softplus = tl.where(x > 20.0, x, tl.where(e < 0.01, series, tl.log(1.0 + e)))
    return -tl.exp(A_log) * softplus
