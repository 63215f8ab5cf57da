"""Each kernel of a step on a GPU against its floor, by the profiler's clock.

A step is run under torch's profiler, kernel by kernel and without graphs, and what a kernel took is
set beside what its recorded launches must move and compute at full speed. Kernels of torch's own
come last, together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from engine.launches.record import Started
from engine.launches.shapes import Step
from engine.plan import StepPlan
from kernels.devices import Device
from kernels.launch import Launch
from tests.benchmarks.gpu_floor import BigModel, cells, decode_plan, floor_s, prefill_plan

REPEATS = 5
OTHERS = "torch and sampling"


def kernel_rows(
    taken_us: Mapping[str, float], started: Sequence[Started], device: Device | None
) -> list[list[str]]:
    """`taken_us`: of one step, by the function name of a kernel."""
    by_name: dict[str, list[Launch]] = {}
    for one in started:
        if isinstance(one, Launch):
            by_name.setdefault(one.kernel.fn.__name__, []).append(one)
    step_us = sum(taken_us.values()) or None
    rows: list[list[str]] = []
    for name in sorted(by_name, key=lambda name: -taken_us.get(name, 0.0)):
        launches, taken = by_name[name], taken_us.get(name, 0.0)
        floor_us = None if device is None else 1e6 * floor_s(launches, device)
        rows.append(cells(launches[0].name, len(launches), taken, floor_us, step_us))
    rest = sum(us for name, us in taken_us.items() if name not in by_name)
    return [*rows, cells(OTHERS, None, rest, None, step_us)]


def profiled(model: BigModel, step: Step) -> Counter[str]:
    """Microseconds of each kernel in one step, on average."""
    runner = model.runner(step, captures=False)
    first: StepPlan = decode_plan(step, admits=True) if step.num_decodes else prefill_plan(step)
    again: StepPlan = decode_plan(step, admits=False) if step.num_decodes else first
    for plan in (first, again, again):
        runner.launch(plan).result()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(REPEATS):
            runner.launch(again).result()
        torch.cuda.synchronize()
    runner.stop()
    taken: Counter[str] = Counter()
    for event in profiler.key_averages():
        taken[event.key] += event.self_device_time_total / REPEATS
    return taken
