"""Errors in Anthropic's shape: what each one is called, and what it names."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic.json_schema import models_json_schema

from engine import EngineDied, EngineStarting, QueueFull, QueueTimeout, RequestFailed
from engine.errors import RequestTooLong
from server.errors import ErrorAnswer
from server.limits import Limits
from server.messages.fault import exchange_for, messages_error
from server.messages.protocol import CountTokensRequest, MessagesRequest
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer, build_server
from tests.server.http.asking import Call, say
from tests.server.messages.asking import (
    COUNT,
    MESSAGES,
    WEATHER,
    ask,
    error_of,
    events,
    message,
    script,
)

pytestmark = pytest.mark.anyio
KEY = "sk-test"
MISSING = object()


@pytest.fixture
async def guarded(validator: Validator, tokenizer: Tokenizer) -> FakeServer:
    limits = Limits(max_body_bytes=2000)
    return build_server(validator, tokenizer, api_keys=(KEY,), limits=limits)


@pytest.fixture
async def guarded_client(guarded: FakeServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(guarded.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


def turn(role: str, *blocks: Any) -> dict[str, Any]:
    return message(messages=[{"role": role, "content": list(blocks)}])


def tool(**fields: Any) -> dict[str, Any]:
    kept = {k: v for k, v in {**WEATHER, **fields}.items() if v is not MISSING}
    return message(tools=[WEATHER, {**kept}])


BAD: list[tuple[str, dict[str, Any]]] = [
    ("max_tokens", without(message(), "max_tokens")),
    ("max_tokens", message(max_tokens=0)),
    ("max_tokens", message(max_tokens=2.5)),
    ("max_tokens", message(max_tokens=None)),
    ("max_tokens", message(max_tokens=100_000)),
    ("messages", without(message(), "messages")),
    ("messages", message(messages=[])),
    ("messages", message(messages="Hello")),
    ("messages.0", message(messages=["Hello"])),
    ("messages.0.role", message(messages=[{"role": "tool", "content": "x"}])),
    ("messages.0.content", message(messages=[{"role": "user"}])),
    ("messages.0.content", message(None)),
    ("messages.0.content", message(5)),
    ("messages.0.content", message(["Hello"])),
    ("messages.0.content.0.type", turn("user", {"text": "x"})),
    ("messages.0.content.0.type", turn("user", {"type": ["text"], "text": "x"})),
    ("messages.0.content.1.type", turn("user", {"type": "text", "text": "x"}, {"type": "nope"})),
    ("messages.0.content.0.type", turn("user", {"type": "document", "source": {}})),
    ("messages.0.content.0.type", turn("user", {"type": "tool_use", "id": "a", "input": {}})),
    ("messages.0.content.0.type", turn("user", {"type": "thinking", "thinking": "x"})),
    ("messages.0.content.0.type", turn("assistant", {"type": "tool_result"})),
    ("messages.0.content.0.type", turn("assistant", {"type": "image", "source": {}})),
    ("messages.0.content.0.type", turn("system", {"type": "image", "source": {}})),
    ("messages.0.content.0.text", turn("user", {"type": "text"})),
    ("messages.0.content.0.text", turn("user", {"type": "text", "text": 5})),
    ("messages.0.content.0.source", turn("user", {"type": "image"})),
    (
        "messages.0.content.0.source.type",
        turn("user", {"type": "image", "source": {"type": "file", "file_id": "x"}}),
    ),
    (
        "messages.0.content.0.source.data",
        turn("user", {"type": "image", "source": {"type": "base64", "media_type": "image/png"}}),
    ),
    (
        "messages.0.content.0.source.url",
        turn("user", {"type": "image", "source": {"type": "url"}}),
    ),
    (
        "messages.0.content.0",
        turn("user", {"type": "image", "source": {"type": "url", "url": "https://a.org/b"}}),
    ),
    ("messages.0.content.0.tool_use_id", turn("user", {"type": "tool_result"})),
    (
        "messages.0.content.0.content",
        turn("user", {"type": "tool_result", "tool_use_id": "a", "content": {}}),
    ),
    (
        "messages.0.content.0.content.0.type",
        turn("user", {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "x"}]}),
    ),
    (
        "messages.0.content.0.is_error",
        turn("user", {"type": "tool_result", "tool_use_id": "a", "is_error": "no"}),
    ),
    ("messages.0.content.0.name", turn("assistant", {"type": "tool_use", "id": "a", "input": {}})),
    (
        "messages.0.content.0.input",
        turn("assistant", {"type": "tool_use", "id": "a", "name": "b", "input": "{}"}),
    ),
    ("messages.0.content.0.thinking", turn("assistant", {"type": "thinking"})),
    ("messages", turn("assistant", {"type": "text", "text": "No user turn."})),
    ("messages", message("word " * 5000)),
    ("system", message(system=5)),
    ("system.0.type", message(system=[{"type": "image", "source": {}}])),
    ("tools", message(tools={})),
    ("tools", message(tools=[WEATHER] * 129)),
    ("tools.1.name", tool(name=MISSING)),
    ("tools.1.name", tool(name="no spaces")),
    ("tools.1.type", tool(type="web_search_20250305")),
    ("tools.1.input_schema", tool(input_schema=MISSING)),
    ("tools.1.input_schema", tool(input_schema="{}")),
    ("tools.1.description", tool(description=5)),
    ("tool_choice", message(tool_choice={"type": "any"})),
    ("tool_choice.type", message(tools=[WEATHER], tool_choice={"type": "required"})),
    ("tool_choice", message(tools=[WEATHER], tool_choice="auto")),
    ("tool_choice.name", message(tools=[WEATHER], tool_choice={"type": "tool"})),
    ("tool_choice.name", message(tools=[WEATHER], tool_choice={"type": "tool", "name": "x"})),
    (
        "tool_choice.disable_parallel_tool_use",
        message(tools=[WEATHER], tool_choice={"type": "auto", "disable_parallel_tool_use": 1}),
    ),
    ("thinking", message(thinking=True)),
    ("thinking.type", message(thinking={"type": "on"})),
    ("thinking.budget_tokens", message(thinking={"type": "enabled", "budget_tokens": 0})),
    ("stop_sequences", message(stop_sequences="x")),
    ("stop_sequences", message(stop_sequences=[""])),
    ("stop_sequences", message(stop_sequences=[5])),
    ("stop_sequences", message(stop_sequences=["x"] * 17)),
    ("stop_sequences", message(stop_sequences=["x" * 2000])),
    ("temperature", message(temperature=-0.1)),
    ("temperature", message(temperature="1")),
    ("top_p", message(top_p=0)),
    ("top_k", message(top_k=-2)),
    ("stream", message(stream="yes")),
    ("cache_salt", message(cache_salt="")),
    ("cache_salt", message(cache_salt=5)),
    ("cache_salt", message(cache_salt=[])),
    ("chat_template", message(chat_template="{{ messages }}")),
    ("prompt_embeds", message(prompt_embeds="AAAA")),
    ("use_beam_search", message(use_beam_search=True)),
    ("logits_processors", message(logits_processors=[1])),
    ("chat_template_kwargs", message(chat_template_kwargs=[])),
    (
        "chat_template_kwargs.enable_thinking",
        message(chat_template_kwargs={"enable_thinking": "no"}),
    ),
    ("output_config.format.type", message(output_config={"format": {"type": "text"}})),
    (
        "output_config.format.schema",
        message(output_config={"format": {"type": "json_schema"}}),
    ),
]


@pytest.mark.parametrize(("name", "body"), BAD)
async def test_a_bad_value_is_named(
    name: str,
    body: dict[str, Any],
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
) -> None:
    """Streamed or not; and the next good request is answered."""
    refused = await client.post(MESSAGES, json={"stream": True, **body})
    assert refused.status_code == 400
    error = error_of(refused)
    assert error["type"] == "invalid_request_error"
    said = error["message"]
    assert said.startswith(name)
    assert said[len(name)] in " :", said
    assert server.engine.submitted == []
    script(server, tokenizer, "Fine.")
    assert (await ask(client, message()))["content"] == [{"type": "text", "text": "Fine."}]


PROMPT_FIELDS = ("messages", "system", "tools", "thinking", "chat_template_kwargs")


@pytest.mark.parametrize(
    ("name", "body"), [case for case in BAD if case[0].partition(".")[0] in PROMPT_FIELDS]
)
async def test_what_cannot_be_rendered_cannot_be_counted(
    name: str, body: dict[str, Any], client: httpx.AsyncClient
) -> None:
    response = await client.post(COUNT, json=without(body, "max_tokens"))
    if response.status_code == 200:  # a prompt past the window is counted, not refused
        assert response.json()["input_tokens"] > 4096
    else:
        assert response.status_code == 400
        assert error_of(response)["message"].startswith(name)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"max_tokens": NaN}', b"\xff"])
async def test_what_is_no_json_object(body: bytes, client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    response = await client.post(MESSAGES, content=body, headers=headers)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
async def test_an_unknown_model_is_not_found(path: str, client: httpx.AsyncClient) -> None:
    response = await client.post(path, json=message(model="claude"))
    assert response.status_code == 404
    error = error_of(response)
    assert error["type"] == "not_found_error"
    assert error["message"].startswith("model: ")


async def test_routes_and_methods(client: httpx.AsyncClient) -> None:
    for path in (f"{MESSAGES}/", f"{MESSAGES}/batches"):
        response = await client.post(path, json=message())
        assert response.status_code == 404
        assert error_of(response)["type"] == "not_found_error"
    for path in (MESSAGES, COUNT):
        response = await client.get(path)
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"
        assert error_of(response)["type"] == "invalid_request_error"


async def test_other_routes_keep_their_shape(client: httpx.AsyncClient) -> None:
    for path in ("/v1/chat/completions", "/v1/messagesx"):
        response = await client.post(path, json={})
        assert set(response.json()) == {"error"}
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "request-id" not in response.headers


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"x-api-key": KEY}, True),
        ({"authorization": f"Bearer {KEY}"}, True),
        ({"authorization": f"Bearer {KEY}", "x-api-key": "other"}, True),
        ({}, False),
        ({"x-api-key": ""}, False),
        ({"x-api-key": "wrong"}, False),
        ({"x-api-key": f"Bearer {KEY}"}, False),
        ({"authorization": "Bearer wrong", "x-api-key": KEY}, False),
        ({"authorization": KEY}, False),
    ],
)
@pytest.mark.parametrize("path", [MESSAGES, COUNT])
async def test_keys(
    path: str,
    headers: dict[str, str],
    passes: bool,
    guarded: FakeServer,
    guarded_client: httpx.AsyncClient,
    tokenizer: Tokenizer,
) -> None:
    script(guarded, tokenizer, "Fine.")
    response = await guarded_client.post(path, json=message(), headers=headers)
    if passes:
        assert response.status_code == 200
    else:
        assert response.status_code == 401
        assert error_of(response)["type"] == "authentication_error"
        assert guarded.engine.submitted == []


async def test_two_keys_are_none(guarded_client: httpx.AsyncClient) -> None:
    headers = [("x-api-key", KEY), ("x-api-key", KEY)]
    response = await guarded_client.post(MESSAGES, json=message(), headers=headers)
    assert response.status_code == 401


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/messagesx"])
async def test_other_routes_need_the_bearer(path: str, guarded_client: httpx.AsyncClient) -> None:
    response = await guarded_client.post(path, json={}, headers={"x-api-key": KEY})
    assert response.status_code == 401


async def test_a_body_too_big_and_a_body_of_another_kind(
    guarded_client: httpx.AsyncClient,
) -> None:
    key = {"x-api-key": KEY}
    response = await guarded_client.post(MESSAGES, json=message("x" * 3000), headers=key)
    assert response.status_code == 413
    assert error_of(response)["type"] == "invalid_request_error"
    response = await guarded_client.post(MESSAGES, data={"a": "b"}, headers=key)
    assert response.status_code == 415
    assert error_of(response)["type"] == "invalid_request_error"


FAULTS = [
    (QueueFull("x"), 429, "overloaded_error", True),
    (QueueTimeout("x"), 503, "overloaded_error", True),
    (EngineStarting("x"), 503, "overloaded_error", True),
    (EngineDied("x"), 503, "api_error", True),
    (RequestTooLong("x"), 400, "invalid_request_error", False),
    (RequestFailed("secret"), 500, "api_error", False),
    (KeyError("secret"), 500, "api_error", False),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("fault", "status", "kind", "has_retry"), FAULTS)
async def test_a_fault_before_the_first_token_is_a_plain_error(
    fault: Exception,
    status: int,
    kind: str,
    has_retry: bool,
    streamed: bool,
    server: FakeServer,
    client: httpx.AsyncClient,
) -> None:
    server.engine.will(fault)
    response = await client.post(MESSAGES, json=message(stream=streamed))
    assert response.status_code == status
    error = error_of(response)
    assert error["type"] == kind
    assert "secret" not in response.text
    assert ("retry-after" in response.headers) is has_retry


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
async def test_a_draining_server_is_overloaded(
    path: str, server: FakeServer, client: httpx.AsyncClient
) -> None:
    server.lifecycle.begin_drain()
    response = await client.post(path, json=message())
    assert response.status_code == 503
    assert error_of(response)["type"] == "overloaded_error"
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("fault", [RequestFailed("secret"), EngineDied("secret"), KeyError("x")])
async def test_a_fault_in_the_stream_is_its_last_event(
    fault: Exception, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "ab", end=None), fault, finish=None)
    response = await client.post(MESSAGES, json=message(stream=True))
    assert response.status_code == 200
    assert b"secret" not in response.content
    found = events(response.content)
    assert [event["type"] for event in found] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "error",
    ]
    assert set(found[-1]) == {"type", "error"}
    assert found[-1]["error"]["type"] == "api_error"
    assert found[-1]["error"]["message"]


async def test_a_whole_message_that_fails_halfway_is_an_error(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "ab", end=None), RequestFailed("secret"), finish=None)
    response = await client.post(MESSAGES, json=message())
    assert response.status_code == 500
    assert error_of(response)["type"] == "api_error"


async def test_the_request_id_is_told_twice(client: httpx.AsyncClient) -> None:
    response = await client.post(COUNT, json=message(), headers={"x-request-id": "mine"})
    assert response.headers["request-id"] == response.headers["x-request-id"] == "mine"


async def test_headers_of_anthropic_clients_are_accepted(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "tools-2024-04-04"}
    script(server, tokenizer, "Fine.")
    response = await client.post(f"{MESSAGES}?beta=true", json=message(), headers=headers)
    assert response.status_code == 200


def test_a_long_and_strange_error_stays_small_and_valid() -> None:
    body = messages_error(ErrorAnswer(400, "\ud800" + "\x00" * 5000)).body()
    assert len(body) < 4096
    assert json.loads(body)["error"]["message"].startswith("?\x00")


def test_the_request_models_have_schemas() -> None:
    """For the OpenAPI document."""
    models = [(MessagesRequest, "validation"), (CountTokensRequest, "validation")]
    _, document = models_json_schema(models)
    assert "max_tokens" in document["$defs"]["MessagesRequest"]["required"]
    assert "max_tokens" not in document["$defs"]["CountTokensRequest"]["properties"]


# Clients that go away


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("has_output", [False, True])
async def test_a_client_that_goes_away_cancels_its_request(
    streamed: bool, has_output: bool, server: FakeServer, tokenizer: Tokenizer
) -> None:
    steps = say(tokenizer, "abc", end=None) if has_output else []
    server.engine.will(*steps, finish=None)
    call = Call(server.app, MESSAGES, message(stream=streamed))
    while not server.engine.num_active:
        server.engine.became_active.clear()
        await asyncio.wait_for(server.engine.became_active.wait(), 10)
    for _ in range(50):
        await asyncio.sleep(0)
    assert server.lifecycle.num_in_flight == 1
    call.disconnect()
    await call.done()
    assert server.engine.cancelled == [server.engine.submitted[0].id]
    assert server.engine.num_active == 0
    assert server.lifecycle.num_in_flight == 0
    assert b"error" not in call.body
    assert b"message_stop" not in call.body


async def test_nothing_is_sent_before_the_first_output(
    server: FakeServer, tokenizer: Tokenizer
) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    (a,), (end,) = say(tokenizer, "a")
    server.engine.will(first, (a,), second, (end,))
    call = Call(server.app, MESSAGES, message(stream=True))
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert call.sent == []
    first.set()
    await call.until_sent(2)
    assert [event["type"] for event in events(call.body)] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
    ]
    second.set()
    await call.done()
    assert events(call.body)[-1] == {"type": "message_stop"}
    assert call.sent[-1]["more_body"] is False


async def test_an_exchange_is_chosen_by_its_path() -> None:
    async def unused(*_: Any) -> Any:
        raise AssertionError

    def kind(path: str) -> str:
        scope = {"method": "POST", "path": path, "headers": []}
        return type(exchange_for(scope, unused, unused)).__name__

    assert kind(MESSAGES) == kind(COUNT) == kind(f"{MESSAGES}/x") == "MessagesExchange"
    assert kind("/v1/messagesx") == kind("/v1/chat/completions") == kind("/") == "Exchange"
