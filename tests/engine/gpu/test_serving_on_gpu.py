"""Whole tiny models on the GPU: against transformers, and graphs against eager steps.

A greedy text is right if transformers, given the same text, finds no token much likelier than the
one that was taken: with rounded operands two correct programs settle near ties differently.
"""

import random
from pathlib import Path

import pytest
import torch

from engine.loop import Launcher
from engine.request import Request, SamplingParams
from engine.runner.runner import Runner
from tests.checkpoints import NUM_REAL_TOKENS, Oracle
from tests.engine.built_tiny import build_tiny
from tests.engine.gpu.waiting import host_must_not_wait
from tests.engine.inprocess import greedy
from tests.engine.runner.driver import Life, book, plan_step, run_all
from tests.engine.traffic import COMMON, NUM_OUTPUT, prompts, served

# Of logits whose spread is 3: bf16 keeps 8 bits, and TF32 products 11.
TOLERANCE = {"float32": 0.05, "float16": 0.05, "bfloat16": 0.6}


@pytest.mark.parametrize("kind", ["moe", "dense"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_is_transformers(kind: str, dtype: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{kind}_dir")
    oracle: Oracle = request.getfixturevalue(f"tiny_{kind}_oracle")
    built = build_tiny(folder, dtype)
    texts: dict[str, dict[str, list[int]]] = {}
    for how in ("together", "chunked", "preempted", "cached"):
        requests = [greedy(name, ids, NUM_OUTPUT) for name, ids in prompts(7).items()]
        outcome = served(built.runner, requests, how)
        texts[how] = {request.id: outcome.ids(request.id) for request in requests}
    for how, by_name in texts.items():
        for name, ids in prompts(7).items():
            assert len(by_name[name]) == NUM_OUTPUT
            logits_TV = oracle.logits(ids + by_name[name])[len(ids) - 1 : -1, :NUM_REAL_TOKENS]
            taken_T = logits_TV.gather(1, torch.tensor(by_name[name])[:, None])[:, 0]
            behind = (logits_TV.amax(1) - taken_T).max().item()
            assert behind < TOLERANCE[dtype], (how, name)
    stop(built.runner)


@pytest.mark.parametrize("kind", ["moe", "dense"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompt_logprobs_are_transformers(
    kind: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{kind}_dir")
    oracle: Oracle = request.getfixturevalue(f"tiny_{kind}_oracle")
    built = build_tiny(folder, dtype, enforce_eager=True)
    ids = prompts(3)["r10"]
    asked = SamplingParams(max_tokens=0, seed=0, num_prompt_logprobs=2)
    outcome = served(
        built.runner, [Request(id="a", prompt_ids=tuple(ids), sampling=asked)], "chunked"
    )
    (delta,) = outcome.deltas["a"]
    expected_TV = oracle.logits(ids)[:, :NUM_REAL_TOKENS].log_softmax(-1)
    for position, entry in enumerate(delta.prompt_logprobs[1:], 1):
        assert entry is not None
        expected = expected_TV[position - 1, ids[position]].item()
        assert entry.logprob == pytest.approx(expected, abs=TOLERANCE[dtype])
    stop(built.runner)


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_deterministic_logprobs_do_not_depend_on_the_batch(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{kind}_dir")
    built = build_tiny(folder, "bfloat16", deterministic=True)
    asked = SamplingParams(max_tokens=20, seed=5, temperature=0.9, num_logprobs=2)
    requests = [
        Request(id=name, prompt_ids=tuple(ids), sampling=asked) for name, ids in prompts(7).items()
    ]
    together = served(built.runner, requests, "together")
    for how in ("chunked", "cached"):
        found = served(built.runner, requests, how)
        for one in requests:
            assert found.ids(one.id) == together.ids(one.id)
            assert [delta.logprobs for delta in found.deltas[one.id]] == [
                delta.logprobs for delta in together.deltas[one.id]
            ]
    for one in requests:
        (alone,) = served(built.runner, [one], "together").deltas.values()
        assert [d.logprobs for d in alone] == [d.logprobs for d in together.deltas[one.id]]
    stop(built.runner)


def lives(count: int, num_tokens: int, seed: int) -> list[Life]:
    rng = random.Random(seed)
    return [
        Life(
            f"r{slot}",
            slot,
            range(3 * slot - 2, 3 * slot + 1),
            [rng.randrange(NUM_REAL_TOKENS) for _ in range(rng.choice([1, 40, 64, 100]))],
            SamplingParams(max_tokens=num_tokens, seed=slot, **COMMON[slot % len(COMMON)]),
        )
        for slot in range(1, count + 1)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_change_no_bit(dtype: str, tiny_moe_dir: Path) -> None:
    """In batches of the graphs' own sizes, where no padding makes another kernel the better one."""
    eager = build_tiny(tiny_moe_dir, dtype, enforce_eager=True).runner
    graphs = build_tiny(tiny_moe_dir, dtype).runner
    assert isinstance(eager, Runner)
    assert isinstance(graphs, Runner)
    for count in (1, 2, 4, 8, 16):
        one, other = lives(count, 20, seed=count), lives(count, 20, seed=count)
        run_all(eager, one)
        run_all(graphs, other)
        assert [life.ids for life in other] == [life.ids for life in one]
        assert [life.entries for life in other] == [life.entries for life in one]
    stop(eager)
    stop(graphs)


def test_padded_graphs_give_the_text_of_their_neighbours(tiny_moe_dir: Path) -> None:
    """Sizes between: whatever the padding does, it touches nobody's pages and states."""
    graphs = build_tiny(tiny_moe_dir, "float32").runner
    assert isinstance(graphs, Runner)
    for count in (3, 5, 11):
        one, other = lives(count, 20, seed=count), lives(count, 20, seed=count)
        run_all(graphs, one)
        run_all(graphs, other)
        assert [life.ids for life in other] == [life.ids for life in one]
    stop(graphs)


@pytest.mark.parametrize("enforce_eager", [True, False])
def test_a_common_step_never_makes_the_host_wait(enforce_eager: bool, tiny_moe_dir: Path) -> None:
    """torch itself watches: what would synchronise raises."""
    runner = build_tiny(tiny_moe_dir, "bfloat16", enforce_eager=enforce_eager).runner
    assert isinstance(runner, Runner)
    sequences = lives(14, 30, seed=0)
    for _ in range(3):  # whatever is made at first use
        plan = plan_step(sequences)
        book(sequences, plan, runner.launch(plan).result())
    with host_must_not_wait():
        plans = [plan_step(sequences) for _ in range(2)]
        handles = [runner.launch(plan) for plan in plans]
        for plan, handle in zip(plans, handles, strict=True):
            book(sequences, plan, handle.result())
    stop(runner)


def stop(runner: Launcher) -> None:
    assert isinstance(runner, Runner)
    runner.stop()
