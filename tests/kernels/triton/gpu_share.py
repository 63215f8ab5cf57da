"""Which of the Triton kernels' tests count as a GPU's: those that a GPU adds something to.

The interpreter tries every case in every CI run, but for most of bf16. What it cannot do is to add
up as the GPU's instructions do, and run what was compiled; and each case costs a GPU's first run
the compilation of its kernels. So there, it is bf16 and the awkward sizes.
"""

from collections.abc import Mapping

import torch

COMPILED_WITHOUT_A_GPU = "test_aot.py"
SERVED_ANYHOW = "test_whole_model.py"  # by `tests/engine/gpu`, in more ways
TRIED_WHOLE = "test_bf16.py"  # each of its cases is among those of another file

AWKWARD: dict[str, tuple[object, ...]] = {  # of a parameter that is a size, what no tile fits
    "width": (5001, 9001),
    "D": (33, 40),
    "weights": ("odd",),
}


def adds_on_a_gpu(file_name: str, params: Mapping[str, object]) -> bool:
    """`params`: of the test's case."""
    if file_name in (COMPILED_WITHOUT_A_GPU, SERVED_ANYHOW, TRIED_WHOLE):
        return False
    dtypes = [value for value in params.values() if isinstance(value, torch.dtype)]
    if any(dtype != torch.bfloat16 for dtype in dtypes):
        return False
    return all(params[name] in values for name, values in AWKWARD.items() if name in params)
