"""The one door through which Triton kernels start.

Every wrapper hands its kernel to `launch` together with what it costs. So one list of launches,
recorded while a step runs on meta tensors, tells how many there are, what each moves, and with
which dtypes and constants each must be compiled ahead of time: the tables in the documentation and
the serving path cannot drift apart.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

Argument = torch.Tensor | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a launch must do, and what it does.

    `necessary_bytes`: every byte of its inputs that the result depends on, and of its outputs,
    once. `moved_bytes`: what its programs load and store, where an operand that many programs
    share counts once if it is small enough to stay in the L2 cache (8 MiB).
    """

    necessary_bytes: int
    moved_bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch that was recorded instead of made."""

    kernel: Any  # triton's JITFunction; its types are not public
    grid: tuple[int, ...]
    args: tuple[Argument, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int | None
    cost: Cost

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__.strip("_").removesuffix("_kernel")


OPTIONS = {"enable_fp_fusion": True}  # of every kernel: unsaid, newer Tritons warn, then differ


def options_of(num_warps: int, num_stages: int, max_registers: int | None) -> dict[str, Any]:
    """What Triton is told of a kernel besides its arguments, here and ahead of time."""
    options = {"num_warps": num_warps, "num_stages": num_stages, **OPTIONS}
    return options if max_registers is None else options | {"maxnreg": max_registers}


_record: ContextVar[list[Launch] | None] = ContextVar("record", default=None)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Argument,
    cost: Callable[[], Cost],
    num_warps: int,
    num_stages: int = 2,
    max_registers: int | None = None,
    **constants: Any,
) -> None:
    """Start `kernel` on `grid` with its arguments in order; `constants` are its constexprs.

    `max_registers` (of a thread) is for kernels that ptxas, unasked, would rather let spill a few
    bytes than take one register more than lets another block run. Grids without programs are not
    started. On meta tensors the launch is only recorded.
    """
    if not all(grid):
        return
    record = _record.get()
    if record is not None:
        record.append(
            Launch(kernel, grid, args, constants, num_warps, num_stages, max_registers, cost())
        )
        return
    kernel[grid](*args, **constants, **options_of(num_warps, num_stages, max_registers))


@contextmanager
def recording() -> Generator[list[Launch]]:
    """Collect the launches inside instead of making them."""
    launches: list[Launch] = []
    token = _record.set(launches)
    try:
        yield launches
    finally:
        _record.reset(token)
