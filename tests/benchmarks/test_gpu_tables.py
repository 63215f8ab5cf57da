"""What of the GPU benchmarks needs no GPU: floors, tables, plans, and how they refuse to start."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from engine.launches.record import TorchOp
from engine.launches.shapes import MOE, Step
from kernels.devices import DEVICES
from kernels.launch import Cost, Launch
from tests.benchmarks.gpu_floor import (
    NO_GPU,
    decode_plan,
    device_named,
    floor_s,
    prefill_plan,
    table,
    with_layers,
)
from tests.benchmarks.gpu_kernels import OTHERS, kernel_rows
from tests.benchmarks.gpu_step import step_rows
from tests.benchmarks.gpu_table import TITLES
from tests.engine.runner.fake_model import HashModel, tiny_caches
from tests.engine.runner.test_runner import VOCAB, runner_of

H100 = DEVICES[0]


def launch_of(name: str, moved_bytes: int, flops: int = 0) -> Launch:
    kernel: Any = SimpleNamespace(fn=SimpleNamespace(__name__=name))
    cost = Cost(moved_bytes, 2 * moved_bytes, flops)
    return Launch(kernel, (1,), (), {}, num_warps=4, num_stages=2, max_registers=None, cost=cost)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A10G", None),
    ],
)
def test_a_gpu_is_known_by_its_number(name: str, found: str | None) -> None:
    device = device_named(name)
    assert (device and device.name) == found


def test_the_floor_is_the_sum_of_each_launchs_own_limit() -> None:
    started = [
        launch_of("_a", int(3.35e9)),  # a millisecond of bytes
        launch_of("_b", 1000, flops=int(2 * 989e9)),  # two of arithmetic
        TorchOp("add", Cost(int(3.35e8), int(3.35e8), 0)),
    ]
    assert floor_s(started, H100) == pytest.approx(3.1e-3)


def test_kernels_are_set_beside_their_own_launches() -> None:
    started = [launch_of("_linear_kernel", int(3.35e6)) for _ in range(4)]
    started += [launch_of("_norm_kernel", int(3.35e6))]
    taken = {"_linear_kernel": 8.0, "_norm_kernel": 10.0, "Memcpy HtoD": 2.0}
    assert kernel_rows(taken, started, H100) == [
        ["norm", "1", "10.0", "1.0", "10%", "50%"],
        ["linear", "4", "8.0", "4.0", "50%", "40%"],
        [OTHERS, "-", "2.0", "-", "-", "10%"],
    ]
    unseen = kernel_rows({}, started, None)
    assert unseen[0] == ["linear", "4", "0.0", "-", "-", "-"]


def test_a_step_beside_its_floor() -> None:
    started = [launch_of("_linear_kernel", int(3.35e9))]
    assert step_rows(0.004, 0.002, started, H100) == [
        ["all, graphs", "1", "2000.0", "1000.0", "50%", "-"],
        ["all, eager", "1", "4000.0", "1000.0", "25%", "-"],
    ]
    assert step_rows(0.004, 0.002, started, None)[0][3:] == ["-", "-", "-"]


def test_a_table_is_aligned() -> None:
    text = table(TITLES[:3], [["a", "norm", "10"], ["longer", "linear", "7"]])
    assert text.splitlines() == [
        "step    what    launches",
        "a       norm          10",
        "longer  linear         7",
    ]


def test_fewer_layers_keep_the_pattern() -> None:
    few = with_layers(MOE, 8)
    assert (few.num_linear_layers, few.num_full_layers) == (6, 2)


def test_the_plans_are_ones_a_runner_takes() -> None:
    runner = runner_of(HashModel(VOCAB), tiny_caches(VOCAB, num_pages=60, num_slots=8), 8)
    step = Step(num_decodes=5, context=130)
    assert len(runner.step(decode_plan(step, admits=True)).token_ids) == 5
    assert len(runner.step(decode_plan(step, admits=False)).token_ids) == 5
    assert len(runner.step(prefill_plan(Step(context=150, slices=(150, 70)))).token_ids) == 2
    runner.stop()


def test_without_a_gpu_it_says_so() -> None:
    code = (
        "import runpy, sys, torch; torch.cuda.is_available = lambda: False; sys.argv = ['x'];"
        "runpy.run_module('tests.benchmarks.gpu_table', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == NO_GPU
    assert run.stderr == "no CUDA device: this benchmark times a GPU\n"
