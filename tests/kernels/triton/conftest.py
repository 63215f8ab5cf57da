"""Triton kernels on whatever is here: a GPU, or Triton's own interpreter on CPU tensors.

Which of the two is settled in `tests.interpreter`. Wrappers are called inside the fixture `device`,
which sends CPU tensors to Triton too.
"""

from collections.abc import Generator

import pytest
import torch

from kernels.backend import interpreting
from tests.kernels.triton.dtypes import DTYPES


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def device() -> Generator[torch.device]:
    """Where the kernel under test runs; the reference may run wherever its inputs lie."""
    if torch.cuda.is_available():
        yield torch.device("cuda", torch.cuda.current_device())
    else:
        with interpreting():
            yield torch.device("cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is false")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
