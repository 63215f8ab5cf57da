"""What needs a GPU: `pytest -m gpu` runs it all, and with it a share of the Triton kernels' tests,
in under 8 minutes; docs/gpu.md says how these add up.

The soak takes five minutes (`--soak-s`), in a process of its own: it begins before all others and
is waited for after them.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
FIRST, LAST = "test_a_soak_begins", "test_a_soak_leaves_nothing_behind"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
    items.sort(key=lambda item: (item.name != FIRST, item.name == LAST))  # stable
