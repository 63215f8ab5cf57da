"""The scheduler against a fake device: whatever happens, each output equals a lone run."""

import random

import pytest

from engine.errors import QueueFull, RequestTooLong
from engine.memory import PagePool, PrefixCache, SlotPool, pages_for
from engine.plan import PAGE_TOKENS
from engine.request import FinishReason, Request, SamplingParams
from engine.scheduler import MAX_PREEMPTIONS, Scheduler
from tests.engine.simulation import STOP_ID, VOCAB, FakeRunner, Simulation, solo_run


def make_request(
    name: str,
    num_prompt: int,
    max_tokens: int,
    *,
    rng: random.Random | None = None,
    priority: int = 0,
    stops: bool = False,
    scores: bool = False,
    seats: int = 1,
) -> Request:
    rng = rng or random.Random(name)
    return Request(
        id=name,
        prompt_ids=tuple(rng.randrange(VOCAB) for _ in range(num_prompt)),
        priority=priority,
        seats=seats,
        sampling=SamplingParams(
            max_tokens=max_tokens,
            seed=0,
            stop_token_ids=(STOP_ID,) if stops else (),
            num_prompt_logprobs=0 if scores else None,
        ),
    )


def make_simulation(
    *,
    num_pages: int = 100,
    num_slots: int = 8,
    max_step_tokens: int = 256,
    max_waiting: int = 1000,
    num_saved_slots: int = 0,
    pages_per_state: int = 1,
    depth: int = 1,
    fails_at: frozenset[int] = frozenset(),
    guilty: frozenset[str] = frozenset(),
    guilty_from: int = 0,
    preempts: bool = True,
) -> Simulation:
    pages = PagePool(num_pages)
    saved_slots = SlotPool(num_saved_slots, first=num_slots + 1)
    scheduler = Scheduler(
        pages,
        SlotPool(num_slots),
        PrefixCache(pages, saved_slots, pages_per_state=pages_per_state),
        max_step_tokens=max_step_tokens,
        max_waiting=max_waiting,
        preempts=preempts,
    )
    runner = FakeRunner(num_pages, num_slots, fails_at, guilty, guilty_from)
    return Simulation(scheduler, runner, depth=depth)


def assert_whole(simulation: Simulation, request: Request) -> None:
    """The request ended once, with the tokens and prompt scores of a lone run."""
    deltas = simulation.deltas[request.id]
    expected = solo_run(request)
    assert simulation.output(request.id) == expected
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    stopped = bool(expected) and expected[-1] in request.sampling.stop_token_ids
    assert deltas[-1].finish == (FinishReason.STOP if stopped else FinishReason.LENGTH)
    if request.sampling.num_prompt_logprobs is not None:
        ranks = tuple(None if s is None else s.rank for s in deltas[0].prompt_logprobs)
        assert ranks == (None, *request.prompt_ids[1:])
    assert all(not delta.prompt_logprobs for delta in deltas[1:])


def assert_idle(simulation: Simulation) -> None:
    simulation.scheduler.check()
    assert simulation.scheduler.num_pages_used == 0
    assert simulation.scheduler._slots.num_used == 0
    assert not simulation.scheduler._coming
    assert not simulation.scheduler._saving


@pytest.mark.parametrize("seed", range(40))
def test_random_traffic_equals_lone_runs(seed: int) -> None:
    """40 x 50 random traces: arrivals, cancels, failures, priorities and preemption, all mixed."""
    for trace in range(50):
        rng = random.Random(seed * 1000 + trace)
        num_slots = rng.randint(1, 6)
        simulation = make_simulation(
            num_pages=rng.randint(6, 24),
            num_slots=num_slots,
            max_step_tokens=num_slots + PAGE_TOKENS * rng.randint(1, 4) + rng.randrange(9),
            depth=rng.randint(0, 2),
            fails_at=frozenset(rng.sample(range(200), rng.choice((0, 0, 2)))),
        )
        pending = [
            make_request(
                f"r{i}",
                rng.choice((1, 2, 63, 64, 65, 100, 200, rng.randint(1, 320))),
                rng.choice((0, 1, 2, 30, 64, rng.randint(0, 60))),
                rng=rng,
                priority=rng.choice((0, 0, 0, 1, -1)),
                stops=rng.random() < 0.5,
                scores=rng.random() < 0.3,
            )
            for i in range(rng.randint(1, 12))
        ]
        alive: dict[str, Request] = {}
        cancelled: set[str] = set()
        while pending or simulation.scheduler.has_work or simulation.in_flight:
            while pending and rng.random() < 0.3:
                request = pending.pop()
                simulation.scheduler.submit(request)
                alive[request.id] = request
            if alive and rng.random() < 0.01:
                cancelled.add(name := rng.choice(sorted(alive)))
                seen = len(simulation.deltas.get(name, []))
                simulation.scheduler.cancel(name)
                simulation.step()
                assert len(simulation.deltas.get(name, [])) == seen
            simulation.step()
        for name, request in alive.items():
            if name in cancelled or name in simulation.failed:
                output = simulation.output(name)
                assert output == solo_run(request)[: len(output)]
            else:
                assert_whole(simulation, request)
        assert_idle(simulation)


def test_prefills_and_decodes_mix_in_one_step() -> None:
    simulation = make_simulation()
    simulation.scheduler.submit(make_request("first", 10, 50))
    for _ in range(3):
        simulation.step()
    simulation.scheduler.submit(make_request("second", 100, 5))
    plan = simulation.scheduler.plan()
    assert plan is not None
    assert [(part.request_id, part.decodes, part.num_tokens) for part in plan.slices] == [
        ("first", True, 1),
        ("second", False, 100),
    ]


def test_prefill_is_cut_on_the_page_grid_within_the_budget() -> None:
    simulation = make_simulation(max_step_tokens=200, num_slots=2)
    simulation.scheduler.submit(make_request("long", 500, 1))
    cuts: list[tuple[int, int, bool]] = []
    while (plan := simulation.scheduler.plan()) is not None:
        cuts += [(part.start, part.num_tokens, part.samples) for part in plan.slices]
    assert cuts == [(0, 192, False), (192, 192, False), (384, 116, True)]


def test_next_step_is_planned_before_the_last_token_is_known() -> None:
    simulation = make_simulation()
    simulation.scheduler.submit(make_request("a", 3, 3))
    plans = [simulation.scheduler.plan() for _ in range(4)]
    slices = [plan.slices[0] for plan in plans if plan is not None]
    assert [part.token_ids for part in slices[1:]] == [(), ()]
    assert [part.start for part in slices] == [0, 3, 4]
    assert plans[3] is None


def test_a_stop_token_frees_memory_though_the_next_step_runs_already() -> None:
    request = make_request("a", 5, 400, stops=True)
    assert len(solo_run(request)) < 400
    simulation = make_simulation(depth=2)
    simulation.scheduler.submit(request)
    simulation.run()
    assert_whole(simulation, request)
    assert_idle(simulation)


def test_preemption_takes_the_youngest_and_loses_nothing() -> None:
    simulation = make_simulation(num_pages=7, num_slots=3)
    requests = [make_request(f"r{i}", 60, 190) for i in range(3)]
    for request in requests:
        simulation.scheduler.submit(request)
    preempted_first: str | None = None
    while simulation.scheduler.has_work or simulation.in_flight:
        simulation.step()
        if simulation.scheduler.num_preemptions and preempted_first is None:
            preempted_first = simulation.scheduler._waiting[0].request.id
    assert preempted_first == "r2"
    for request in requests:
        assert_whole(simulation, request)
    assert_idle(simulation)


def test_who_may_not_preempt_waits_for_the_memory_of_a_whole_life() -> None:
    simulation = make_simulation(num_pages=7, num_slots=3, preempts=False)
    requests = [make_request(f"r{i}", 60, 190) for i in range(3)]
    for request in requests:
        simulation.scheduler.submit(request)
    simulation.step()
    assert simulation.scheduler.num_running == 1  # of 4 pages each
    simulation.run()
    assert simulation.scheduler.num_preemptions == 0
    for request in requests:
        assert_whole(simulation, request)
    assert_idle(simulation)


def test_no_sequence_is_preempted_more_often_than_the_bound() -> None:
    simulation = make_simulation(num_pages=6, num_slots=6, max_step_tokens=512)
    requests = [make_request(f"r{i}", 5, 300) for i in range(6)]
    for request in requests:
        simulation.scheduler.submit(request)
    most = 0
    while simulation.scheduler.has_work or simulation.in_flight:
        simulation.step()
        alive = [*simulation.scheduler._running.values(), *simulation.scheduler._waiting]
        most = max([most, *(seq.num_preemptions for seq in alive)])
    assert 0 < most <= MAX_PREEMPTIONS
    for request in requests:
        assert_whole(simulation, request)


def test_cancel_frees_pages_and_slot_at_once() -> None:
    simulation = make_simulation()
    for name in ("a", "b"):
        simulation.scheduler.submit(make_request(name, 100, 100))
    simulation.step()
    simulation.scheduler.cancel("a")
    simulation.scheduler.check()
    assert simulation.scheduler._slots.num_used == 1
    simulation.scheduler.cancel("b")
    simulation.scheduler.cancel("b")
    simulation.scheduler.cancel("never seen")
    assert_idle(simulation)
    simulation.run()
    assert simulation.deltas == {}


def test_a_request_that_can_never_fit_is_refused() -> None:
    simulation = make_simulation(num_pages=4)
    simulation.scheduler.submit(make_request("fits", 200, 56))
    with pytest.raises(RequestTooLong, match="257 tokens"):
        simulation.scheduler.submit(make_request("too long", 200, 57))


def test_the_queue_is_bounded_and_preempted_sequences_do_not_count() -> None:
    simulation = make_simulation(num_slots=1, max_waiting=2)
    for name in ("runs", "waits"):
        simulation.scheduler.submit(make_request(name, 10, 10))
    simulation.step()
    simulation.scheduler.submit(make_request("waits too", 10, 10))
    with pytest.raises(QueueFull):
        simulation.scheduler.submit(make_request("one too many", 10, 10))
    running = simulation.scheduler._running["runs"]
    simulation.scheduler._preempt(running)
    simulation.scheduler.cancel("waits")
    simulation.scheduler.submit(make_request("fits again", 10, 10))
    simulation.run()
    assert_idle(simulation)


def test_the_requests_of_one_answer_are_let_in_together_or_not_at_all() -> None:
    simulation = make_simulation(num_slots=1, max_waiting=4)
    simulation.scheduler.submit(make_request("waits", 10, 10))
    with pytest.raises(QueueFull):
        simulation.scheduler.submit(make_request("four 0", 10, 10, seats=4))
    simulation.scheduler.submit(make_request("three 0", 10, 10, seats=3))
    with pytest.raises(QueueFull):  # though only two wait by now
        simulation.scheduler.submit(make_request("three more 0", 10, 10, seats=3))
    simulation.scheduler.submit(make_request("another", 10, 10))
    for name in ("three 1", "three 2"):  # whose places were found for them
        simulation.scheduler.submit(make_request(name, 10, 10, seats=0))
    simulation.run()
    assert_idle(simulation)
    assert len(simulation.deltas) == 5


def test_lower_priority_numbers_run_first() -> None:
    simulation = make_simulation(num_slots=1)
    for name, priority in (("now", 0), ("late", 5), ("urgent", -1), ("normal", 0)):
        simulation.scheduler.submit(make_request(name, 10, 2, priority=priority))
    simulation.run()
    assert list(simulation.deltas) == ["urgent", "now", "normal", "late"]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_step_that_fails_once_costs_nobody(depth: int) -> None:
    requests = [make_request(f"r{i}", 70, 20) for i in range(4)]
    simulation = make_simulation(fails_at=frozenset({6}), depth=depth)
    for request in requests:
        simulation.scheduler.submit(request)
    simulation.run()
    assert simulation.failed == set()
    for request in requests:
        assert_whole(simulation, request)
    assert_idle(simulation)
    assert simulation.scheduler.num_preemptions == 0


@pytest.mark.parametrize("guilty", range(5))
@pytest.mark.parametrize("guilty_from", [0, 69, 70, 80])
def test_a_request_that_makes_steps_fail_is_found(guilty: int, guilty_from: int) -> None:
    """In its prompt, at its first token, and later; nobody else loses a token or gets one twice."""
    requests = [make_request(f"r{i}", 70, 20) for i in range(5)]
    simulation = make_simulation(
        guilty=frozenset({f"r{guilty}"}), guilty_from=guilty_from, max_step_tokens=400
    )
    for request in requests:
        simulation.scheduler.submit(request)
    simulation.run()
    assert simulation.failed == {f"r{guilty}"}
    for request in requests:
        if request.id not in simulation.failed:
            assert_whole(simulation, request)
    assert_idle(simulation)
    assert simulation.runner.num_steps < 60


@pytest.mark.parametrize("seed", range(40))
def test_random_guilty_requests_are_all_that_fail(seed: int) -> None:
    """40 x 25 traces with arrivals, cancels, preemption and cached prefixes among the faults."""
    num_failed = 0
    for trace in range(25):
        rng = random.Random(seed * 1000 + trace)
        num_slots = rng.randint(1, 6)
        requests = [
            make_request(
                f"r{i}",
                rng.choice((1, 63, 64, 65, 100, rng.randint(1, 250))),
                rng.choice((0, 1, 2, 30, rng.randint(0, 60))),
                rng=random.Random(rng.randrange(3)),  # some begin alike
                priority=rng.choice((0, 0, 1)),
                scores=rng.random() < 0.2,
            )
            for i in range(rng.randint(2, 10))
        ]
        guilty = frozenset(f"r{i}" for i in range(len(requests)) if rng.random() < 0.3)
        guilty_from = rng.choice((0, 0, 64, 100))
        simulation = make_simulation(
            num_pages=rng.randint(6, 24),
            num_slots=num_slots,
            max_step_tokens=num_slots + PAGE_TOKENS * rng.randint(1, 4) + rng.randrange(9),
            num_saved_slots=rng.choice((0, 3, 20)),
            depth=rng.randint(0, 2),
            guilty=guilty,
            guilty_from=guilty_from,
        )
        pending, alive, cancelled = list(requests), set[str](), set[str]()
        while pending or simulation.scheduler.has_work or simulation.in_flight:
            while pending and rng.random() < 0.2:
                request = pending.pop()
                simulation.scheduler.submit(request)
                alive.add(request.id)
            if alive and rng.random() < 0.01:
                cancelled.add(name := rng.choice(sorted(alive)))
                simulation.scheduler.cancel(name)
            simulation.step()
        assert simulation.failed <= guilty
        num_failed += len(simulation.failed)
        for request in requests:
            if request.id in cancelled | simulation.failed:
                output = simulation.output(request.id)
                assert output == solo_run(request)[: len(output)]
            else:
                assert_whole(simulation, request)
                assert request.id not in guilty or request.max_total_tokens <= guilty_from + 1
        assert_idle(simulation)
    assert num_failed > 0


def test_scoring_a_prompt_needs_no_output_token() -> None:
    request = make_request("score", 150, 0, scores=True)
    simulation = make_simulation(max_step_tokens=72)
    simulation.scheduler.submit(request)
    simulation.run()
    assert_whole(simulation, request)
    assert_idle(simulation)


def test_after_the_bound_a_sequence_comes_back_with_its_whole_life_in_hand() -> None:
    often, other = make_request("often", 10, 300), make_request("other", 10, 300)
    simulation = make_simulation(num_pages=8, num_slots=2)
    simulation.scheduler.submit(often)
    for _ in range(MAX_PREEMPTIONS):
        simulation.step()
        sequence = simulation.scheduler._running["often"]
        assert len(sequence.pages) == 1
        simulation.scheduler._preempt(sequence)
    simulation.step()
    assert len(simulation.scheduler._running["often"].pages) == pages_for(often.max_total_tokens)
    simulation.scheduler.submit(other)  # cannot grow to its end beside the first
    simulation.run()
    assert simulation.scheduler.num_preemptions > MAX_PREEMPTIONS
    for request in (often, other):
        assert_whole(simulation, request)
