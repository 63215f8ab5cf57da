"""Streams and aborts, driven by hand through ASGI: what is sent when, and what is cancelled."""

import asyncio
import json
import threading
from typing import Any

import pytest

from engine import QueueFull
from server.limits import Limits
from server.media_parts import LoadedByKey
from server.protocol import ChatCompletionRequest
from server.tokenizer import Tokenizer
from server.valid import ValidChat
from server.validate import NO_MEDIA, Validator
from tests.fakes import FakeServer, build_server
from tests.server.http.asking import CHAT, COMPLETIONS, Call, chat, say

pytestmark = pytest.mark.anyio
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, chat()),
    (CHAT, chat(stream=True)),
    (CHAT, chat(stream=True, n=3)),
    (COMPLETIONS, {"prompt": ["a", "b"]}),
]


async def active(server: FakeServer, count: int = 1) -> None:
    while server.engine.num_active < count:
        server.engine.became_active.clear()
        await asyncio.wait_for(server.engine.became_active.wait(), 10)


async def test_nothing_is_sent_before_the_first_output(
    server: FakeServer, tokenizer: Tokenizer
) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    (a,), (b,), (end,) = say(tokenizer, "ab")
    server.engine.will(first, (a,), second, (b,), (end,))
    call = Call(server.app, CHAT, chat(stream=True))
    await active(server)
    for _ in range(20):
        await asyncio.sleep(0)
    assert call.sent == []
    first.set()
    await call.until_sent(2)
    assert call.status == 200
    assert b'"content":"a"' in call.body
    assert len(call.sent) == 2
    second.set()
    await call.done()
    assert call.body.endswith(b"data: [DONE]\n\n")
    assert call.sent[-1]["more_body"] is False


async def test_a_late_refusal_is_a_plain_error(server: FakeServer) -> None:
    refuse = asyncio.Event()
    server.engine.will(refuse, QueueFull("x"))
    call = Call(server.app, CHAT, chat(stream=True))
    await active(server)
    refuse.set()
    await call.done()
    assert call.status == 429
    assert call.error["code"] == "queue_full"


async def test_one_refused_choice_ends_the_others(server: FakeServer) -> None:
    server.engine.will(finish=None)
    server.engine.will(QueueFull("x"))
    call = Call(server.app, CHAT, chat(stream=True, n=2))
    await call.done()
    assert call.status == 429
    assert server.engine.num_active == 0
    assert len(server.engine.cancelled) == 1


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("has_output", [False, True])
async def test_a_client_that_goes_away_cancels_its_requests(
    server: FakeServer,
    tokenizer: Tokenizer,
    path: str,
    body: dict[str, Any],
    has_output: bool,
) -> None:
    """While it waits for the first token, and in the middle of the answer."""
    count = 2 if path == COMPLETIONS else body.get("n", 1)
    steps = say(tokenizer, "abc", end=None) if has_output else []
    for _ in range(count):
        server.engine.will(*steps, finish=None)
    call = Call(server.app, path, body)
    await active(server, count)
    for _ in range(50):
        await asyncio.sleep(0)
    assert server.lifecycle.num_in_flight == 1
    call.disconnect()
    await call.done()
    assert sorted(server.engine.cancelled) == sorted(r.id for r in server.engine.submitted)
    assert server.engine.num_active == 0
    assert server.lifecycle.num_in_flight == 0
    assert b"[DONE]" not in call.body
    assert b'"error"' not in call.body


async def test_a_client_that_goes_away_while_it_sends(server: FakeServer) -> None:
    call = Call(server.app, CHAT)
    call.put(b'{"messages"', more=True)
    call.disconnect()
    await call.done()
    assert call.sent == []
    assert server.engine.submitted == []
    assert server.lifecycle.num_in_flight == 0


async def test_a_client_that_goes_away_while_a_send_waits(
    server: FakeServer, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "abc", end=None), finish=None)
    call = Call(server.app, CHAT, chat(stream=True))
    call.gate = asyncio.Event()
    await active(server)
    for _ in range(50):
        await asyncio.sleep(0)
    call.disconnect()
    await call.done()
    assert server.engine.num_active == 0
    assert len(server.engine.cancelled) == 1


class SlowValidator(Validator):
    """Stays in its thread until it is let go."""

    def __init__(self, inner: Validator, gate: threading.Event) -> None:
        self.max_model_len = inner.max_model_len
        self.limits = inner.limits
        self.inner = inner
        self.gate = gate
        self.is_inside = threading.Event()

    def chat(self, request: ChatCompletionRequest, media: LoadedByKey = NO_MEDIA) -> ValidChat:
        self.is_inside.set()
        assert self.gate.wait(10)
        return self.inner.chat(request, media)


async def test_a_client_that_goes_away_while_its_request_is_read(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    slow = SlowValidator(validator, threading.Event())
    server = build_server(slow, tokenizer)
    call = Call(server.app, CHAT, chat())
    assert await asyncio.to_thread(slow.is_inside.wait, 10)
    probe = Call(server.app, "/health", method="GET")  # the loop is free meanwhile
    await probe.done()
    assert probe.status == 200
    call.disconnect()
    await call.done()
    assert server.lifecycle.num_in_flight == 0
    slow.gate.set()
    assert server.engine.submitted == []


async def test_other_requests_do_not_notice(server: FakeServer, tokenizer: Tokenizer) -> None:
    go_on = asyncio.Event()
    server.engine.will(finish=None)
    leaving = Call(server.app, CHAT, chat(stream=True))
    await active(server, 1)
    server.engine.will(go_on, *say(tokenizer, "Fine."))
    staying = Call(server.app, CHAT, chat())
    await active(server, 2)
    leaving.disconnect()
    await leaving.done()
    go_on.set()
    await staying.done()
    assert json.loads(staying.body)["choices"][0]["message"]["content"] == "Fine."


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("has_output", [False, True])
async def test_the_whole_request_has_a_time_limit(
    validator: Validator, tokenizer: Tokenizer, streamed: bool, has_output: bool
) -> None:
    server = build_server(validator, tokenizer, limits=Limits(request_timeout_s=0.05))
    steps = say(tokenizer, "abc", end=None) if has_output else []
    server.engine.will(*steps, finish=None)
    call = Call(server.app, CHAT, chat(stream=streamed))
    await call.done()
    assert len(server.engine.cancelled) == 1
    if streamed and has_output:
        assert call.status == 200
        last = json.loads(call.body.split(b"\n\n")[-2].removeprefix(b"data: "))
        assert last["error"]["code"] == "request_timeout"
        assert b"[DONE]" not in call.body
    else:
        assert call.status == 503
        assert call.error["code"] == "request_timeout"


async def test_draining_refuses_new_work_and_finishes_the_old(
    server: FakeServer, tokenizer: Tokenizer
) -> None:
    go_on = asyncio.Event()
    server.engine.will(go_on, *say(tokenizer, "Fine."))
    running = Call(server.app, CHAT, chat(stream=True))
    await active(server)
    server.lifecycle.begin_drain()
    drained = asyncio.create_task(server.lifecycle.drained())
    for path, method in ((CHAT, "POST"), ("/ready", "GET"), ("/health", "GET")):
        refused = Call(server.app, path, chat(), method=method)
        await refused.done()
        assert refused.status == 503
        assert refused.error["code"] == "draining"
        assert int(refused.header[b"retry-after"]) > 0
    alive = Call(server.app, "/live", method="GET")
    await alive.done()
    assert alive.status == 200
    assert not drained.done()
    go_on.set()
    await running.done()
    await asyncio.wait_for(drained, 10)
    assert running.body.endswith(b"data: [DONE]\n\n")


async def test_what_does_not_drain_ends_with_an_error(
    server: FakeServer, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "abc", end=None), finish=None)
    streamed = Call(server.app, CHAT, chat(stream=True))
    await streamed.until_sent(3)
    server.engine.will(finish=None)
    whole = Call(server.app, CHAT, chat())
    await active(server, 2)
    server.lifecycle.begin_drain()
    server.lifecycle.abort_all()
    await asyncio.wait_for(server.lifecycle.drained(), 10)
    await streamed.done()
    await whole.done()
    assert whole.status == 503
    assert whole.error["code"] == "draining"
    last = json.loads(streamed.body.split(b"\n\n")[-2].removeprefix(b"data: "))
    assert last["error"]["code"] == "draining"
    assert server.engine.num_active == 0


async def test_a_death_of_the_engine_ends_every_request(
    server: FakeServer, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "abc", end=None), finish=None)
    streamed = Call(server.app, CHAT, chat(stream=True))
    await streamed.until_sent(3)
    server.engine.will(finish=None)
    whole = Call(server.app, CHAT, chat())
    await active(server, 2)
    server.engine.die()
    await streamed.done()
    await whole.done()
    assert whole.status == 503
    assert whole.error["code"] == "engine_dead"
    assert b'"code":"engine_dead"' in streamed.body
    health = Call(server.app, "/health", method="GET")
    await health.done()
    assert health.status == 503


async def test_lifespan_is_acknowledged(server: FakeServer) -> None:
    sent: list[Any] = []
    inbox = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(inbox)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await server.app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
