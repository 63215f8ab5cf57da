"""A slow grammar holds up its own request, and nobody's steps."""

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest

from engine.grammar import GrammarError, GrammarSpec
from engine.grammar_wait import GrammarWait
from engine.ipc import Cancel, Deltas, Failed, Heartbeat, Submit
from engine.loop import EngineLoop
from engine.memory import PagePool, PrefixCache, SlotPool
from engine.plan import StepPlan, StepResult
from engine.request import Request, SamplingParams
from tests.engine.simulation import FakeRunner, solo_run


@dataclass
class FakeCompiler:
    """Compiles nothing until the test says so."""

    compiling: dict[str, "Future[None]"] = field(default_factory=dict)
    num_kept: int = 0

    def prepare(self, spec: GrammarSpec) -> "Future[None]":
        self.num_kept += 1
        future: Future[None] = Future()
        if spec.grammar == "known":
            future.set_result(None)
        self.compiling[spec.grammar] = future
        return future

    def let_go(self, spec: GrammarSpec) -> None:
        self.num_kept -= 1
        assert self.num_kept >= 0


@dataclass
class Done:
    step: StepResult

    def result(self, timeout: float | None = None) -> StepResult:
        return self.step


@dataclass
class Launcher:
    runner: FakeRunner

    def launch(self, plan: StepPlan) -> Done:
        return Done(self.runner.step(plan))


@dataclass
class Mail:
    arrivals: list[Submit | Cancel] = field(default_factory=list)
    ids: dict[str, list[int]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    heartbeats: list[Heartbeat] = field(default_factory=list)
    patience_s: list[float] = field(default_factory=list)

    def receive(self, timeout_s: float) -> Iterable[Submit | Cancel]:
        self.patience_s.append(timeout_s)
        arrivals, self.arrivals = self.arrivals, []
        return arrivals

    def send(self, message: Deltas | Failed | Heartbeat) -> None:
        match message:
            case Deltas():
                for delta in message.deltas:
                    self.ids.setdefault(delta.request_id, []).extend(delta.token_ids)
                    if delta.finish is not None:
                        self.finished.add(delta.request_id)
            case Failed():
                self.failures[message.request_id] = message.code
            case Heartbeat():
                self.heartbeats.append(message)


class Served:
    """A loop around the fake runner, with a compiler that the test works by hand."""

    def __init__(self, *, max_waiting: int = 8, queue_timeout_s: float = 600.0) -> None:
        self.compiler = FakeCompiler()
        self.mail = Mail()
        pages = PagePool(40)
        self.loop = EngineLoop(
            pages,
            SlotPool(4),
            PrefixCache(pages, SlotPool(0, first=5), pages_per_state=1),
            Launcher(FakeRunner(40, 4)),
            self.mail,
            max_step_tokens=256,
            max_waiting=max_waiting,
            queue_timeout_s=queue_timeout_s,
            grammars=self.compiler,
        )

    def submit(
        self, request_id: str, grammar: str | None = None, max_tokens: int = 6, seats: int = 1
    ) -> Request:
        spec = None if grammar is None else GrammarSpec(grammar=grammar)
        request = Request(
            id=request_id,
            prompt_ids=(1, 2, 3),
            sampling=SamplingParams(max_tokens=max_tokens, seed=0, grammar=spec),
            seats=seats,
        )
        self.mail.arrivals.append(Submit(request))
        return request

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.turn()

    def until_idle(self) -> None:
        while self.loop.has_work:
            self.loop.turn()
        assert self.compiler.num_kept == 0, "grammars of requests that are over are let go"


def test_a_grammar_that_compiles_holds_up_its_own_request_only():
    served = Served()
    bound = served.submit("bound", "slow")
    free = served.submit("free")
    served.turn(20)
    assert served.mail.ids == {"free": solo_run(free)}
    assert served.loop.has_work
    known = served.submit("known", "known")
    served.turn(20)
    assert served.mail.ids["known"] == solo_run(known), "a grammar that is there waits for nothing"
    served.compiler.compiling["slow"].set_result(None)
    served.until_idle()
    assert served.mail.ids["bound"] == solo_run(bound)
    assert served.mail.failures == {}


def test_the_requests_of_one_answer_wait_for_grammars_together_or_not_at_all():
    served = Served(max_waiting=4)
    served.submit("waits", "slow")
    served.submit("four 0", "slow", seats=4)
    for at in range(3):
        served.submit(f"three {at}", f"slow {at}", seats=0 if at else 3)
    served.turn()
    assert served.mail.failures.keys() == {"four 0"}
    served.submit("one too many", "slow")
    served.turn()
    assert served.mail.failures.keys() == {"four 0", "one too many"}
    for grammar in ("slow", "slow 0", "slow 1", "slow 2"):
        served.compiler.compiling[grammar].set_result(None)
    served.until_idle()
    assert len(served.mail.ids) == 4


def test_a_request_that_is_cancelled_leaves_at_once():
    served = Served()
    served.submit("gone", "slow")
    served.turn()
    assert served.compiler.num_kept == 1
    served.mail.arrivals.append(Cancel("gone"))
    served.turn()
    assert not served.loop.has_work
    assert served.compiler.num_kept == 0
    assert served.compiler.compiling["slow"].cancelled()


def test_what_the_compiler_raises_fails_its_request_only():
    served = Served()
    free = served.submit("free", max_tokens=30)
    for name in ("refused", "broken"):
        served.submit(name, name)
    served.turn(3)
    served.compiler.compiling["refused"].set_exception(GrammarError("no"))
    served.compiler.compiling["broken"].set_exception(MemoryError())
    served.until_idle()
    assert served.mail.failures == {"refused": "grammar_stuck", "broken": "internal_error"}
    assert served.mail.ids == {"free": solo_run(free)}


def test_a_grammar_that_takes_too_long_is_given_up():
    compiler = FakeCompiler()
    wait = GrammarWait(compiler, max_waiting=4, max_prepared=4, limit_s=0.0)
    served = Served()
    request = served.submit("late", "slow")
    assert wait.takes(request)
    assert list(wait.ready()) == [], "no thread has begun with it"
    assert compiler.compiling["slow"].set_running_or_notify_cancel()
    assert list(wait.ready()) == []
    ((late, error),) = wait.ready()
    assert late is request
    assert error is not None
    assert error.code == "grammar_too_slow"
    wait.end("late")
    assert compiler.num_kept == 0


def test_who_waits_for_a_grammar_is_bound_by_the_queue_timeout():
    served = Served(queue_timeout_s=0.0)
    served.submit("late", "slow")
    served.turn(2)
    assert served.mail.failures == {"late": "queue_timeout"}
    served.until_idle()


def test_only_so_many_wait_for_grammars():
    served = Served(max_waiting=2)
    for name in ("a", "b", "c"):
        served.submit(name, name)
    free = served.submit("free")
    served.turn(20)
    assert served.mail.failures == {"c": "queue_full"}
    assert served.mail.ids == {"free": solo_run(free)}
    for name in ("a", "b"):
        served.compiler.compiling[name].set_result(None)
    served.until_idle()
    assert served.mail.finished == {"free", "a", "b"}


def test_only_so_many_grammars_are_kept_at_once():
    compiler = FakeCompiler()
    wait = GrammarWait(compiler, max_waiting=9, max_prepared=2)
    served = Served()
    for name in ("a", "b", "c"):
        wait.takes(served.submit(name, name))
    assert list(wait.ready()) == []
    assert list(compiler.compiling) == ["a", "b"]
    compiler.compiling["a"].set_result(None)
    assert [request.id for request, _ in wait.ready()] == ["a"]
    assert list(wait.ready()) == []
    wait.end("a")
    assert list(wait.ready()) == []
    assert list(compiler.compiling) == ["a", "b", "c"]


def test_waiting_is_no_work_that_could_stall():
    served = Served()
    served.submit("bound", "slow")
    served.turn(3)
    (beat, *_) = served.mail.heartbeats
    assert beat.stats.num_waiting == 1
    assert not beat.has_work, "the watcher of steps has nothing to wait for"
    assert 0.0 < served.mail.patience_s[-1] < 0.1, "an idle loop looks for the grammar soon"


@pytest.mark.parametrize("grammar", [None, "slow"])
def test_without_a_compiler_nobody_waits(grammar: str | None):
    wait = GrammarWait(None, max_waiting=1, max_prepared=1)
    assert not wait.takes(Served().submit("it", grammar))
    wait.end("it")
