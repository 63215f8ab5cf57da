"""Stored responses: continued, read, listed, deleted; and only by who created them."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from engine import FinishReason
from server.responses import ResponseStore
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer
from tests.server.http.asking import CHAT, PARIS_CALL, WEATHER_TOOL, Call
from tests.server.responses.asking import OFF, ON, RESPONSES, WEATHER, ask, text_of, will_say
from tests.server.responses.wiring import build

pytestmark = pytest.mark.anyio


def client_of(server: FakeServer, key: str | None = None) -> httpx.AsyncClient:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(server.app), base_url="http://test", headers=headers
    )


async def say(
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
    text: str,
    finish: FinishReason = FinishReason.STOP,
    **fields: Any,
) -> dict[str, Any]:
    will_say(server, tokenizer, text, finish)
    response = await client.post(RESPONSES, json=ask(**fields))
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_chain_is_the_conversation_sent_again(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    """Three turns, with reasoning, a call and its output, and instructions of the last only."""
    tools: dict[str, Any] = {"tools": [WEATHER], **ON}
    first = await say(
        server, client, tokenizer, "A\n</think>\n\nHi.", given="Hello", instructions="Old.", **tools
    )
    second = await say(
        server,
        client,
        tokenizer,
        f"B\n</think>\n\nI look.\n\n{PARIS_CALL}",
        given=[{"role": "user", "content": "Weather?"}],
        previous_response_id=first["id"],
        **tools,
    )
    call = second["output"][-1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny"}
    third = await say(
        server,
        client,
        tokenizer,
        "C\n</think>\n\nSunny.",
        given=[result],
        previous_response_id=second["id"],
        instructions="New.",
        **tools,
    )
    assert third["previous_response_id"] == second["id"]
    assert text_of(third) == "Sunny."
    function = {"name": "get_weather", "arguments": call["arguments"]}
    messages = [
        {"role": "system", "content": "New."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi.", "reasoning_content": "A"},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "B",
            "tool_calls": [{"id": call["call_id"], "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call["call_id"], "content": "Sunny"},
    ]
    will_say(server, tokenizer, "C\n</think>\n\nSunny.")
    await client.post(CHAT, json={"messages": messages, "tools": [WEATHER_TOOL], **ON})
    assert server.engine.submitted[2].prompt_ids == server.engine.submitted[3].prompt_ids

    items = (await client.get(f"{RESPONSES}/{third['id']}/input_items?order=asc")).json()["data"]
    outputs = [*first["output"], *second["output"]]
    assert [item for item in items if item["id"] in {o["id"] for o in outputs}] == outputs
    will_say(server, tokenizer, "C\n</think>\n\nSunny.")
    await client.post(RESPONSES, json=ask(items, instructions="New.", **tools))
    assert server.engine.submitted[2].prompt_ids == server.engine.submitted[4].prompt_ids


async def test_a_response_may_be_continued_twice(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    first = await say(server, client, tokenizer, "One.")
    for given in ("Left", "Right"):
        await say(server, client, tokenizer, "Yes.", given=given, previous_response_id=first["id"])
    left, right = (tokenizer.decode(r.prompt_ids) for r in server.engine.submitted[1:])
    assert "One." in left
    assert "Left" in left
    assert left.replace("Left", "Right") == right


async def test_a_cut_response_can_be_continued(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    cut = await say(
        server,
        client,
        tokenizer,
        f"Well.\n\n{PARIS_CALL[:70]}",
        FinishReason.LENGTH,
        tools=[WEATHER],
    )
    assert [item["status"] for item in cut["output"]] == ["completed", "incomplete"]
    await say(server, client, tokenizer, "Hi.", given="Go on", previous_response_id=cut["id"])
    prompt = tokenizer.decode(server.engine.submitted[1].prompt_ids)
    assert "Well.<|im_end|>" in prompt
    assert "tool_call" not in prompt


async def test_references_name_stored_items(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    first = await say(server, client, tokenizer, "Hi.", given="Hello")
    listed = (await client.get(f"{RESPONSES}/{first['id']}/input_items")).json()["data"]
    references = [
        {"type": "item_reference", "id": listed[0]["id"]},
        {"id": first["output"][0]["id"]},
        {"role": "user", "content": "Bye"},
    ]
    second = await say(server, client, tokenizer, "Bye.", given=references)
    chained = await say(
        server, client, tokenizer, "Bye.", given="Bye", previous_response_id=first["id"]
    )
    assert text_of(second) == text_of(chained)
    assert server.engine.submitted[1].prompt_ids == server.engine.submitted[2].prompt_ids
    lost = await client.post(RESPONSES, json=ask([{"type": "item_reference", "id": "msg_x"}]))
    assert lost.status_code == 404
    assert lost.json()["error"]["param"] == "input.0.id"


async def test_an_unknown_previous_response_is_404(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    unstored = await say(server, client, tokenizer, "Hi.", store=False)
    assert unstored["store"] is False
    for name in ("resp_x", unstored["id"]):
        response = await client.post(RESPONSES, json=ask(previous_response_id=name, stream=True))
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["param"] == "previous_response_id"
        assert error["code"] == "previous_response_not_found"
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/input_items"),
        ):
            gone = await client.request(method, f"{RESPONSES}/{name}{path}")
            assert gone.status_code == 404
            assert gone.json()["error"]["param"] == "response_id"


async def test_a_chain_of_what_is_not_stored_leaves_nothing(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    first = await say(server, client, tokenizer, "One.")
    second = await say(
        server, client, tokenizer, "Two.", previous_response_id=first["id"], store=False
    )
    response = await client.post(RESPONSES, json=ask(previous_response_id=second["id"]))
    assert response.status_code == 404


async def test_read_list_delete(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    given = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": [{"type": "input_text", "text": "Three"}], "id": "msg_mine"},
    ]
    created = await say(server, client, tokenizer, "Four.", given=given)
    path = f"{RESPONSES}/{created['id']}"
    assert (await client.get(path)).json() == created
    listed = (await client.get(f"{path}/input_items")).json()
    assert (listed["object"], listed["has_more"]) == ("list", False)
    three, two, one = listed["data"]
    assert (listed["first_id"], listed["last_id"]) == (three["id"], one["id"])
    assert three == {"status": "completed", "type": "message", **given[2]}
    assert one["content"] == [{"type": "input_text", "text": "One"}]
    assert two["content"] == [{"type": "output_text", "text": "Two", "annotations": []}]
    assert one["id"].startswith("msg_")

    page = (await client.get(f"{path}/input_items?order=asc&limit=2")).json()
    assert page["data"] == [one, two]
    assert page["has_more"] is True
    rest = await client.get(f"{path}/input_items?order=asc&limit=2&after={page['last_id']}")
    assert rest.json()["data"] == [three]
    assert rest.json()["has_more"] is False
    for query, param in (
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("order=up", "order"),
        ("order=", "order"),
        ("after=x", "after"),
    ):
        refused = await client.get(f"{path}/input_items?{query}")
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == param
    for stream, status in (("true", 400), ("null", 400), ("", 400), ("false", 200)):
        assert (await client.get(f"{path}?stream={stream}")).status_code == status
    assert (await client.post(f"{path}/cancel")).status_code == 400

    deleted = await client.delete(path)
    assert deleted.json() == {"id": created["id"], "object": "response", "deleted": True}
    assert (await client.get(path)).status_code == 404
    assert (await client.delete(path)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", RESPONSES, 405),
        ("PUT", f"{RESPONSES}/resp_x", 405),
        ("GET", f"{RESPONSES}/resp_x/cancel", 405),
        ("GET", f"{RESPONSES}/", 404),
        ("GET", f"{RESPONSES}/resp_x/", 404),
        ("GET", f"{RESPONSES}/resp_x/other", 404),
    ],
)
async def test_other_routes(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    if status == 405 and path.endswith("resp_x"):
        assert response.headers["allow"] == "DELETE, GET"


async def test_keys_do_not_share_responses(validator: Validator, tokenizer: Tokenizer) -> None:
    server = build(validator, tokenizer, api_keys=("sk-a", "sk-b"))
    async with client_of(server, "sk-a") as a, client_of(server, "sk-b") as b:
        created = await say(server, a, tokenizer, "Hi.")
        path = f"{RESPONSES}/{created['id']}"
        for method, url in (
            ("GET", path),
            ("DELETE", path),
            ("POST", f"{path}/cancel"),
            ("GET", f"{path}/input_items"),
        ):
            assert (await b.request(method, url)).status_code == 404
        other = await b.post(RESPONSES, json=ask(previous_response_id=created["id"]))
        assert other.status_code == 404
        item = {"type": "item_reference", "id": created["output"][0]["id"]}
        assert (await b.post(RESPONSES, json=ask([item]))).status_code == 404
        assert (await a.get(path)).json() == created
        spaced = await b.get(path, headers={"authorization": "bearer  sk-a "})
        assert spaced.json() == created
    async with client_of(server) as nobody:
        assert (await nobody.get(path)).status_code == 401
        assert (await nobody.post(RESPONSES, json=ask())).status_code == 401


async def test_without_keys_all_are_one(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    created = await say(server, client, tokenizer, "Hi.")
    found = await client.get(
        f"{RESPONSES}/{created['id']}", headers={"authorization": "Bearer whatever"}
    )
    assert found.json() == created


async def test_a_server_that_stores_nothing(validator: Validator, tokenizer: Tokenizer) -> None:
    server = build(validator, tokenizer, stores=False)
    async with client_of(server) as client:
        created = await say(server, client, tokenizer, "Hi.")
        assert created["store"] is False
        assert (await client.get(f"{RESPONSES}/{created['id']}")).status_code == 404
        refused = await client.post(RESPONSES, json=ask(previous_response_id=created["id"]))
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "previous_response_id"


async def test_the_bounds_hold(validator: Validator, tokenizer: Tokenizer) -> None:
    store = ResponseStore(max_responses=2)
    server = build(validator, tokenizer, store=store)
    async with client_of(server) as client:
        ids = [(await say(server, client, tokenizer, "Hi."))["id"] for _ in range(3)]
        statuses = [(await client.get(f"{RESPONSES}/{i}")).status_code for i in ids]
    assert statuses == [404, 200, 200]
    assert store.num_responses == 2


async def test_an_aborted_response_is_not_stored(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    store = ResponseStore()
    server = build(validator, tokenizer, store=store)
    server.engine.will((1,), finish=None)
    call = Call(server.app, RESPONSES, {"input": "Hi", "stream": True, **OFF})
    await call.until_sent(2)
    call.disconnect()
    await call.done()
    assert store.num_responses == 0


async def test_the_store_waits_for_no_thread_that_others_hold(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    """Files and pictures are read in the loop's own threads: here all of them hang."""
    is_over = threading.Event()
    busy = ThreadPoolExecutor(1)
    busy.submit(is_over.wait)
    asyncio.get_running_loop().set_default_executor(busy)
    try:
        async with asyncio.timeout(10):
            first = await say(server, client, tokenizer, "Hi.")
            again = await client.get(f"{RESPONSES}/{first['id']}")
            assert again.json()["id"] == first["id"]
            second = await say(server, client, tokenizer, "Yes.", background=True)
            while (await client.get(f"{RESPONSES}/{second['id']}")).json()["status"] != "completed":
                await asyncio.sleep(0)
            gone = await client.delete(f"{RESPONSES}/{first['id']}")
            assert gone.json()["deleted"]
    finally:
        is_over.set()
