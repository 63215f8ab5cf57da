"""`background: true`: nobody waits, and yet it runs, can be read, followed and cancelled."""

import asyncio
import re
import time
from typing import Any

import httpx
import openai
import pytest

from engine import EngineDied, FinishReason, QueueFull
from server.limits import Limits
from server.responses import ResponseStore, background
from server.responses.store import StoredResponse
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer
from tests.server.http.asking import Call, say
from tests.server.responses.asking import (
    RESPONSES,
    ask,
    events,
    nameless,
    text_of,
    will_say,
)
from tests.server.responses.wiring import build

pytestmark = pytest.mark.anyio

TERMINAL = ("completed", "failed", "incomplete", "cancelled")


class Held:
    """A background response that says "Hi" and waits before it goes on."""

    def __init__(self, server: FakeServer, tokenizer: Tokenizer) -> None:
        self.go_on = asyncio.Event()
        end = tokenizer.id_of("<|im_end|>")
        assert end is not None
        first, rest = tuple(tokenizer.encode("Hi")), tuple(tokenizer.encode(" there."))
        server.engine.will(first, self.go_on, rest, (end,))


async def create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(RESPONSES, json=ask(background=True, **fields))
    assert response.status_code == 200, response.text
    return response.json()


async def read(client: httpx.AsyncClient, response_id: str) -> dict[str, Any]:
    response = await client.get(f"{RESPONSES}/{response_id}")
    assert response.status_code == 200, response.text
    return response.json()


async def until(client: httpx.AsyncClient, response_id: str, *statuses: str) -> dict[str, Any]:
    for _ in range(500):
        found = await read(client, response_id)
        if found["status"] in statuses:
            return found
        await asyncio.sleep(0.002)
    raise AssertionError(f"still {found['status']}")


async def until_said(client: httpx.AsyncClient, response_id: str, text: str) -> dict[str, Any]:
    for _ in range(500):
        found = await read(client, response_id)
        if text_of(found) == text:
            return found
        await asyncio.sleep(0.002)
    raise AssertionError(f"still {found}")


async def test_it_is_queued_then_runs_then_is_complete(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    held = Held(server, tokenizer)
    queued = await create(client, metadata={"a": "b"})
    assert (queued["status"], queued["background"], queued["output"]) == ("queued", True, [])
    running = await until_said(client, queued["id"], "Hi")
    assert running["status"] == "in_progress"
    assert running["usage"] is None
    held.go_on.set()
    done = await until(client, queued["id"], "completed")
    assert text_of(done) == "Hi there."
    assert done["usage"]["output_tokens"] > 2
    assert {**done, "status": 0, "output": 0, "usage": 0} == {
        **queued, "status": 0, "output": 0, "usage": 0
    }  # fmt: skip
    assert server.lifecycle.num_in_flight == 0


async def test_it_is_the_response_it_would_have_been(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    will_say(server, tokenizer, "Hello.")
    ours = await create(client)
    done = await until(client, ours["id"], *TERMINAL)
    will_say(server, tokenizer, "Hello.")
    plain = (await client.post(RESPONSES, json=ask())).json()
    assert nameless({**done, "background": False}) == nameless(plain)


async def test_it_can_be_continued_and_its_items_listed(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    held = Held(server, tokenizer)
    first = await create(client)
    listed = (await client.get(f"{RESPONSES}/{first['id']}/input_items")).json()["data"]
    assert [item["role"] for item in listed] == ["user"]
    held.go_on.set()
    await until(client, first["id"], "completed")
    will_say(server, tokenizer, "Yes.")
    next_one = await client.post(RESPONSES, json=ask("So?", previous_response_id=first["id"]))
    assert next_one.status_code == 200
    assert "Hi there." in tokenizer.decode(server.engine.submitted[1].prompt_ids)


async def test_what_is_said_to_be_complete_can_be_continued_at_once(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    class Slow(ResponseStore):
        def add(self, response: StoredResponse) -> None:
            time.sleep(0.05)
            super().add(response)

    server = build(validator, tokenizer, store=Slow())
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for fields in ({}, {"stream": True}):
            will_say(server, tokenizer, "Hi.")
            if fields:
                streamed = await client.post(RESPONSES, json=ask(background=True, stream=True))
                response_id = events(streamed.content)[0]["response"]["id"]
            else:
                response_id = (await create(client))["id"]
                await until(client, response_id, "completed")
            will_say(server, tokenizer, "Yes.")
            continued = await client.post(RESPONSES, json=ask(previous_response_id=response_id))
            assert continued.status_code == 200, continued.text


async def test_the_client_that_asked_may_go(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    held = Held(server, tokenizer)
    call = Call(server.app, RESPONSES, ask(background=True, stream=True))
    await call.until_sent(2)
    call.disconnect()
    await call.done()
    created, *_ = events(call.sent[1]["body"])
    assert server.engine.cancelled == []
    held.go_on.set()
    done = await until(client, created["response"]["id"], *TERMINAL)
    assert (done["status"], text_of(done)) == ("completed", "Hi there.")


async def test_a_stream_can_be_taken_up_behind_any_event(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    will_say(server, tokenizer, "Hello there.")
    whole = await client.post(RESPONSES, json=ask(background=True, stream=True))
    found = events(whole.content)
    kinds = [event["type"] for event in found]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    statuses = [event["response"]["status"] for event in found if "response" in event]
    assert statuses == ["queued", "queued", "in_progress", "completed"]
    path = f"{RESPONSES}/{found[0]['response']['id']}"
    again = await client.get(f"{path}?stream=true")
    assert again.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert again.content == whole.content
    for after in range(len(found) + 1):
        rest = await client.get(f"{path}?stream=true&starting_after={after}")
        assert rest.status_code == 200
        expected = [f"event: {e['type']}" for e in found[after + 1 :]]
        assert [line for line in rest.text.split("\n") if line.startswith("event")] == expected
    for wrong in ("-1", "x", "1.5", ""):
        for streams in ("true", "false"):
            refused = await client.get(f"{path}?stream={streams}&starting_after={wrong}")
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "starting_after"


async def test_only_what_was_asked_for_as_a_stream_is_streamed(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    will_say(server, tokenizer, "Hi.")
    made = await create(client)
    refused = await client.get(f"{RESPONSES}/{made['id']}?stream=true")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "stream"


async def test_cancelling_ends_it_and_keeps_what_it_said(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    Held(server, tokenizer)
    made = await create(client)
    await until_said(client, made["id"], "Hi")
    path = f"{RESPONSES}/{made['id']}/cancel"
    cancelled = (await client.post(path)).json()
    assert cancelled["status"] == "cancelled"
    assert text_of(cancelled) == "Hi"
    assert cancelled["output"][0]["status"] == "incomplete"
    assert cancelled["usage"]["output_tokens"] > 0
    assert len(server.engine.cancelled) == 1
    assert (await client.post(path)).json() == cancelled, "cancelling twice is fine"
    assert await read(client, made["id"]) == cancelled


async def test_cancelling_at_once_and_too_late(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    will_say(server, tokenizer, "Hi.")
    made = await create(client)
    cancelled = (await client.post(f"{RESPONSES}/{made['id']}/cancel")).json()
    assert cancelled["status"] in ("cancelled", "completed")
    will_say(server, tokenizer, "Hi.")
    made = await create(client)
    done = await until(client, made["id"], "completed")
    assert (await client.post(f"{RESPONSES}/{made['id']}/cancel")).json() == done
    will_say(server, tokenizer, "Hi.")
    plain = (await client.post(RESPONSES, json=ask())).json()
    refused = await client.post(f"{RESPONSES}/{plain['id']}/cancel")
    assert refused.status_code == 400


async def test_a_cancelled_stream_ends(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    Held(server, tokenizer)
    call = Call(server.app, RESPONSES, ask(background=True, stream=True))
    while b"output_text.delta" not in call.body:
        await call.until_sent(len(call.sent) + 1)
    response_id = events(call.sent[1]["body"])[0]["response"]["id"]
    await client.post(f"{RESPONSES}/{response_id}/cancel")
    await call.done()
    last = events(call.body)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")


async def test_a_deleted_one_ends_and_is_gone(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    Held(server, tokenizer)
    made = await create(client)
    gone = await client.delete(f"{RESPONSES}/{made['id']}")
    assert gone.json() == {"id": made["id"], "object": "response", "deleted": True}
    assert (await client.get(f"{RESPONSES}/{made['id']}")).status_code == 404
    assert server.lifecycle.num_in_flight == 0
    assert server.engine.num_active == 0


@pytest.mark.parametrize(
    ("fault", "code"), [(QueueFull("full"), "queue_full"), (EngineDied("dead"), "engine_dead")]
)
async def test_a_fault_is_told_to_who_asks(
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
    fault: Exception,
    code: str,
) -> None:
    server.engine.will(tuple(tokenizer.encode("Hi")), fault, finish=None)
    made = await create(client)
    failed = await until(client, made["id"], *TERMINAL)
    assert (failed["status"], failed["error"]["code"]) == ("failed", code)
    assert text_of(failed) == "Hi"


async def test_a_bug_of_ours_is_told_without_a_word_of_it(
    server: FakeServer, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    server.engine.will((3,), RuntimeError("secret"), finish=None)
    made = await create(client)
    failed = await until(client, made["id"], *TERMINAL)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "internal_error")
    assert "secret" not in caplog.text + str(failed)
    assert made["id"] in caplog.text


async def test_a_cut_one_is_incomplete(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    will_say(server, tokenizer, "Hi", FinishReason.LENGTH)
    made = await create(client)
    cut = await until(client, made["id"], *TERMINAL)
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_bad_request_is_refused_at_once(client: httpx.AsyncClient) -> None:
    response = await client.post(RESPONSES, json=ask(background=True, temperature=9))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "temperature")


async def test_shutting_down_waits_for_it_and_then_cancels_it(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    Held(server, tokenizer)
    made = await create(client)
    await until_said(client, made["id"], "Hi")
    server.lifecycle.begin_drain()
    drained = asyncio.create_task(server.lifecycle.drained())
    await asyncio.sleep(0.01)
    assert not drained.done()
    server.lifecycle.abort_all()
    await asyncio.wait_for(drained, 5)
    assert (await read(client, made["id"]))["status"] == "cancelled"
    refused = await client.post(RESPONSES, json=ask(background=True))
    assert refused.status_code == 503


async def test_it_takes_no_longer_than_any_request(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    server = build(validator, tokenizer, limits=Limits(request_timeout_s=0.5))
    Held(server, tokenizer)
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        made = await create(client)
        failed = await until(client, made["id"], *TERMINAL)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "request_timeout")


async def test_it_is_its_owners_only(validator: Validator, tokenizer: Tokenizer) -> None:
    server = build(validator, tokenizer, api_keys=["one", "two"])
    Held(server, tokenizer)
    transport = httpx.ASGITransport(server.app)
    one, two = (
        httpx.AsyncClient(
            transport=transport, base_url="http://test", headers={"authorization": f"Bearer {key}"}
        )
        for key in ("one", "two")
    )
    made = await create(one)
    path = f"{RESPONSES}/{made['id']}"
    for asked in (
        two.get(path), two.get(f"{path}?stream=true"), two.post(f"{path}/cancel"), two.delete(path)
    ):  # fmt: skip
        assert (await asked).status_code == 404
    assert (await read(one, made["id"]))["status"] in ("queued", "in_progress")
    assert (await one.delete(path)).status_code == 200


async def test_other_processes_know_of_it_before_its_client_does(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    class Shared(ResponseStore):
        """A store that other processes can ask, too."""

        def __init__(self) -> None:
            super().__init__()
            self.told: list[str] = []

        def began(self, response_id: str) -> None:
            self.told.append(response_id)

    store = Shared()
    server = build(validator, tokenizer, store=store)
    held = Held(server, tokenizer)
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        made = await create(client)
        assert store.told == [made["id"]]
        held.go_on.set()
        await until(client, made["id"], "completed")


async def test_the_number_of_jobs_is_bounded(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    for _ in range(Limits().max_background):
        Held(server, tokenizer)
    made = [await create(client) for _ in range(Limits().max_background)]
    refused = await client.post(RESPONSES, json=ask(background=True))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    for response in made:
        await client.delete(f"{RESPONSES}/{response['id']}")
    assert server.engine.num_active == 0


async def test_the_oldest_events_go_when_there_are_too_many(
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "MAX_LOG_BYTES", 3000)
    begin = asyncio.Event()
    server.engine.will(begin, *say(tokenizer, "Hello there, this is a long answer."))
    call = Call(server.app, RESPONSES, ask(background=True, stream=True))
    await call.until_sent(2)
    created, *_ = events(call.sent[1]["body"])
    response_id = created["response"]["id"]
    begin.set()
    await until(client, response_id, "completed")
    await call.done()  # it may have fallen behind, too
    path = f"{RESPONSES}/{response_id}?stream=true"
    refused = await client.get(path)
    assert refused.status_code == 400
    assert "earlier events are not kept" in refused.json()["error"]["message"]
    first = re.search(r"at least (\d+)", refused.json()["error"]["message"])
    assert first is not None
    last = await client.get(f"{path}&starting_after={first[1]}")
    assert "event: response.completed" in last.text


async def test_ended_jobs_are_kept_for_a_while(
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    will_say(server, tokenizer, "Hi.")
    found = events((await client.post(RESPONSES, json=ask(background=True, stream=True))).content)
    response_id = found[0]["response"]["id"]
    path = f"{RESPONSES}/{response_id}"
    for _ in range(100):
        before = await read(client, response_id)
        monkeypatch.setattr(background, "KEPT_S", -1.0)
        stored = await client.get(path)
        if stored.status_code == 200:
            break
        monkeypatch.setattr(background, "KEPT_S", 600.0)
        await asyncio.sleep(0.01)
    assert stored.json() == before == found[-1]["response"]
    refused = await client.get(f"{path}?stream=true")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")
    assert (await client.post(f"{path}/cancel")).json() == before


async def test_the_sdk_does_all_of_it(server: FakeServer, tokenizer: Tokenizer) -> None:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(server.app))
    client = openai.AsyncOpenAI(api_key="x", base_url="http://test/v1", http_client=http)
    Held(server, tokenizer)
    response = await client.responses.create(model="tiny", input="Hi", background=True)
    assert response.status == "queued"
    await server.engine.became_active.wait()
    assert (await client.responses.cancel(response.id)).status == "cancelled"
    will_say(server, tokenizer, "A\n</think>\n\nHello.")
    stream = await client.responses.create(model="tiny", input="Hi", background=True, stream=True)
    seen = [event async for event in stream]
    assert seen[0].type == "response.created"
    response_id = seen[0].response.id
    cursor = seen[4].sequence_number
    rest = await client.responses.retrieve(response_id, stream=True, starting_after=cursor)
    assert [event async for event in rest] == seen[5:]
    assert (await client.responses.retrieve(response_id)).output_text == "Hello."
