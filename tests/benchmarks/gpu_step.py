"""Whole decode steps on a GPU against their byte budget, with graphs and without.

A step runs whole, as it is served: staging, model, sampling, copy back. One step ahead, as the
engine runs: a step's host work is hidden where the GPU takes longer.
"""

import time
from collections.abc import Sequence

import torch

from engine.launches.record import Started
from engine.launches.shapes import Step
from engine.runner.runner import Runner
from kernels.devices import Device
from tests.benchmarks.gpu_floor import BigModel, cells, decode_plan, floor_s

NUM_STEPS = 50


def step_rows(
    eager_s: float, graphs_s: float, started: Sequence[Started], device: Device | None
) -> list[list[str]]:
    """`device` None: this GPU's speed is not known."""
    floor_us = None if device is None else 1e6 * floor_s(started, device)
    return [
        cells("all, graphs", len(started), 1e6 * graphs_s, floor_us, None),
        cells("all, eager", len(started), 1e6 * eager_s, floor_us, None),
    ]


def step_s(model: BigModel, step: Step, *, captures: bool) -> float:
    """Seconds per step of a run of them, one ahead."""
    runner = model.runner(step, captures=captures)
    runner.launch(decode_plan(step, admits=True)).result()
    if captures:
        runner.begin_captures()
        runner.wait_for_captures()
    _run(runner, step, 5)
    torch.cuda.synchronize()
    began = time.perf_counter()
    _run(runner, step, NUM_STEPS)
    torch.cuda.synchronize()
    took = time.perf_counter() - began
    runner.stop()
    return took / NUM_STEPS


def _run(runner: Runner, step: Step, num_steps: int) -> None:
    """The same position over and over: what is computed does not matter, how much does."""
    plan = decode_plan(step, admits=False)
    before = runner.launch(plan)
    for _ in range(num_steps - 1):
        after = runner.launch(plan)
        before.result()
        before = after
    before.result()
