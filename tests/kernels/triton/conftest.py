"""Triton kernels on whatever is here: a GPU, or Triton's own interpreter on CPU tensors.

Which of the two is settled in `tests.interpreter`. Wrappers are called inside the fixture `device`,
which sends CPU tensors to Triton too. Where there is a GPU, those tests count as its own (`-m gpu`)
that it adds something to: see `gpu_share`.
"""

from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from kernels.backend import interpreting
from tests.kernels.triton.dtypes import DTYPES
from tests.kernels.triton.gpu_share import adds_on_a_gpu
from tests.kernels.triton.interpreted_bf16 import interpret_bf16

HERE = Path(__file__).parent


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Generator[torch.device]:
    """Where the kernel under test runs; the reference may run wherever its inputs lie."""
    if torch.cuda.is_available():
        yield torch.device("cuda", torch.cuda.current_device())
    else:
        interpret_bf16(monkeypatch)
        with interpreting():
            yield torch.device("cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        return
    for item in items:
        case = getattr(item, "callspec", None)
        if HERE in item.path.parents and adds_on_a_gpu(item.path.name, case.params if case else {}):
            item.add_marker(pytest.mark.gpu)
