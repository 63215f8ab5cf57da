"""Steps on a GPU, and each kernel in them, against their floors, in one table.

    python -m tests.benchmarks.gpu_table [--model 35B-A3B] [--layers 8] [--batches 1 8 64]
                                         [--prefill 2048] [--context 8192]

A floor is what the recorded launches must move and compute, at the GPU's full speed; a share is how
much of the time that is. "all, graphs" and "all, eager" are whole decode steps as they are served
(see `gpu_step`); what follows is where the GPU's time of an eager step goes (see `gpu_kernels`).
Every figure is of one step, in microseconds. Exits with 2 where there is no GPU.
"""

import argparse

import torch

from engine.launches.shapes import MODELS, Step
from tests.benchmarks.gpu_floor import BigModel, device_named, exit_without_gpu, table
from tests.benchmarks.gpu_kernels import kernel_rows, profiled
from tests.benchmarks.gpu_step import step_rows, step_s

TITLES = ("step", "what", "launches", "us", "floor us", "share", "of the GPU's time")


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
    rows: list[list[str]] = []
    for batch in options.batches:
        step = Step(num_decodes=batch, context=options.context)
        started = model.started(step)
        eager, graphs = (step_s(model, step, captures=captures) for captures in (False, True))
        of_step = step_rows(eager, graphs, started, device)
        of_step += kernel_rows(profiled(model, step), started, device)
        rows += [[str(step), *row] for row in of_step]
    for length in options.prefill:
        step = Step(context=length, slices=(length,))
        of_kernels = kernel_rows(profiled(model, step), model.started(step), device)
        rows += [[str(step), *row] for row in of_kernels]
    print(f"{options.model}, {model.config.num_layers} layers, bf16, on {name}")
    print(table(TITLES, rows))


if __name__ == "__main__":
    main()
