"""Grammars are compiled in a line of their own: nobody else waits, and who goes away leaves it."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine import ModelConfig
from server.checkpoint_text import CheckpointText
from server.constraints import ConstraintReader, GrammarChecker, GrammarQueue, KnownGrammars
from server.constraints.checker import Asking, Compiles, GivenUp, Question
from server.errors import BadRequest
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer, Script, build_server
from tests.server.http.asking import CHAT, Call, chat, say
from tests.server.http.conftest import WINDOW
from tests.server.http.live import post, serving

pytestmark = pytest.mark.anyio

TOKENIZE = {"prompt": "What is the weather?"}


@dataclass
class FakeChecker:
    """Compiles when the test says so; what begins with "known" it knows."""

    go: threading.Event = field(default_factory=threading.Event)
    begun: list[str] = field(default_factory=list)
    num_busy: int = 0
    num_given_up: int = 0
    passed: set[str] = field(default_factory=set)

    def known(self, question: Question) -> str | None:
        grammar = question.ask.grammar
        return grammar if grammar.startswith("known") or grammar in self.passed else None

    def answer(self, question: Question, asking: Asking | None = None) -> str:
        assert asking is not None
        self.begun.append(question.ask.grammar)
        self.num_busy += 1
        try:
            while not self.go.wait(0.005):
                if asking.is_given_up:
                    self.num_given_up += 1
                    raise GivenUp
        finally:
            self.num_busy -= 1
        if question.ask.grammar.startswith("bad"):
            raise BadRequest("guided_grammar cannot be used", param="guided_grammar")
        self.passed.add(question.ask.grammar)
        return question.ask.grammar


@pytest.fixture
def checker() -> FakeChecker:
    return FakeChecker()


@dataclass
class Making:
    checkpoint: CheckpointText
    model_config: ModelConfig
    tokenizer: Tokenizer

    def server(self, checker: Compiles, **queue: Any) -> FakeServer:
        validator = Validator(
            self.checkpoint.tokenizer,
            self.checkpoint.template,
            self.model_config,
            self.checkpoint.defaults,
            served_names=("tiny",),
            max_model_len=WINDOW,
            constraints=ConstraintReader(KnownGrammars(checker)),
        )
        grammars = GrammarQueue(checker, **queue)
        server = build_server(validator, self.tokenizer, grammars=grammars)
        steps = tuple(say(self.tokenizer, "ab"))
        server.engine.default = lambda request: Script(steps)
        return server


@pytest.fixture
def making(checkpoint: CheckpointText, model_config: ModelConfig, tokenizer: Tokenizer) -> Making:
    return Making(checkpoint, model_config, tokenizer)


def ask(server: FakeServer, grammar: str) -> Call:
    return Call(server.app, CHAT, chat(guided_grammar=grammar))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_requests_without_a_new_grammar_wait_for_none(
    making: Making, checker: FakeChecker
) -> None:
    server = making.server(checker)
    slow = [ask(server, f"slow {index}") for index in range(12)]
    await until(lambda: len(checker.begun) == 2)
    for path, body in (
        ("/tokenize", TOKENIZE),
        (CHAT, chat()),
        (CHAT, chat(guided_grammar="known")),
        (CHAT, chat(guided_regex="(")),
    ):
        call = Call(server.app, path, body)
        await call.done()
        assert call.status == (400 if "guided_regex" in body else 200)
    assert len(checker.begun) == 2
    checker.go.set()
    for call in slow:
        await call.done()
        assert call.status == 200
    assert sorted(checker.begun) == sorted(f"slow {index}" for index in range(12))


async def test_they_are_served_in_the_order_in_which_they_came(
    making: Making, checker: FakeChecker
) -> None:
    server = making.server(checker, num_places=1)
    calls: list[Call] = []
    for index in range(6):
        calls.append(ask(server, f"slow {index}"))
        await until(lambda: server.lifecycle.num_in_flight == len(calls))
        await asyncio.sleep(0.05)  # until it stands in the line
    checker.go.set()
    for call in calls:
        await call.done()
    assert checker.begun == [f"slow {index}" for index in range(6)]


async def test_who_goes_away_gives_the_place_back(making: Making, checker: FakeChecker) -> None:
    server = making.server(checker, num_places=1)
    first = ask(server, "first")
    await until(lambda: checker.begun == ["first"])
    waiting = ask(server, "waiting")
    last = ask(server, "last")
    await until(lambda: server.lifecycle.num_in_flight == 3)
    for call in (waiting, first):
        call.disconnect()
        await call.done()
    await until(lambda: "last" in checker.begun)
    assert checker.num_given_up == 1
    assert checker.num_busy == 1
    checker.go.set()
    await last.done()
    assert last.status == 200
    assert len(server.engine.submitted) == 1


async def test_only_so_many_may_wait(making: Making, checker: FakeChecker) -> None:
    server = making.server(checker, num_places=1, max_waiting=1)
    calls = [ask(server, "first")]
    await until(lambda: checker.begun == ["first"])
    calls += [ask(server, "second"), ask(server, "third")]
    refused: list[Call] = []
    await until(lambda: any(call.task.done() for call in calls))
    refused = [call for call in calls if call.task.done()]
    assert [call.status for call in refused] == [429]
    assert refused[0].error["code"] == "queue_full"
    assert int(refused[0].header[b"retry-after"]) > 0
    checker.go.set()
    for call in calls:
        await call.done()
    assert sorted(call.status for call in calls) == [200, 200, 429]


async def test_nobody_waits_for_ever(making: Making, checker: FakeChecker) -> None:
    server = making.server(checker, num_places=1, limit_s=0.05)
    first = ask(server, "first")
    await until(lambda: checker.begun == ["first"])
    second = ask(server, "second")
    await second.done()
    assert second.status == 503
    assert second.error["code"] == "queue_timeout"
    checker.go.set()
    await first.done()
    assert first.status == 200


async def test_what_does_not_compile_is_refused(making: Making, checker: FakeChecker) -> None:
    checker.go.set()
    server = making.server(checker)
    bad = ask(server, "bad")
    await bad.done()
    assert bad.status == 400
    assert bad.error["param"] == "guided_grammar"
    assert server.engine.submitted == []


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ('start: %json {"type": "integer", "multipleOf": 100000007}', "%json.multipleOf must have"),
        ("start: /[a-z]{1,20000}/", "bounded by more than 10000"),
        ('start: "ab"{0,50000}', "a repetition that is not bounded"),
        ('root ::= "ab"{0,50000}', "a repetition that is not bounded"),
    ],
)
async def test_grammars_past_the_limits_on_a_live_server(
    making: Making, grammar: str, said: str
) -> None:
    checker = GrammarChecker()
    server = making.server(checker)
    good = post(CHAT, chat(guided_grammar='start: "ab"'))
    try:
        async with serving(server) as live:
            before = await live.ask(good)
            assert before.status == 200
            asked = post(CHAT, chat(guided_grammar=grammar))
            bad = [asyncio.create_task(live.ask(asked)) for _ in range(6)]
            counted = await live.ask(post("/tokenize", TOKENIZE))
            assert counted.status == 200
            for reply in await asyncio.wait_for(asyncio.gather(*bad), 15):
                error = reply.check_error(400)
                assert error["param"] == "guided_grammar"
                assert "in line 1 " in error["message"]
                assert said in error["message"]
            after = await live.ask(good)
            assert _answer(after.body) == _answer(before.body)
    finally:
        checker.close()


def _answer(body: bytes) -> Any:
    (choice,) = json.loads(body)["choices"]
    return choice
