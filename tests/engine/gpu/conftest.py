"""What needs a GPU: `pytest -m gpu` runs it all, and the Triton kernels' tests, in under 8 minutes.

Those run everywhere, through Triton's interpreter where there is no GPU; where there is one they
count as its tests.

Where there is none, each test is skipped and says so. The soak's length: `--soak-s`.
"""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TRITON = HERE.parents[1] / "kernels" / "triton"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if TRITON in item.path.parents and torch.cuda.is_available():
            item.add_marker(pytest.mark.gpu)
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                why = "needs a GPU: torch.cuda.is_available() is false"
                item.add_marker(pytest.mark.skip(reason=why))
