import json
import threading
import time

import msgspec
import pytest

from engine import GrammarCompiler
from server.constraints import worker
from server.constraints.checker import (
    Asking,
    GivenUp,
    GrammarChecker,
    KnownGrammars,
    NotCompiled,
    Question,
)
from server.constraints.worker import Answer, Ask, byte_compiler, compiled
from server.errors import BadRequest

GOOD = 'start: "a" | "b"'
# Compiling this takes minutes and gigabytes; clients cannot send it, `normalized` refuses it.
ENDLESS = 'start: %json {"type": "integer", "multipleOf": 100000007}'


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return byte_compiler()


def test_says_what_is_wrong_in_words_of_its_own(checker: GrammarChecker):
    assert checker.check(GOOD, "guided_regex") == GOOD
    for grammar, reason in (
        ("start: nowhere", "it is malformed"),
        ('start: %json {"enum": []}', "nothing fits it"),
        ('start: %json {"oneOf": [{}, {}]}', "it has a oneOf whose branches do not exclude"),
        ("start: T\nT: /a/ & ~/a/", "nothing fits it"),
    ):
        with pytest.raises(BadRequest) as refusal:
            checker.check(grammar, "response_format.json_schema.schema")
        assert refusal.value.message.startswith("response_format.json_schema.schema cannot be used")
        assert reason in refusal.value.message
        assert refusal.value.param == "response_format"


def test_text_that_is_forced_for_ever_is_ended_too():
    checker = GrammarChecker(time_limit_s=0.5, num_workers=1)
    try:
        with pytest.raises(BadRequest, match="takes too long to compile"):
            checker.check('start: "x" T U\nT: /a+/\nU: /a/ & /b/', "x")
        grammar = checker.from_ebnf('start: "x" T U\nT: /a+/\nU: /a/ & /b/', "ebnf")
        assert "no_forcing" in grammar
    finally:
        checker.close()


def test_finds_terminals_that_match_nothing(checker: GrammarChecker):
    grammar = 'start: "x" T\nT: /a+/'
    assert checker.check(grammar, "tools", {"/a+/": "tools.0"}) == grammar
    with pytest.raises(BadRequest, match=r"tools\.1 allows no value"):
        checker.check(grammar, "tools", {"/a+/": "tools.0", "/a/ & /b/": "tools.1"})


def test_a_fault_of_ours_refuses_the_grammar_and_leaves_the_worker(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    asked = [msgspec.msgpack.encode(Ask("x")), msgspec.msgpack.encode(Ask(GOOD)), None]
    answers: list[Answer] = []

    def answer(compiler: GrammarCompiler, ask: Ask) -> Answer:
        if ask.grammar == "x":
            raise ZeroDivisionError
        return compiled(compiler, ask)

    monkeypatch.setattr(worker, "compiled", answer)
    monkeypatch.setattr(worker, "byte_compiler", lambda: compiler)
    monkeypatch.setattr(worker, "read_frame", lambda stream: asked.pop(0))
    monkeypatch.setattr(worker, "write_frame", lambda stream, message: answers.append(message))
    monkeypatch.setattr(worker.os, "nice", lambda more: 0)
    monkeypatch.setattr(worker.resource, "setrlimit", lambda what, limits: None)
    worker.main()
    ready, refusal, good = answers
    assert ready == Answer()
    assert refusal.error == "ZeroDivisionError()"
    assert good == Answer(GOOD)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_worker_that_was_killed_costs_nobody_an_answer():
    checker = GrammarChecker(num_workers=1)
    try:
        checker.check(GOOD, "x")
        process = checker._all[0]._process
        assert process is not None
        process.kill()  # and not yet known to be gone
        assert checker.check('start: "another"', "x") == 'start: "another"'
    finally:
        checker.close()


def test_a_compilation_that_does_not_end_is_ended():
    checker = GrammarChecker(time_limit_s=0.5, num_workers=1)
    try:
        checker.check(GOOD, "x")  # the worker is up
        before = time.monotonic()
        with pytest.raises(BadRequest, match="takes too long to compile"):
            checker.check(ENDLESS, "guided_json")
        assert time.monotonic() - before < 10
    finally:
        checker.close()


def test_the_next_grammar_is_checked_by_a_new_worker():
    checker = GrammarChecker(time_limit_s=2.0, num_workers=1)
    try:
        with pytest.raises(BadRequest):
            checker.check(ENDLESS, "guided_json")
        assert checker.check(GOOD, "x") == GOOD
    finally:
        checker.close()


def test_a_question_that_is_given_up_frees_its_worker():
    checker = GrammarChecker(time_limit_s=60.0, num_workers=1)
    try:
        checker.check(GOOD, "x")  # the worker is up
        asking = Asking()
        left: list[type[Exception]] = []

        def ask() -> None:
            try:
                checker.answer(Question(Ask(ENDLESS), "x"), asking)
            except GivenUp as error:
                left.append(type(error))

        thread = threading.Thread(target=ask)
        thread.start()
        while checker._workers.qsize():  # until the worker has it  # pyright: ignore
            time.sleep(0.005)
        asking.give_up()
        thread.join(timeout=30)
        assert left == [GivenUp]
        assert checker.check('start: "next"', "x") == 'start: "next"'
        with pytest.raises(GivenUp):
            checker.answer(Question(Ask('start: "other"'), "x"), asking)
    finally:
        checker.close()


def test_who_may_not_wait_learns_what_there_is_to_wait_for(checker: GrammarChecker):
    known = KnownGrammars(checker)
    for ask in (
        lambda: known.check('start: "unheard of"', "x"),
        lambda: known.check('start: "x" T\nT: /b+/', "x", {"/b+/": "tools.0"}),
        lambda: known.from_ebnf('root ::= "unheard of"', "x"),
    ):
        with pytest.raises(NotCompiled) as stop:
            ask()
        answer = checker.answer(stop.value.question)
        assert ask() == answer


def test_what_passed_is_not_compiled_again():
    checker = GrammarChecker(num_workers=1)
    ebnf = 'root ::= "x" | "y"'
    lark = checker.from_ebnf(ebnf, "ebnf")
    assert checker.check(GOOD, "x") == GOOD
    checker.close()
    checker._workers.get()  # whoever asks a worker now waits for ever  # pyright: ignore
    assert checker.check(GOOD, "x") == GOOD
    assert checker.from_ebnf(ebnf, "ebnf") == lark


def test_many_threads_share_the_workers(checker: GrammarChecker):
    failures: list[str] = []

    def ask(index: int) -> None:
        grammar = f'start: "{index}" /[a-z]+/'
        if checker.check(grammar, "x") != grammar:
            failures.append(grammar)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "yes" | "no"',
        'root ::= [a-z]+ ("," [a-z]+)*',
        'root ::= "SELECT " name " FROM " name\nname ::= [a-z] [a-z0-9_]{0,9}',
        'start: expr\nexpr: NUMBER | expr "+" NUMBER\nNUMBER: /[0-9]+/',
    ],
)
def test_grammars_of_clients_are_read(compiler: GrammarCompiler, text: str):
    answer = compiled(compiler, Ask(text, is_ebnf=True))
    assert answer.error is None
    assert compiled(compiler, Ask(answer.grammar)) == Answer(answer.grammar)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "root ::= (((",
        "root ::= " + "(" * 100_000,
        "root ::= other",
        "start: start",
        json.dumps({"grammars": []}),
        "\0",
        'root ::= "' + "\\" * 10_001,
        'start: %json {"type": "integer", "minimum": 1' + "0" * 400 + "}",
        'start: %json {"const": 1' + "0" * 5000 + "}",
    ],
)
def test_broken_grammars_are_answered(compiler: GrammarCompiler, text: str):
    assert compiled(compiler, Ask(text, is_ebnf=True)).error is not None
