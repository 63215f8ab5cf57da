"""The runner end to end, on a model in whole numbers."""

import random
import threading
from collections.abc import Sequence

import pytest
import torch

from engine.device_memory import LOGITS_ROWS
from engine.model.inputs import Caches
from engine.plan import PAGE_TOKENS, Admit, StepPlan, StepResult
from engine.request import SamplingParams
from engine.runner.rows import Rows
from engine.runner.runner import Runner
from tests.engine.runner.driver import Life, book, plan_step, run_all
from tests.engine.runner.fake_model import HashModel, tiny_caches
from tests.engine.runner.now import sample

VOCAB, REAL = 120, 100


def solo(model: HashModel, prompt: Sequence[int], sampling: SamplingParams) -> list[int]:
    """The same text from the ids alone: no caches, no batch, no runner."""
    rows = Rows(num_slots=2, num_real_tokens=REAL)
    rows.admit(Admit(1, len(prompt), tuple(prompt), sampling))
    ids = list(prompt)
    while len(ids) < len(prompt) + sampling.max_tokens:
        (token,), _ = sample(rows, model.solo_logits(ids)[-1:].clone(), [1], [len(ids)])
        ids.append(token)
    return ids[len(prompt) :]


def make_runner(num_pages: int = 64, num_slots: int = 8) -> tuple[Runner, HashModel]:
    model = HashModel(VOCAB)
    caches = tiny_caches(VOCAB, num_pages=num_pages, num_slots=num_slots)
    return runner_of(model, caches, num_slots), model


def runner_of(model: HashModel, caches: Caches, num_slots: int) -> Runner:
    return Runner(
        model,
        caches,
        num_slots=num_slots + 1,
        num_real_tokens=REAL,
        max_step_tokens=2048,
        max_model_len=1024,
    )


def samplings(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.randint(1, 12),
        seed=rng.randrange(-(1 << 63), 1 << 63),
        temperature=rng.choice([0, 0.7, 1.0]),
        top_k=rng.choice([0, 0, 5, 20]),
        top_p=rng.choice([1.0, 0.9]),
        min_p=rng.choice([0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        frequency_penalty=rng.choice([0.0, 0.3]),
        bad_words=rng.choice([(), ((1, 2), (3,))]),
        num_logprobs=rng.choice([None, 2]),
    )


@pytest.mark.parametrize("seed", range(4))
def test_mixed_traffic_one_step_ahead_gives_solo_texts(seed: int) -> None:
    rng = random.Random(seed)
    runner, model = make_runner()
    pages = rng.sample(range(1, 65), 64)
    slots = rng.sample(range(1, 9), 8)
    lives = []
    for i, slot in enumerate(slots):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 5, 64, 65, 200]))]
        own = [pages.pop() for _ in range((len(prompt) + 12) // PAGE_TOKENS + 1)]
        lives.append(Life(f"r{i}", slot, own, prompt, samplings(rng), rng.choice([64, 128])))
    run_all(runner, lives, rng)
    for life in lives:
        assert len(life.output) == life.sampling.max_tokens
        assert life.output == solo(model, life.ids[: life.num_prompt], life.sampling)
    runner.stop()


def test_a_preempted_sequence_resumes_with_the_same_text() -> None:
    runner, model = make_runner()
    rng = random.Random(5)
    sampling = SamplingParams(
        max_tokens=30, seed=9, repetition_penalty=1.3, bad_words=((4, 4),), top_k=9
    )
    prompt = [rng.randrange(REAL) for _ in range(100)]
    life = Life("a", 1, (1, 2, 3), prompt, sampling)
    other = Life("b", 1, (3, 2, 1), prompt[:70], sampling)
    for _ in range(10):
        plan = plan_step([life])
        book([life], plan, runner.launch(plan).result())
    assert 0 < len(life.output) < 30
    run_all(runner, [other])  # takes over slot and pages
    life.preempt(5, (9, 2, 7))
    run_all(runner, [life])
    assert life.output == solo(model, prompt, sampling)
    runner.stop()


def test_a_slot_forgets_the_pages_of_its_last_owner() -> None:
    runner, model = make_runner()
    sampling = SamplingParams(max_tokens=8, seed=9, temperature=0)
    first = Life("first", 1, (1, 2), range(70), sampling)
    run_all(runner, [first])
    heir = Life("heir", 1, (3, 4), range(5, 75), sampling)
    neighbour = Life("neighbour", 2, (1, 2), range(9, 79), sampling)
    run_all(runner, [heir, neighbour])
    for life in (first, heir, neighbour):
        assert life.output == solo(model, life.ids[:70], sampling)
    runner.stop()


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_prompt_logprobs_of_a_chunked_prompt(max_tokens: int) -> None:
    runner, model = make_runner()
    rng = random.Random(1)
    prompt = [rng.randrange(REAL) for _ in range(200)]
    sampling = SamplingParams(
        max_tokens=max_tokens, seed=1, temperature=0, num_prompt_logprobs=2, top_p=0.5
    )
    life = Life("a", 2, (3, 4, 5, 6), prompt, sampling, chunk=128)
    run_all(runner, [life])
    assert len(life.scores) == 199  # each token but the first
    assert max(model.num_logits_rows) <= LOGITS_ROWS
    raw_TV = model.solo_logits(prompt)[:, :REAL].log_softmax(-1)
    for position, entry in enumerate(life.scores):
        raw_V = raw_TV[position]
        token = prompt[position + 1]
        assert entry.logprob == pytest.approx(raw_V[token].item(), abs=1e-5)
        assert entry.rank == int((raw_V > raw_V[token]).sum()) + 1
        assert [i for i, _ in entry.top] == raw_V.topk(2).indices.tolist()
    assert len(life.output) == max_tokens
    runner.stop()


def test_lm_head_sees_only_the_rows_that_sample() -> None:
    runner, model = make_runner(num_pages=200, num_slots=100)
    sampling = SamplingParams(max_tokens=5, seed=0)
    lives = [Life(f"r{i}", i, (i,), [i, 3], sampling) for i in range(1, 71)]
    long = Life("long", 90, (80, 81, 82), [1] * 150, sampling)
    runner.step(plan_step([*lives, long]))
    assert model.num_logits_rows == [64, 6]  # the long prompt's first chunk asks for nothing
    runner.stop()


def test_steps_run_in_order_on_one_thread_while_the_host_goes_on() -> None:
    started, release, ran_on = threading.Event(), threading.Event(), list[str]()

    class SlowModel(HashModel):
        def forward(self, inputs, caches):  # type: ignore[no-untyped-def]
            ran_on.append(threading.current_thread().name)
            assert torch.is_inference_mode_enabled()
            started.set()
            release.wait(timeout=60)
            return super().forward(inputs, caches)

    model = SlowModel(VOCAB)
    runner = runner_of(model, tiny_caches(VOCAB, num_pages=4, num_slots=2), 2)
    sampling = SamplingParams(max_tokens=4, seed=3)
    life = Life("a", 1, (1,), [5, 6, 7], sampling)
    plans = [plan_step([life]) for _ in range(4)]
    assert [piece.token_ids for plan in plans[1:] for piece in plan.slices] == [(), (), ()]
    handles = [runner.launch(plan) for plan in plans]
    assert started.wait(timeout=60)
    with pytest.raises(TimeoutError):
        handles[0].result(timeout=0)
    release.set()
    text = [handle.result().token_ids[0] for handle in handles]
    assert text == solo(model, [5, 6, 7], sampling)
    assert len(set(ran_on)) == 1
    assert ran_on[0] != threading.current_thread().name
    runner.stop()


def test_a_failed_step_raises_from_its_handle_and_the_next_admission_is_clean() -> None:
    class Stumbling(HashModel):
        stumbles = False

        def forward(self, inputs, caches):  # type: ignore[no-untyped-def]
            if self.stumbles:
                raise RuntimeError("out of memory")
            return super().forward(inputs, caches)

    model = Stumbling(VOCAB)
    runner = runner_of(model, tiny_caches(VOCAB, num_pages=4, num_slots=2), 2)
    sampling = SamplingParams(max_tokens=4, seed=3, presence_penalty=1.0)
    life = Life("a", 1, (1,), [5, 6, 7], sampling)
    plan = plan_step([life])
    book([life], plan, runner.launch(plan).result())
    model.stumbles = True
    handle = runner.launch(plan_step([life]))
    with pytest.raises(RuntimeError, match="out of memory"):
        handle.result()
    model.stumbles = False
    life.preempt(2, (3,))
    run_all(runner, [life])
    assert life.output == solo(model, [5, 6, 7], sampling)
    runner.stop()


def test_a_step_of_admissions_alone_computes_nothing() -> None:
    runner, _ = make_runner()
    admit = Admit(1, 1, (5,), SamplingParams(max_tokens=1, seed=0))
    assert runner.step(StepPlan((), (admit,))) == StepResult((), ())
    runner.stop()
