"""Which form of an operation runs on the tensors it is given: Triton, or the CPU's; and how it is
cut where that is chosen by the number of rows.

Triton runs on GPU tensors, on meta tensors (nothing is computed, `kernels.launch` records what
would be) and, inside `interpreting()`, on CPU tensors through Triton's own interpreter.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

FIXED_ROWS = 64  # what shapes are chosen by inside `fixed_shapes()`

_fixes_shapes: ContextVar[bool] = ContextVar("fixes_shapes", default=False)
_interprets: ContextVar[bool] = ContextVar("interprets", default=False)


def uses_triton(x: torch.Tensor) -> bool:
    return x.is_cuda or x.is_meta or _interprets.get()


def shape_rows(num_rows: int) -> int:
    """The number of rows by which to choose the shape of programs."""
    return FIXED_ROWS if _fixes_shapes.get() else num_rows


@contextmanager
def fixed_shapes(fixes: bool = True) -> Generator[None]:
    """Cut sums alike for any number of rows, so that a row's bits depend on nothing but the row.

    Takes longer: for few rows as for many.
    """
    token = _fixes_shapes.set(fixes)
    try:
        yield
    finally:
        _fixes_shapes.reset(token)


@contextmanager
def interpreting() -> Generator[None]:
    """Send CPU tensors to Triton too. It must have been imported with TRITON_INTERPRET=1."""
    token = _interprets.set(True)
    try:
        yield
    finally:
        _interprets.reset(token)
