"""POST /v1/responses: exact event sequences, and what is answered whole."""

import asyncio
from typing import Any

import httpx
import pytest

from engine import EngineDied, FinishReason, QueueFull
from server.limits import Limits
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer
from tests.server.http.asking import PARIS_CALL, ROME_CALL, Call, say
from tests.server.responses.asking import (
    ON,
    RESPONSES,
    WEATHER,
    ask,
    events,
    nameless,
    text_of,
    will_say,
)
from tests.server.responses.wiring import build

pytestmark = pytest.mark.anyio

OPENING = ["response.created", "response.in_progress"]
MESSAGE_START = ["response.output_item.added", "response.content_part.added"]
MESSAGE_END = [
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
CALL_END = ["response.function_call_arguments.done", "response.output_item.done"]
PARIS = '{"city": "Paris", "days": 3}'


async def stream(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    response = await client.post(RESPONSES, json=ask(stream=True, **fields))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return events(response.content)


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in found]


async def test_a_stream_of_text_is_these_events(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    assert len(tokenizer.encode("ab")) == 2
    will_say(server, tokenizer, "ab", num_cached_tokens=3, num_saved_tokens=7)
    found = await stream(client, model="alias", metadata={"a": "b"}, instructions="Be brief.")
    final = found[-1]["response"]
    item_id = final["output"][0]["id"]
    num_prompt = len(server.engine.submitted[0].prompt_ids)
    begun = {
        "id": final["id"],
        "object": "response",
        "created_at": final["created_at"],
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "background": False,
        "instructions": "Be brief.",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "model": "alias",
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
        "output": [],
        "usage": None,
    }
    part = {"type": "output_text", "text": "ab", "annotations": [], "logprobs": []}
    message = {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    usage = {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 7},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_prompt + 3,
    }
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    assert [{k: v for k, v in event.items() if k != "sequence_number"} for event in found] == [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**message, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        {"type": "response.output_text.delta", **place, "delta": "a", "logprobs": []},
        {"type": "response.output_text.delta", **place, "delta": "b", "logprobs": []},
        {"type": "response.output_text.done", **place, "text": "ab", "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": message},
        {
            "type": "response.completed",
            "response": {**begun, "status": "completed", "output": [message], "usage": usage},
        },
    ]
    assert final["id"].startswith("resp_")
    assert item_id.startswith("msg_")


async def test_a_stream_of_reasoning_text_and_calls_is_these_events(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    text = f"Hm.\n</think>\n\nI look.\n\n{PARIS_CALL}\n{ROME_CALL}\nDone."
    will_say(server, tokenizer, text, group=1000)
    found = await stream(client, tools=[WEATHER], **ON)
    assert kinds(found) == [
        *OPENING,
        "response.output_item.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.output_item.done",
        *MESSAGE_START,
        "response.output_text.delta",
        *MESSAGE_END,
        "response.output_item.added",
        "response.function_call_arguments.delta",
        *CALL_END,
        "response.output_item.added",
        "response.function_call_arguments.delta",
        *CALL_END,
        *MESSAGE_START,
        "response.output_text.delta",
        *MESSAGE_END,
        "response.completed",
    ]
    final = found[-1]["response"]
    reasoning, first, paris, rome, last = final["output"]
    assert reasoning == {
        "id": reasoning["id"],
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
        "status": "completed",
    }
    assert paris == {
        "id": paris["id"],
        "type": "function_call",
        "status": "completed",
        "call_id": paris["call_id"],
        "name": "get_weather",
        "arguments": PARIS,
    }
    assert rome["arguments"] == PARIS.replace("Paris", "Rome")
    assert [item["content"][0]["text"] for item in (first, last)] == ["I look.", "\nDone."]
    prefixes = [item["id"].partition("_")[0] for item in final["output"]]
    assert prefixes == ["rs", "msg", "fc", "fc", "msg"]
    assert len({paris["call_id"], rome["call_id"]}) == 2
    assert paris["call_id"].startswith("call_")
    num_reasoning = final["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert num_reasoning == len(tokenizer.encode("Hm.\n"))
    done = [e for e in found if e["type"] == "response.function_call_arguments.done"]
    assert [(e["name"], e["arguments"]) for e in done] == [
        ("get_weather", paris["arguments"]),
        ("get_weather", rome["arguments"]),
    ]


def check_items(found: list[dict[str, Any]]) -> None:
    """Items come one after another; their deltas, their `done` and the final object agree."""
    final = found[-1]["response"]
    assert [e["item"] for e in found if e["type"].endswith("output_item.done")] == final["output"]
    for index, item in enumerate(final["output"]):
        mine = [e for e in found if e.get("output_index") == index]
        assert mine == found[found.index(mine[0]) : found.index(mine[-1]) + 1]
        assert mine[0]["type"] == "response.output_item.added"
        assert mine[0]["item"]["status"] == "in_progress"
        assert {e["item_id"] for e in mine[1:-1]} == {item["id"]} == {mine[0]["item"]["id"]}
        joined = "".join(e["delta"] for e in mine if e["type"].endswith(".delta"))
        done = next(e for e in mine if e["type"].endswith(("text.done", "arguments.done")))
        whole = item["arguments"] if item["type"] == "function_call" else done["text"]
        assert joined == whole
        if item["type"] != "function_call":
            assert "".join(part["text"] for part in item["content"]) == whole


CASES: dict[str, tuple[dict[str, Any], str, FinishReason]] = {
    "plain": ({}, "Hello, 世界 😀!", FinishReason.STOP),
    "cut": ({}, "Hello, 世", FinishReason.LENGTH),
    "empty": ({}, "", FinishReason.STOP),
    "reasoning": (ON, "Let me think.\n</think>\n\nSunny.", FinishReason.STOP),
    "only reasoning": (ON, "Let me think.", FinishReason.LENGTH),
    "hidden": ({**ON, "include_reasoning": False}, "Hm.\n</think>\n\nSunny.", FinishReason.STOP),
    "call": ({"tools": [WEATHER]}, PARIS_CALL, FinishReason.STOP),
    "two calls": (
        {**ON, "tools": [WEATHER]},
        f"I look.\n</think>\n\nLooking.\n\n{PARIS_CALL}\n{ROME_CALL}",
        FinishReason.STOP,
    ),
    "one call allowed": (
        {"tools": [WEATHER], "parallel_tool_calls": False},
        f"{PARIS_CALL}\n{ROME_CALL}",
        FinishReason.STOP,
    ),
    "cut call": ({"tools": [WEATHER]}, PARIS_CALL[:70], FinishReason.LENGTH),
    "cut after a call": ({"tools": [WEATHER]}, PARIS_CALL, FinishReason.LENGTH),
    "stop string": ({"stop": ["day", "zzz"]}, "It is a sunny day today.", FinishReason.STOP),
}
STATUSES = {
    "cut": ["incomplete"],
    "only reasoning": ["incomplete"],
    "cut call": ["incomplete"],
    "cut after a call": ["completed"],
}


@pytest.mark.parametrize("group", [1, 3, 1000])
@pytest.mark.parametrize("name", CASES)
async def test_streamed_and_whole_are_equal(
    name: str, group: int, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    fields, text, finish = CASES[name]
    will_say(server, tokenizer, text, finish)
    whole = (await client.post(RESPONSES, json=ask(**fields))).json()
    will_say(server, tokenizer, text, finish, group=group)
    found = await stream(client, **fields)
    final = found[-1]["response"]
    assert nameless(final) == nameless(whole)
    check_items(found)
    cut = finish is FinishReason.LENGTH
    assert found[-1]["type"] == ("response.incomplete" if cut else "response.completed")
    assert final["status"] == ("incomplete" if cut else "completed")
    assert final["incomplete_details"] == ({"reason": "max_output_tokens"} if cut else None)
    expected = STATUSES.get(name, ["completed"] * len(final["output"]))
    assert [item["status"] for item in final["output"]] == expected
    stored = await client.get(f"{RESPONSES}/{final['id']}")
    assert stored.json() == final


async def test_what_the_cases_say(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    async def output(name: str) -> list[tuple[str, str]]:
        fields, text, finish = CASES[name]
        will_say(server, tokenizer, text, finish)
        response = (await client.post(RESPONSES, json=ask(**fields))).json()
        return [
            (i["type"], i["arguments"] if "arguments" in i else i["content"][0]["text"])
            for i in response["output"]
        ]

    assert await output("empty") == [("message", "")]
    assert await output("hidden") == [("message", "Sunny.")]
    assert await output("only reasoning") == [("reasoning", "Let me think.")]
    assert await output("one call allowed") == [("function_call", PARIS)]
    assert await output("cut call") == [("function_call", '{"city": "Paris')]
    assert await output("stop string") == [("message", "It is a sunny ")]


async def test_settings_are_repeated(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    will_say(server, tokenizer, "Hi.")
    sent = {
        "temperature": 0,
        "top_p": 0.5,
        "tools": [WEATHER],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "max_output_tokens": 7,
        "metadata": {"k": "v"},
        "instructions": "Be brief.",
        "truncation": "auto",
        "user": "me",
        "store": False,
    }
    reasoning = {"effort": "low", "summary": "auto"}
    response = await client.post(
        RESPONSES, json=ask(**sent, reasoning=reasoning, text={"verbosity": "low"})
    )
    found = response.json()
    assert {name: found[name] for name in sent} == sent
    assert found["reasoning"] == {"effort": "low", "summary": None}
    assert found["text"] == {"format": {"type": "text"}, "verbosity": "low"}
    assert server.engine.submitted[0].sampling.max_tokens == 7
    assert server.engine.submitted[0].sampling.temperature == 0.0


async def test_nothing_is_sent_before_the_first_output(
    server: FakeServer, tokenizer: Tokenizer
) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    (a,), (b,), (end,) = say(tokenizer, "ab")
    server.engine.will(first, (a,), second, (b,), (end,))
    call = Call(server.app, RESPONSES, ask(stream=True))
    await server.engine.became_active.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert call.sent == []
    first.set()
    await call.until_sent(2)
    assert b'"delta":"a"' in call.body
    second.set()
    await call.done()
    assert events(call.body)[-1]["type"] == "response.completed"
    assert call.sent[-1]["more_body"] is False


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_early_error_is_a_plain_answer(server: FakeServer, streamed: bool) -> None:
    server.engine.will(QueueFull("x"))
    call = Call(server.app, RESPONSES, ask(stream=streamed))
    await call.done()
    assert call.status == 429
    assert call.error["code"] == "queue_full"
    server.engine.will(KeyError("secret"))
    call = Call(server.app, RESPONSES, ask(stream=streamed))
    await call.done()
    assert call.status == 500
    assert call.error["code"] == "internal_error"


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyError("secret"), "internal_error"), (EngineDied("secret"), "engine_dead")],
)
async def test_a_late_error_is_told_in_the_stream(
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
    error: Exception,
    code: str,
) -> None:
    server.engine.will(*say(tokenizer, "ab", end=None), error, finish=None)
    response = await client.post(RESPONSES, json=ask(stream=True))
    found = events(response.content)
    assert kinds(found) == [
        *OPENING,
        *MESSAGE_START,
        "response.output_text.delta",
        "response.output_text.delta",
        "response.failed",
    ]
    failed = found[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == code
    assert [(i["status"], i["content"][0]["text"]) for i in failed["output"]] == [
        ("incomplete", "ab")
    ]
    assert found[-1]["error"]["code"] == code
    assert set(found[-1]["error"]) == {"message", "type", "param", "code"}
    assert "secret" not in response.text
    assert (await client.get(f"{RESPONSES}/{failed['id']}")).status_code == 404
    outcome = 'outcome="rejected"' if code == "engine_dead" else 'outcome="failed"'
    metrics = server.metrics.render().decode()
    assert f'deltaserve:requests_total{{model_name="tiny",{outcome}}} 1.0' in metrics
    assert 'deltaserve:requests_total{model_name="tiny",outcome="ok"} 0.0' in metrics


async def test_a_timeout_is_told_in_the_stream(validator: Validator, tokenizer: Tokenizer) -> None:
    server = build(validator, tokenizer, limits=Limits(request_timeout_s=0.5))
    server.engine.will(*say(tokenizer, "ab", end=None), finish=None)
    call = Call(server.app, RESPONSES, ask(stream=True))
    await call.done()
    assert events(call.body)[-1]["error"]["code"] == "request_timeout"
    assert call.sent[-1]["more_body"] is False
    assert len(server.engine.cancelled) == 1


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("has_output", [False, True])
async def test_a_client_that_goes_away_cancels_its_request(
    server: FakeServer, tokenizer: Tokenizer, streamed: bool, has_output: bool
) -> None:
    steps = say(tokenizer, "abc", end=None) if has_output else []
    server.engine.will(*steps, finish=None)
    call = Call(server.app, RESPONSES, ask(stream=streamed))
    await server.engine.became_active.wait()
    for _ in range(50):
        await asyncio.sleep(0)
    assert server.lifecycle.num_in_flight == 1
    call.disconnect()
    await call.done()
    assert server.engine.cancelled == [server.engine.submitted[0].id]
    assert server.engine.num_active == 0
    assert server.lifecycle.num_in_flight == 0
    assert b"failed" not in call.body


async def test_the_answer_can_be_continued_by_who_was_told_of_it(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    will_say(server, tokenizer, "Hi.")
    call = Call(server.app, RESPONSES, ask(stream=True))
    await call.done()
    first = events(call.body)[-1]["response"]["id"]
    will_say(server, tokenizer, "Yes.")
    response = await client.post(RESPONSES, json=ask("Sure?", previous_response_id=first))
    assert text_of(response.json()) == "Yes."


@pytest.mark.parametrize("background", [False, True])
async def test_timings_are_told_once_an_answer_is_complete(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer, background: bool
) -> None:
    for _ in range(3):
        will_say(server, tokenizer, "Sunny.")
    body = ask(timings=True, background=background, stream=True)
    *rest, last = events((await client.post(RESPONSES, json=body)).content)
    assert last["response"]["timings"]["prompt_tokens"] == last["response"]["usage"]["input_tokens"]
    assert all("timings" not in event.get("response", {}) for event in rest)
    if not background:
        whole = (await client.post(RESPONSES, json={**body, "stream": False})).json()
        assert whole["timings"].keys() == last["response"]["timings"].keys()
    plain = (await client.post(RESPONSES, json=ask())).json()
    assert "timings" not in plain
