"""Cached prefixes against the fake device: outputs equal lone runs, and what was shared is counted.

The fake device reads each sequence's whole history from its pages and compares it with its state,
so a state that does not belong to its pages, or either of them overwritten, fails every test here.
"""

import random
import time
from dataclasses import dataclass

import pytest

from engine.loop import EngineLoop
from engine.memory import PageKeys, PagePool, PrefixCache, SlotPool, snapshot_points
from engine.plan import PAGE_TOKENS, StepPlan, StepResult
from engine.request import Media, Request, SamplingParams
from tests.engine.inprocess import ScriptedMailbox
from tests.engine.simulation import VOCAB, FakeRunner, Simulation, solo_run
from tests.engine.test_scheduler import assert_idle, assert_whole, make_simulation


def tokens(name: str, count: int) -> tuple[int, ...]:
    rng = random.Random(name)
    return tuple(rng.randrange(VOCAB) for _ in range(count))


def make_request(
    name: str,
    prompt_ids: tuple[int, ...],
    *,
    max_tokens: int = 5,
    boundaries: tuple[int, ...] = (),
    salt: str | None = None,
    scores: bool = False,
    media: tuple[Media, ...] = (),
) -> Request:
    return Request(
        id=name,
        prompt_ids=prompt_ids,
        boundaries=boundaries,
        cache_salt=salt,
        media=media,
        sampling=SamplingParams(
            max_tokens=max_tokens, seed=0, num_prompt_logprobs=0 if scores else None
        ),
    )


def serve(simulation: Simulation, *requests: Request) -> list[int]:
    """Run them together to the end; the cached tokens that each was told."""
    for request in requests:
        simulation.scheduler.submit(request)
    simulation.run()
    for request in requests:
        assert_whole(simulation, request)
    assert_idle(simulation)
    return [simulation.deltas[request.id][0].num_cached_tokens for request in requests]


@pytest.mark.parametrize("seed", range(40))
def test_random_traffic_with_shared_prefixes_equals_lone_runs(seed: int) -> None:
    """40 x 25 traces of conversations that grow, branch, collide, fail and vanish."""
    hits = 0
    for trace in range(25):
        rng = random.Random(seed * 1000 + trace)
        num_slots = rng.randint(1, 6)
        simulation = make_simulation(
            num_pages=rng.randint(9, 40),
            num_slots=num_slots,
            max_step_tokens=num_slots + PAGE_TOKENS * rng.randint(1, 4) + rng.randrange(9),
            num_saved_slots=rng.choice((1, 2, 5, 30)),
            pages_per_state=rng.choice((1, 2, 10)),
            depth=rng.randint(0, 2),
            fails_at=frozenset(rng.sample(range(200), rng.choice((0, 0, 2)))),
        )
        roots = [tokens(f"{seed}.{trace}.{i}", 400) for i in range(2)]
        pending = []
        for i in range(rng.randint(2, 14)):
            shared = rng.choice(roots)[: rng.choice((0, 63, 64, 65, 128, 200, 320))]
            tail = tokens(f"tail{rng.randrange(3)}", rng.choice((1, 1, 30, 64, 100)))
            cuts = sorted(rng.sample(range(1, 300), rng.choice((0, 0, 1, 3))))
            pending.append(
                make_request(
                    f"r{i}",
                    shared + tail,
                    max_tokens=rng.choice((0, 1, 2, 30, 64)),
                    boundaries=tuple(cut for cut in cuts if cut < len(shared + tail)),
                    salt=rng.choice((None, None, "other")),
                    scores=rng.random() < 0.1,
                )
            )
        alive: dict[str, Request] = {}
        cancelled: set[str] = set()
        while pending or simulation.scheduler.has_work or simulation.in_flight:
            while pending and rng.random() < 0.1:
                request = pending.pop()
                simulation.scheduler.submit(request)
                alive[request.id] = request
            if alive and rng.random() < 0.01:
                cancelled.add(name := rng.choice(sorted(alive)))
                simulation.scheduler.cancel(name)
            simulation.step()
        for name, request in alive.items():
            if name in cancelled or name in simulation.failed:
                output = simulation.output(name)
                assert output == solo_run(request)[: len(output)]
            else:
                assert_whole(simulation, request)
                hits += simulation.deltas[name][0].num_cached_tokens > 0
        assert_idle(simulation)
    assert hits > 0


def test_the_same_prompt_again_computes_its_last_page_only() -> None:
    simulation = make_simulation(num_saved_slots=4)
    prompt = tokens("a", 301)
    assert serve(simulation, make_request("first", prompt)) == [0]
    before = simulation.runner.num_computed
    assert serve(simulation, make_request("second", prompt)) == [256]
    assert simulation.runner.num_computed - before == 301 - 256 + 4


def test_a_prompt_of_whole_pages_leaves_its_last_token_to_compute() -> None:
    simulation = make_simulation(num_saved_slots=4)
    prompt = tokens("a", 256)
    serve(simulation, make_request("first", prompt))
    assert serve(simulation, make_request("second", prompt)) == [192]


def test_prompts_that_arrive_together_are_computed_once() -> None:
    simulation = make_simulation(num_saved_slots=4, depth=2)
    prompt = tokens("a", 301)
    choices = [make_request(f"choice{i}", prompt, max_tokens=20) for i in range(4)]
    assert serve(simulation, *choices) == [0, 256, 256, 256]
    assert simulation.runner.num_computed <= 301 + 3 * (301 - 256) + 4 * (19 + 2)


def test_followers_start_when_their_leader_is_cancelled_or_fails() -> None:
    for fails_at in (frozenset[int](), frozenset({1})):
        simulation = make_simulation(num_saved_slots=4, max_step_tokens=128, fails_at=fails_at)
        prompt = tokens("a", 600)
        leader, follower = make_request("leader", prompt), make_request("follower", prompt)
        simulation.scheduler.submit(leader)
        simulation.scheduler.submit(follower)
        simulation.step()
        assert simulation.scheduler.num_running == 1
        simulation.scheduler.cancel("leader")
        simulation.run()
        assert_whole(simulation, follower)
        assert_idle(simulation)


def test_others_pass_a_request_that_waits_for_its_leader() -> None:
    simulation = make_simulation(num_saved_slots=4, max_step_tokens=264)
    prompt = tokens("a", 600)
    simulation.scheduler.submit(make_request("leader", prompt))
    simulation.scheduler.submit(make_request("follower", prompt))
    simulation.scheduler.submit(make_request("stranger", tokens("b", 10)))
    for _ in range(3):
        simulation.step()
    assert {"leader", "stranger"} <= set(simulation.scheduler._running)
    simulation.run()


@dataclass
class SlowRunner:
    """10 ms a step."""

    runner: FakeRunner

    def launch(self, plan: StepPlan) -> "SlowRunner.Step":
        time.sleep(0.01)
        return SlowRunner.Step(self.runner.step(plan))

    @dataclass
    class Step:
        computed: StepResult

        def result(self, timeout: float | None = None) -> StepResult:
            return self.computed


def test_waiting_for_a_leader_is_not_waiting_for_capacity() -> None:
    prompt = tokens("a", 1200)
    mailbox = ScriptedMailbox(
        [(0, make_request(name, prompt)) for name in ("leader", "first", "second")]
    )
    pages = PagePool(60)
    loop = EngineLoop(
        pages,
        SlotPool(3),
        PrefixCache(pages, SlotPool(4, first=4), pages_per_state=1),
        SlowRunner(FakeRunner(60, 3)),
        mailbox,
        max_step_tokens=67,
        max_waiting=9,
        queue_timeout_s=0.05,  # the leader's prompt takes 0.2 s
    )
    while mailbox.arrivals or loop.has_work:
        loop.turn()
    assert not mailbox.failures
    cached = [mailbox.deltas[name][0].num_cached_tokens for name in ("leader", "first", "second")]
    assert cached == [0, 1152, 1152]


def test_another_salt_finds_nothing() -> None:
    simulation = make_simulation(num_saved_slots=8)
    prompt = tokens("a", 200)
    serve(simulation, make_request("none", prompt))
    assert serve(simulation, make_request("one", prompt, salt="one")) == [0]
    assert serve(simulation, make_request("two", prompt, salt="two")) == [0]
    assert serve(simulation, make_request("one again", prompt, salt="one")) == [192]
    assert serve(simulation, make_request("none again", prompt)) == [192]


def test_other_pictures_under_the_same_placeholders_find_nothing() -> None:
    simulation = make_simulation(num_saved_slots=8)
    prompt = tokens("a", 300)

    def asking(name: str, pixels: bytes) -> Request:
        return make_request(name, prompt, media=(Media.of(100, 1, 32, 32, pixels),))

    serve(simulation, asking("red", b"r" * 3072))
    assert serve(simulation, asking("green", b"g" * 3072)) == [0]
    assert serve(simulation, asking("blue", b"b" * 3072)) == [64]  # the page before it
    assert serve(simulation, asking("red again", b"r" * 3072)) == [256]


def test_conversations_find_the_turns_before() -> None:
    simulation = make_simulation(num_saved_slots=8)
    system, question, answer = tokens("s", 150), tokens("q", 100), tokens("a", 100)
    first = make_request("first", system + question, boundaries=(150, 247))
    assert serve(simulation, first) == [0]
    stranger = make_request("stranger", system + tokens("other", 100), boundaries=(150, 247))
    assert serve(simulation, stranger) == [128]  # the system prompt
    turn = make_request("next", (system + question)[:247] + answer, boundaries=(150, 247, 340))
    assert serve(simulation, turn) == [192]


def test_the_third_prompt_of_a_kind_finds_where_the_second_parted() -> None:
    simulation = make_simulation(num_saved_slots=20, pages_per_state=100)
    shared = tokens("a", 640)
    cached = [
        serve(simulation, make_request(name, shared + tokens(name, 640)))[0] for name in "bcd"
    ]
    assert cached == [0, 0, 640]


def test_scoring_a_prompt_takes_nothing_from_the_cache() -> None:
    simulation = make_simulation(num_saved_slots=4)
    prompt = tokens("a", 200)
    serve(simulation, make_request("first", prompt))
    assert serve(simulation, make_request("scored", prompt, scores=True)) == [0]


def test_without_slots_for_states_nothing_is_cached() -> None:
    simulation = make_simulation()
    prompt = tokens("a", 200)
    assert serve(simulation, make_request("first", prompt)) == [0]
    assert serve(simulation, make_request("second", prompt)) == [0]
    assert simulation.scheduler._pages.num_used == 0


def test_cached_pages_are_given_to_whoever_needs_them() -> None:
    simulation = make_simulation(num_pages=12, num_slots=2, num_saved_slots=50)
    for i in range(30):
        serve(simulation, make_request(f"r{i}", tokens(f"{i}", 500), max_tokens=200))
        assert simulation.scheduler.num_preemptions == 0


def test_what_is_used_again_and_again_outlives_what_is_not() -> None:
    simulation = make_simulation(num_pages=200, num_saved_slots=3, pages_per_state=100)
    often = tokens("often", 300)
    for i in range(6):
        serve(simulation, make_request(f"often{i}", often))
    for i in range(6):
        serve(simulation, make_request(f"once{i}", tokens(f"{i}", 300)))
        assert serve(simulation, make_request(f"still{i}", often)) == [256]


def test_the_first_delta_tells_what_was_saved() -> None:
    simulation = make_simulation(num_saved_slots=4)
    prompt = tokens("a", 301)
    serve(simulation, make_request("first", prompt), make_request("second", prompt))
    first, second = (simulation.deltas[name] for name in ("first", "second"))
    assert [delta.num_saved_tokens for delta in first] == [256, 0, 0, 0, 0]
    assert [delta.num_saved_tokens for delta in second] == [0] * 5


def test_a_preempted_sequence_resumes_behind_its_own_saved_state() -> None:
    simulation = make_simulation(num_pages=14, num_slots=3, num_saved_slots=6)
    requests = [make_request(f"r{i}", tokens(f"{i}", 200), max_tokens=150) for i in range(3)]
    for request in requests:
        simulation.scheduler.submit(request)
    simulation.run()
    assert simulation.scheduler.num_preemptions > 0
    computed = sum(200 + 150 for _ in requests)
    assert simulation.runner.num_computed < computed + 200 * simulation.scheduler.num_preemptions
    for request in requests:
        assert_whole(simulation, request)
        assert simulation.deltas[request.id][0].num_cached_tokens == 0
    assert_idle(simulation)


def test_keys_tell_prompts_apart_by_all_that_came_before() -> None:
    keys = PageKeys()
    a, b = tokens("a", 200), tokens("b", 200)
    of_a = keys.of(make_request("x", a))
    assert len(of_a) == len(set(of_a)) == 3
    assert keys.of(make_request("x", a[:150])) == of_a[:2]
    assert keys.of(make_request("x", (a[0] + 1, *a[1:])))[2] != of_a[2]
    assert keys.of(make_request("x", b[:64] + a[64:]))[1] != of_a[1]
    assert keys.of(make_request("x", a[:1])) == []
    assert PageKeys().of(make_request("x", a)) != of_a  # another process, other keys
    assert keys.of(make_request("x", a, salt="")) != of_a


@pytest.mark.parametrize(
    ("num_pages", "boundaries", "num_seen", "pages_per_state", "expected"),
    [
        (0, (), 0, 1, []),
        (1, (), 0, 1, [1]),
        (100, (), 0, 4, [36, 84, 96, 100]),
        (100, (), 30, 1000, [30, 100]),
        (100, (63, 64, 700, 6399, 9000), 0, 4, [1, 10, 99, 100]),
        (100, (63,), 100, 4, [100]),
    ],
)
def test_points(
    num_pages: int,
    boundaries: tuple[int, ...],
    num_seen: int,
    pages_per_state: int,
    expected: list[int],
) -> None:
    points = snapshot_points(
        num_pages, boundaries, num_seen=num_seen, pages_per_state=pages_per_state
    )
    assert points == expected


def test_seen_keys_are_forgotten_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.memory.prefix.MAX_SEEN", 4)
    cache = PrefixCache(PagePool(4), SlotPool(1), pages_per_state=1)
    first, second = [b"1", b"2", b"3"], [b"1", b"4", b"5"]
    assert cache.see(first) == 0
    assert cache.see(second) == 1
    assert cache.see(first) == 2  # b"3" went
