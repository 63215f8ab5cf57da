"""What `pytest -m gpu` runs where there is a GPU, and that its helpers run at all."""

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from engine.runner.runner import Runner
from tests.benchmarks.gpu_floor import cells, device_named, table
from tests.benchmarks.gpu_kernels import OTHERS, kernel_rows
from tests.benchmarks.gpu_table import TITLES
from tests.engine.built_tiny import build_tiny
from tests.engine.gpu.soak import SLACK_BYTES, soak
from tests.engine.gpu.test_table import STEPS, figures
from tests.kernels.triton.gpu_share import adds_on_a_gpu

ROOT = Path(__file__).parents[2]
MOST_KERNEL_TESTS = 200  # each compiles a kernel or two: see docs/gpu.md


def test_the_suite_is_the_gpus_own_tests_and_a_share_of_the_kernels() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.engine.gpu.pretend", "-m", "gpu"]
    paths = ["tests/engine/gpu", "tests/engine/test_every_kind_of_request.py", "tests/kernels"]
    done = subprocess.run(
        [*command, "--collect-only", "-q", "-p", "no:cacheprovider", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    assert tests[0].endswith("test_a_soak_begins")
    assert tests[-1].endswith("test_a_soak_leaves_nothing_behind")
    assert sum("test_each_gets_what_it_asked_for[" in test for test in tests) == 2
    of_kernels = [test for test in tests if test.startswith("tests/kernels/")]
    assert 100 < len(of_kernels) < MOST_KERNEL_TESTS
    assert {test.split("::")[0].rpartition("/")[2] for test in of_kernels} == {
        path.name
        for path in (ROOT / "tests" / "kernels" / "triton").glob("test_*.py")
        if path.name not in ("test_aot.py", "test_whole_model.py", "test_bf16.py")
    }
    assert not any("float32" in test or "torch.float16" in test for test in of_kernels)


@pytest.mark.parametrize(
    ("file_name", "params", "adds"),
    [
        ("test_linear.py", {"dtype": torch.bfloat16, "D": 40, "F": 33}, True),
        ("test_linear.py", {"dtype": torch.bfloat16, "D": 64, "F": 48}, False),
        ("test_linear.py", {"dtype": torch.float16, "D": 40, "F": 33}, False),
        ("test_sampling_draw.py", {"width": 9001}, True),
        ("test_sampling_draw.py", {"width": 33}, False),
        ("test_sampling_draw.py", {}, True),
        ("test_aot.py", {}, False),
        ("test_whole_model.py", {}, False),
        ("test_bf16.py", {}, False),
    ],
)
def test_a_gpu_adds_bf16_and_awkward_sizes(
    file_name: str, params: dict[str, object], adds: bool
) -> None:
    assert adds_on_a_gpu(file_name, params) == adds


def test_the_tables_figures_are_read_as_they_are_printed() -> None:
    device = device_named("NVIDIA H200")
    rows: list[list[str]] = []
    for step, taken in zip(STEPS, ({"linear_kernel": 12.5}, {}, {"other": 3.0}, {}), strict=True):
        step_rows = [
            cells("all, graphs", 272, 1902.4, 1200.0, None),
            *kernel_rows(taken, [], device),
        ]
        rows += [[step, *row] for row in step_rows]
    printed = "35B-A3B, 4 layers, bf16, on NVIDIA H200\n" + table(TITLES, rows) + "\n"
    found = figures(printed)
    assert tuple(found) == STEPS
    assert found[STEPS[0]] == {"all, graphs": 1902.4, OTHERS: 12.5}
    assert found[STEPS[1]] == {"all, graphs": 1902.4, OTHERS: 0.0}


@pytest.fixture(scope="module")
def runner(tiny_moe_dir: Path) -> Generator[Runner]:
    runner = build_tiny(tiny_moe_dir, "float32", device="cpu").runner
    assert isinstance(runner, Runner)
    yield runner
    runner.stop()


def test_a_soak_goes_twice_through_all_ways(runner: Runner) -> None:
    assert soak(runner, 0.0, lambda: 0) == 6


def test_a_soak_sees_memory_that_is_not_given_back(runner: Runner) -> None:
    held = iter([0, SLACK_BYTES + 1])
    with pytest.raises(AssertionError, match="memory was not given back"):
        soak(runner, 0.0, lambda: next(held))
