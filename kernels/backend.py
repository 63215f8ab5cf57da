"""Which form of an operation runs on the tensors it is given: Triton, or the CPU's.

Triton runs on GPU tensors, on meta tensors (nothing is computed, `kernels.launch` records what
would be) and, inside `interpreting()`, on CPU tensors through Triton's own interpreter.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_interprets: ContextVar[bool] = ContextVar("interprets", default=False)


def uses_triton(x: torch.Tensor) -> bool:
    return x.is_cuda or x.is_meta or _interprets.get()


@contextmanager
def interpreting() -> Generator[None]:
    """Send CPU tensors to Triton too. It must have been imported with TRITON_INTERPRET=1."""
    token = _interprets.set(True)
    try:
        yield
    finally:
        _interprets.reset(token)
