"""Decode steps on a GPU against their byte budget, with graphs and without.

    python -m tests.benchmarks.gpu_step [--model 35B-A3B] [--layers 8] [--batches 1 8 64]
                                        [--context 8192]

Each step runs whole, as it is served: staging, model, sampling, copy back. "floor" is what its
recorded launches must move and compute, at full speed; "share" is how much of the step that is.
One step ahead, as the engine runs: a step's host work is hidden where the GPU takes longer.
Exits with 2 where there is no GPU.
"""

import argparse
import time

import torch

from engine.launches.shapes import MODELS, Step
from engine.runner.runner import Runner
from kernels.devices import Device
from tests.benchmarks.gpu_floor import (
    BigModel,
    decode_plan,
    device_named,
    exit_without_gpu,
    floor_s,
    table,
)

TITLES = ("step", "eager ms", "graph ms", "floor ms", "share", "tokens/s")
NUM_STEPS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="35B-A3B")
    parser.add_argument("--layers", type=int, default=8, help="of the model's; 0: all")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--context", type=int, default=8192)
    options = parser.parse_args()
    exit_without_gpu()

    name = torch.cuda.get_device_name()
    device = device_named(name)
    model = BigModel.of(options.model, options.layers or None)
    rows: list[list[str]] = []
    for batch in options.batches:
        step = Step(num_decodes=batch, context=options.context)
        eager = step_s(model, step, captures=False)
        graph = step_s(model, step, captures=True)
        rows.append(row_of(step, eager, graph, model, device))
    print(f"{options.model}, {model.config.num_layers} layers, bf16, on {name}")
    print(table(TITLES, rows))


def row_of(
    step: Step, eager_s: float, graph_s: float, model: BigModel, device: Device | None
) -> list[str]:
    floor = None if device is None else floor_s(model.started(step), device)
    return cells(str(step), step.num_decodes, eager_s, graph_s, floor)


def cells(name: str, batch: int, eager_s: float, graph_s: float, floor: float | None) -> list[str]:
    """`floor` None: this GPU's speed is not known."""
    return [
        name,
        f"{1e3 * eager_s:.3f}",
        f"{1e3 * graph_s:.3f}",
        "-" if floor is None else f"{1e3 * floor:.3f}",
        "-" if floor is None else f"{floor / graph_s:.0%}",
        f"{batch / graph_s:,.0f}",
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


if __name__ == "__main__":
    main()
