"""Each kernel of a step on a GPU against its floor, by the profiler's clock.

    python -m tests.benchmarks.gpu_kernels [--model 35B-A3B] [--layers 8] [--batches 1 8 64]
                                           [--prefill 2048] [--context 8192]

A step is run under torch's profiler, kernel by kernel and without graphs, and what a kernel took is
set beside what its recorded launches must move and compute at full speed ("floor"). Kernels of
torch's own come last, together. Exits with 2 where there is no GPU.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from engine.launches.record import Started
from engine.launches.shapes import MODELS, Step
from engine.plan import StepPlan
from kernels.devices import Device
from kernels.launch import Launch
from tests.benchmarks.gpu_floor import (
    BigModel,
    decode_plan,
    device_named,
    exit_without_gpu,
    floor_s,
    prefill_plan,
    table,
)

TITLES = ("kernel", "launches", "us each", "floor us", "share", "of the step")
REPEATS = 5
OTHERS = "torch and sampling"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="35B-A3B")
    parser.add_argument("--layers", type=int, default=8, help="of the model's; 0: all")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--prefill", type=int, nargs="*", default=[2048])
    parser.add_argument("--context", type=int, default=8192)
    options = parser.parse_args()
    exit_without_gpu()

    name = torch.cuda.get_device_name()
    device = device_named(name)
    model = BigModel.of(options.model, options.layers or None)
    print(f"{options.model}, {model.config.num_layers} layers, bf16, on {name}")
    decodes = [Step(num_decodes=batch, context=options.context) for batch in options.batches]
    for step in (*decodes, *(Step(context=n, slices=(n,)) for n in options.prefill)):
        started = model.started(step)
        print(f"\n{step}")
        print(table(TITLES, kernel_rows(_profiled(model, step), started, device)))


def kernel_rows(
    taken_us: Mapping[str, float], started: Sequence[Started], device: Device | None
) -> list[list[str]]:
    """`taken_us`: of one step, by the function name of a kernel."""
    by_name: dict[str, list[Launch]] = {}
    for one in started:
        if isinstance(one, Launch):
            by_name.setdefault(one.kernel.fn.__name__, []).append(one)
    step_us = sum(taken_us.values())
    rows: list[list[str]] = []
    for name in sorted(by_name, key=lambda name: -taken_us.get(name, 0.0)):
        launches, taken = by_name[name], taken_us.get(name, 0.0)
        floor_us = None if device is None else 1e6 * floor_s(launches, device)
        rows.append(_cells(launches[0].name, len(launches), taken, floor_us, step_us))
    rest = sum(us for name, us in taken_us.items() if name not in by_name)
    return [*rows, _cells(OTHERS, None, rest, None, step_us)]


def _cells(
    name: str, count: int | None, taken_us: float, floor_us: float | None, step_us: float
) -> list[str]:
    has_floor = floor_us is not None and taken_us > 0
    return [
        name,
        "-" if count is None else str(count),
        f"{taken_us:.1f}" if count is None else f"{taken_us / count:.2f}",
        f"{floor_us / (count or 1):.2f}" if floor_us is not None else "-",
        f"{floor_us / taken_us:.0%}" if floor_us is not None and has_floor else "-",
        f"{taken_us / step_us:.0%}" if step_us else "-",
    ]


def _profiled(model: BigModel, step: Step) -> Counter[str]:
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


if __name__ == "__main__":
    main()
