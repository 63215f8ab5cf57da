"""What the GPU benchmarks share: the floor of recorded launches, a table, and a model to time.

The floor of a launch is what its necessary bytes take at the GPU's full bandwidth, or its
arithmetic at full rate if that is longer. Nothing can be faster; how near a kernel comes is the
figure that counts. All but `BigModel` works without a GPU.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import torch

from engine.config import MemoryPlan, ModelConfig
from engine.launches.record import Started, record_step
from engine.launches.shapes import MODELS, NUM_REAL_TOKENS, Step
from engine.model.qwen3_5 import Qwen3_5
from engine.plan import PAGE_TOKENS, Admit, Slice, StepPlan
from engine.request import SamplingParams
from engine.runner.cuda import CudaDevice
from engine.runner.runner import Runner
from engine.runner.tensors import allocate_caches
from kernels.devices import DEVICES, Device

NO_GPU = 2  # the exit status where there is none


def exit_without_gpu() -> None:
    if not torch.cuda.is_available():
        print("no CUDA device: this benchmark times a GPU", file=sys.stderr)
        raise SystemExit(NO_GPU)


def device_named(name: str) -> Device | None:
    """By the model's number in the driver's name of it, such as "NVIDIA H100 80GB HBM3"."""
    words = name.split()
    for device in DEVICES:
        numbers = [word for word in device.name.split() if any(c.isdigit() for c in word)]
        if all(number in words for number in numbers):
            return device
    return None


def floor_s(started: Sequence[Started], device: Device) -> float:
    """Each launch at its own limit, one after the other."""
    return sum(
        device.time_s(moved_bytes=one.cost.necessary_bytes, flops=one.cost.flops) for one in started
    )


def cells(
    name: str, count: int | None, taken_us: float, floor_us: float | None, whole_us: float | None
) -> list[str]:
    """A row of `gpu_table` without its step; what is None or cannot be said is a dash."""
    return [
        name,
        "-" if count is None else str(count),
        f"{taken_us:.1f}",
        "-" if floor_us is None else f"{floor_us:.1f}",
        "-" if floor_us is None or not taken_us else f"{floor_us / taken_us:.0%}",
        "-" if whole_us is None else f"{taken_us / whole_us:.0%}",
    ]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; the first two to the left, numbers to the right."""
    lines = [list(titles), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def with_layers(model: ModelConfig, num_layers: int) -> ModelConfig:
    """The first layers of a model, so that it fits: three DeltaNets for each attention stay so."""
    return msgspec.structs.replace(model, layer_types=model.layer_types[:num_layers])


def decode_plan(step: Step, *, admits: bool) -> StepPlan:
    """Rows that decode at `step.context`, on pages and slots of their own, whatever is in them."""
    pages = -(-step.context // PAGE_TOKENS)
    slices = tuple(
        Slice(
            request_id=f"r{row}",
            epoch=0,
            slot=row + 1,
            start=step.context - 1,
            num_tokens=1,
            token_ids=() if not admits else (row,),
            pages=tuple(range(1 + row * pages, 1 + (row + 1) * pages)),
            decodes=True,
            samples=True,
        )
        for row in range(step.num_decodes)
    )
    sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
    given = tuple(Admit(part.slot, 1, (1,), sampling) for part in slices) if admits else ()
    return StepPlan(slices, given)


def prefill_plan(step: Step) -> StepPlan:
    """Whole prompts of the slices' lengths."""
    slices: list[Slice] = []
    first = 1
    for slot, length in enumerate(step.slices, 1):
        pages = -(-length // PAGE_TOKENS)
        slices.append(
            Slice(
                request_id=f"r{slot}",
                epoch=0,
                slot=slot,
                start=0,
                num_tokens=length,
                token_ids=tuple(i % NUM_REAL_TOKENS for i in range(length)),
                pages=tuple(range(first, first + pages)),
                decodes=False,
                samples=True,
            )
        )
        first += pages
    sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
    return StepPlan(
        tuple(slices), tuple(Admit(part.slot, part.num_tokens, (1,), sampling) for part in slices)
    )


@dataclass(frozen=True)
class BigModel:
    """A released model's shapes, cut to some layers, with weights of noise, on the GPU."""

    config: ModelConfig
    network: Qwen3_5

    @classmethod
    def of(cls, name: str, num_layers: int | None) -> "BigModel":
        config = MODELS[name]
        config = with_layers(config, num_layers or config.num_layers)
        network = Qwen3_5(config, torch.bfloat16, torch.device("cuda"))
        for place in network.places().values():
            place.normal_(std=0.02)
        return cls(config, network)

    def runner(self, step: Step, *, captures: bool) -> Runner:
        """With caches for `step` and graphs for its batch; warmed up."""
        num_seqs = step.num_samples
        longest = max(step.context, *step.slices, 1)
        pages = -(-longest // PAGE_TOKENS)
        plan = MemoryPlan(
            num_pages=num_seqs * pages,
            num_slots=num_seqs,
            page_bytes=0,
            slot_bytes=0,
            max_model_len=longest,
            max_num_seqs=num_seqs,
            max_step_tokens=max(step.num_tokens, num_seqs),
        )
        device = CudaDevice(captures=captures)
        return Runner(
            self.network,
            allocate_caches(self.config, plan, dtype=torch.bfloat16, device=device.torch_device),
            num_slots=num_seqs + 1,
            num_real_tokens=NUM_REAL_TOKENS,
            max_step_tokens=plan.max_step_tokens,
            max_model_len=longest,
            device=device,
        )

    def started(self, step: Step) -> list[Started]:
        return record_step(self.config, step)


def median_ms(run: Callable[[], None], *, repeats: int = 20, warm_ups: int = 3) -> float:
    """Of what `run` queues, by the GPU's own clock, with all of it queued before."""
    times: list[float] = []
    for i in range(warm_ups + repeats):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= warm_ups:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)
