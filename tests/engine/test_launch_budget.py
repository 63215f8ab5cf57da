"""How many kernels a layer starts, and how much more than necessary they move."""

import pytest
import torch

from engine.device_memory import LOGITS_ROWS
from engine.launches import Started, TorchOp, record_layer, record_step
from engine.launches.budget import LAYER_NAMES, MAX_RATIO, budget_of, sum_of
from engine.launches.record import record_greedy, record_inputs
from engine.launches.shapes import DECODE, MIXED, MOE, PREFILL, STEPS, Step, of_rank

MAX_LAUNCHES = {"linear_attention": 6, "full_attention": 7}  # at batch 1

# Launches that move more than MAX_RATIO of what is necessary, and the most that they may. Those of
# steps with many rows are bound by FLOPs (linear), small (sort, route), or open (transform, recur).
OF_MANY_ROWS = {
    "linear": 1.95,
    "recur": 3.4,
    "route": 2.65,
    "sort": 1.8,
    "transform": 1.5,
}


@pytest.mark.parametrize("kind", MAX_LAUNCHES)
def test_a_layer_of_one_row_starts_few_kernels(kind: str) -> None:
    started = record_layer(MOE, kind, DECODE[0])
    assert len(started) <= MAX_LAUNCHES[kind], [item.name for item in started]
    assert not any(isinstance(item, TorchOp) for item in started)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_launches_move_what_they_must(step: Step) -> None:
    most = {} if step.num_tokens <= 8 else OF_MANY_ROWS
    exceeding = budget_of(MOE, step).exceeding
    assert not {n: ratio for n, ratio in exceeding.items() if ratio > most.get(n, MAX_RATIO)}


@pytest.mark.parametrize("step", [DECODE[0], PREFILL, MIXED], ids=str)
def test_layers_and_the_rest_make_the_step(step: Step) -> None:
    parts = dict(budget_of(MOE, step).parts)
    whole = parts.pop("whole step")
    layers = sum_of(())
    for kind, name in LAYER_NAMES.items():
        layers = layers.plus(parts.pop(name), times=MOE.layer_types.count(kind))
    assert list(parts) == ["the rest", "inputs", "greedy sampling"]
    assert layers.num_launches + sum(p.num_launches for p in parts.values()) == whole.num_launches
    for part in parts.values():
        assert part.num_torch >= 0
        assert part.moved_bytes > 0


def test_a_step_of_one_row_reads_its_active_weights_once() -> None:
    """2.95 B parameters of 2 bytes, 60 MiB of state read and written, and the keys and values."""
    weights = 2 * 2_946_429_568
    state = 2 * 62_914_560
    keys = 8192 * 20_480
    necessary = sum_of(record_step(MOE, DECODE[0])).necessary_bytes
    assert necessary == pytest.approx(weights + state + keys, rel=0.01)


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_ranks_share_the_work(num_ranks: int) -> None:
    alone = sum_of(record_step(MOE, DECODE[0]))
    part = sum_of(record_step(of_rank(MOE, num_ranks), DECODE[0]))
    assert part.num_launches == alone.num_launches
    assert alone.moved_bytes / num_ranks <= part.moved_bytes < 1.5 * alone.moved_bytes / num_ranks


def test_torch_operations_are_seen() -> None:
    """Views and allocations start nothing; a copy does, and a picked row is not the table."""
    from engine.launches.record import META, record

    table_VD = torch.empty(1000, 64, device=META)
    index_R = torch.empty(3, dtype=torch.int64, device=META)

    def run() -> None:
        table_VD.new_empty(5).view(5, 1).t()
        table_VD[index_R].add_(1)

    started: list[Started] = record(run)
    assert [item.name for item in started] == ["index", "add_"]
    assert started[0].cost.moved_bytes == 3 * 8 + 3 * 64 * 4


def test_inputs_and_sampling_are_what_a_runner_does_around_the_model() -> None:
    """The host's numbers in one copy; tokens only the device knows; a page table for each row."""
    assert [item.name for item in record_inputs(DECODE[1])] == [
        *("copy_", "index_select", "lt", "where", "copy_"),
        *("index_select", "index_select"),
    ]
    sampled = [item.name for item in record_greedy(DECODE[1])]
    assert [name for name in sampled if name in ("parts", "first")] == ["parts", "first"]
    assert sampled[-1] == "index_put_"  # the last token of each slot
    twice = [item.name for item in record_greedy(Step(num_decodes=LOGITS_ROWS + 1))]
    assert twice == 2 * sampled


@pytest.mark.parametrize(("num_decodes", "times"), [(1, 1), (LOGITS_ROWS, 1), (LOGITS_ROWS + 1, 2)])
def test_the_head_gets_its_rows_as_a_runner_hands_them_over(num_decodes: int, times: int) -> None:
    """Picked, and so few at a time: its weights are read once for each time."""
    step = Step(num_decodes=num_decodes, context=64)
    started = record_step(of_rank(MOE, 8), step)
    assert [item.name for item in started].count("index") == times
    assert [item.name for item in started[-2 * times :]] == times * ["index", "linear"]
