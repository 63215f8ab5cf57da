"""What a step must move and compute, what its launches move and compute, and the least time.

A layer's numbers are what one more layer of its kind adds to a step; the rest of the step (the
embedding, the angles, the final norm, the head) is what is left when all layers are taken away.
What comes before the model (the host's numbers in one copy, page tables, tokens that only the
device knows) and after it (a greedy draw) are parts of their own. The least time of a launch is the
roofline of what it moves; those of a step's launches add up.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.config import ModelConfig
from engine.launches.record import (
    Started,
    TorchOp,
    record_greedy,
    record_inputs,
    record_layer,
    record_step,
)
from engine.launches.shapes import Step
from kernels.devices import DEVICES, LAUNCH_S, Device

MAX_RATIO = 1.15  # of moved to necessary bytes
LAYER_NAMES = {"linear_attention": "DeltaNet layer", "full_attention": "attention layer"}


@dataclass(frozen=True, slots=True)
class Sum:
    num_launches: int
    num_torch: int  # of them by torch itself
    necessary_bytes: int
    moved_bytes: int
    flops: int
    times_s: tuple[float, ...]  # one for each of DEVICES

    @property
    def ratio(self) -> float:
        return self.moved_bytes / max(self.necessary_bytes, 1)

    def plus(self, other: "Sum", times: int = 1) -> "Sum":
        return Sum(
            self.num_launches + times * other.num_launches,
            self.num_torch + times * other.num_torch,
            self.necessary_bytes + times * other.necessary_bytes,
            self.moved_bytes + times * other.moved_bytes,
            self.flops + times * other.flops,
            tuple(a + times * b for a, b in zip(self.times_s, other.times_s, strict=True)),
        )


def sum_of(started: Iterable[Started]) -> Sum:
    items = list(started)
    return Sum(
        num_launches=len(items),
        num_torch=sum(isinstance(item, TorchOp) for item in items),
        necessary_bytes=sum(item.cost.necessary_bytes for item in items),
        moved_bytes=sum(item.cost.moved_bytes for item in items),
        flops=sum(item.cost.flops for item in items),
        times_s=tuple(sum(_time_s(device, item) for item in items) for device in DEVICES),
    )


@dataclass(frozen=True, slots=True)
class Budget:
    """One step of one model."""

    layers: dict[str, list[Started]]  # by kind
    parts: dict[str, Sum]  # by name, the whole step last

    @property
    def exceeding(self) -> dict[str, float]:
        """The ratios of layers' launches that move more than they should, the worst of a name."""
        found: dict[str, float] = {}
        for item in (item for started in self.layers.values() for item in started):
            ratio = sum_of([item]).ratio
            if ratio > MAX_RATIO:
                found[item.name] = max(ratio, found.get(item.name, 0))
        return found


def budget_of(model: ModelConfig, step: Step) -> Budget:
    kinds = sorted(set(model.layer_types), reverse=True)
    layers = {kind: record_layer(model, kind, step) for kind in kinds}
    whole = rest = sum_of(record_step(model, step))
    around = {
        "inputs": sum_of(record_inputs(step)),
        "greedy sampling": sum_of(record_greedy(step)),
    }
    parts: dict[str, Sum] = {}
    for kind, started in layers.items():
        parts[LAYER_NAMES[kind]] = layer = sum_of(started)
        rest = rest.plus(layer, times=-model.layer_types.count(kind))
    parts["the rest"] = rest
    for name, part in around.items():
        parts[name] = part
        whole = whole.plus(part)
    parts["whole step"] = whole
    return Budget(layers, parts)


def parts_table(budget: Budget) -> list[str]:
    rows = [_cells(name, part) for name, part in budget.parts.items()]
    return _table(("part", "launches", *_HEAD, f"launches x {1e6 * LAUNCH_S:.0f} us"), rows)


def launches_table(started: Iterable[Started]) -> list[str]:
    """One row for each launch, in order."""
    rows = [
        (f"{'torch ' if isinstance(item, TorchOp) else ''}{item.name}", *_figures(sum_of([item])))
        for item in started
    ]
    return _table(("launch", *_HEAD), rows)


_HEAD = ("necessary MB", "moved MB", "ratio", "GFLOP", *(f"{d.name}, us" for d in DEVICES))


def _cells(name: str, part: Sum) -> tuple[str, ...]:
    launches = f"{part.num_launches}"
    if part.num_torch:
        launches += f" ({part.num_torch} torch)"
    return (name, launches, *_figures(part), f"{1e6 * LAUNCH_S * part.num_launches:.0f}")


def _figures(part: Sum) -> tuple[str, ...]:
    return (
        f"{part.necessary_bytes / 1e6:.2f}",
        f"{part.moved_bytes / 1e6:.2f}",
        f"{part.ratio:.2f}",
        f"{part.flops / 1e9:.2f}",
        *(f"{1e6 * time_s:.1f}" for time_s in part.times_s),
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    rule = ("---", *("---:" for _ in head[1:]))
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _time_s(device: Device, item: Started) -> float:
    return device.time_s(moved_bytes=item.cost.moved_bytes, flops=item.cost.flops)
