"""References beside kernels: inside the fixture `device`, plain functions go to Triton as well."""

from collections.abc import Callable
from contextvars import Context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def outside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` where CPU tensors stay on the CPU's path."""
    return Context().run(function, *args, **kwargs)
