"""Sampling in Triton: nothing here waits for the device, whatever its rows ask for.

What torch does on a GPU without a synchronisation, in few launches, is left to it: `log_softmax`,
`rank`, DRY, and sorting more than 32 of a row's values.
"""

from kernels.sampling.gpu.adjust import adjust
from kernels.sampling.gpu.bans import ban, keep_only
from kernels.sampling.gpu.draw import draw_greedy, draw_nucleus, draw_top, draw_whole
from kernels.sampling.gpu.philox import uniform
from kernels.sampling.gpu.top import top

__all__ = [
    "adjust",
    "ban",
    "draw_greedy",
    "draw_nucleus",
    "draw_top",
    "draw_whole",
    "keep_only",
    "top",
    "uniform",
]
