"""What is refused, with which status and error object, and what never reaches a client."""

import json
import logging
from typing import Any

import httpx
import msgspec
import pytest

from engine import (
    EngineDied,
    EngineStarting,
    QueueFull,
    QueueTimeout,
    RequestFailed,
    RequestTooLong,
)
from server.errors import MAX_MESSAGE_CHARS, BadRequest, ErrorAnswer, answer_to
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import CHAT, COMPLETIONS, chat, say

pytestmark = pytest.mark.anyio


def check_error(response: httpx.Response, status: int, code: str | None, kind: str) -> str:
    """The exact shape; returns the message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert len(response.content) < 4096
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["type"]) == (code, kind)
    return body["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/nothing", "/v1/chat/completions/", "/docs", "/v1"])
async def test_unknown_routes(client: httpx.AsyncClient, path: str) -> None:
    check_error(await client.get(path), 404, None, "invalid_request_error")


async def test_wrong_methods(client: httpx.AsyncClient) -> None:
    response = await client.get(CHAT)
    check_error(response, 405, None, "invalid_request_error")
    assert response.headers["allow"] == "POST"
    response = await client.post("/v1/models", json={})
    check_error(response, 405, None, "invalid_request_error")
    assert response.headers["allow"] == "GET"
    check_error(await client.options(CHAT), 405, None, "invalid_request_error")


async def test_no_cors_headers(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models", headers={"origin": "http://evil.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_unknown_models(client: httpx.AsyncClient) -> None:
    for response in (
        await client.post(CHAT, json=chat(model="gpt-4")),
        await client.post(COMPLETIONS, json={"prompt": "x", "model": "gpt-4"}),
        await client.get("/v1/models/gpt-4"),
    ):
        check_error(response, 404, "model_not_found", "invalid_request_error")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": NaN}',
        b'{"temperature": 1e999, "messages": [{"role": "user", "content": "x"}]}',
        b'{"messages": []}',
        b"[" * 100_000,
        b'{"a":' * 5000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/tokenize", "/detokenize"])
async def test_broken_bodies(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    check_error(response, 400, None, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": []}, "tools"),
        ({"stop": [""]}, "stop"),
        ({"max_tokens": 10**6}, "max_tokens"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_bad_values_name_the_field_even_when_streamed(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, streamed: bool
) -> None:
    response = await client.post(CHAT, json=chat(**fields, stream=streamed))
    message = check_error(response, 400, None, "invalid_request_error")
    assert param in message
    assert response.json()["error"]["param"] == param


async def test_stream_options_need_a_stream(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat(stream_options={"include_usage": True}))
    message = check_error(response, 400, None, "invalid_request_error")
    assert "stream_options" in message


async def test_too_long_prompts(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("word " * 5000))
    message = check_error(response, 400, "context_length_exceeded", "invalid_request_error")
    assert "4096" in message
    response = await client.post(CHAT, json=chat("word " * 100_000))
    check_error(response, 400, "context_length_exceeded", "invalid_request_error")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/jsonx"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_bodies_that_are_not_plain_json(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await client.post(CHAT, content=b"{}", headers=headers)
    check_error(response, 415, None, "invalid_request_error")


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON", 'application/json;charset="UTF-8"'],
)
async def test_json_content_types(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer, content_type: str
) -> None:
    server.engine.will(*say(tokenizer, "x"))
    response = await client.post(
        CHAT, content=json.dumps(chat()), headers={"content-type": content_type}
    )
    assert response.status_code == 200


ENGINE_ERRORS = [
    (RequestTooLong("secret text"), 400, "context_length_exceeded", "invalid_request_error"),
    (QueueFull("secret text"), 429, "queue_full", "rate_limit_error"),
    (QueueTimeout("secret text"), 503, "queue_timeout", "server_error"),
    (EngineStarting("secret text"), 503, "starting", "server_error"),
    (EngineDied("secret text"), 503, "engine_dead", "server_error"),
    (RequestFailed("secret text"), 500, "internal_error", "server_error"),
    (KeyError("secret text"), 500, "internal_error", "server_error"),
]


@pytest.mark.parametrize(("error", "status", "code", "kind"), ENGINE_ERRORS)
@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 2, "stream": True}])
async def test_engine_errors_before_the_first_output(
    server: FakeServer,
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    code: str,
    kind: str,
    fields: dict[str, Any],
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(fields.get("n", 1)):
        server.engine.will(error)
    response = await client.post(
        CHAT, json=chat("private words", **fields), headers={"x-request-id": "find-me"}
    )
    check_error(response, status, code, kind)
    assert "secret" not in response.text
    assert ("retry-after" in response.headers) == (status in (429, 503))
    if status in (429, 503):
        assert int(response.headers["retry-after"]) > 0
    assert "secret" not in caplog.text
    assert "private" not in caplog.text
    assert "find-me" in caplog.text


@pytest.mark.parametrize(("error", "status", "code", "kind"), ENGINE_ERRORS[3:])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_fault_in_mid_stream_is_one_event_without_done(
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
    error: Exception,
    status: int,
    code: str,
    kind: str,
    n: int,
) -> None:
    for _ in range(n):
        server.engine.will(*say(tokenizer, "It is", end=None), error, finish=None)
    response = await client.post(CHAT, json=chat(stream=True, n=n))
    assert response.status_code == 200
    parts = response.content.split(b"\n\n")
    assert parts[-1] == b""
    assert b"[DONE]" not in response.content
    assert b"secret" not in response.content
    last = json.loads(parts[-2].removeprefix(b"data: "))
    assert set(last) == {"error"}
    assert (last["error"]["code"], last["error"]["type"]) == (code, kind)
    assert all(b'"error"' not in part for part in parts[:-2])
    assert server.engine.num_active == 0


async def test_a_fault_before_the_end_of_a_whole_answer_is_an_http_error(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "It is", end=None), EngineDied("x"), finish=None)
    check_error(await client.post(CHAT, json=chat()), 503, "engine_dead", "server_error")


@pytest.mark.parametrize(("state", "code"), [("starting", "starting"), ("dead", "engine_dead")])
async def test_an_engine_that_is_not_ready(
    server: FakeServer, client: httpx.AsyncClient, state: Any, code: str
) -> None:
    server.engine.state = state
    for response in (
        await client.post(CHAT, json=chat()),
        await client.post(COMPLETIONS, json={"prompt": "x"}),
        await client.get("/ready"),
        await client.get("/health"),
        await client.get("/ping"),
    ):
        check_error(response, 503, code, "server_error")
        assert int(response.headers["retry-after"]) > 0
    assert (await client.get("/live")).status_code == 200


async def test_request_ids_are_echoed_if_clean(client: httpx.AsyncClient) -> None:
    for sent in ("a", "A-b_c.9", "x" * 128):
        response = await client.get("/live", headers={"x-request-id": sent})
        assert response.headers["x-request-id"] == sent
    fresh = set()
    for sent in ("", "x" * 129, "a b", "a/b", "é", "a\tb"):
        response = await client.get("/live", headers={"x-request-id": sent.encode("latin-1")})
        fresh.add(response.headers["x-request-id"])
        assert response.headers["x-request-id"] != sent
    assert len(fresh) == 6


async def test_engine_ids_are_our_own(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    for _ in range(2):
        server.engine.will(*say(tokenizer, "x"))
        response = await client.post(CHAT, json=chat(), headers={"x-request-id": "same"})
        assert response.headers["x-request-id"] == "same"
    ids = [request.id for request in server.engine.submitted]
    assert len(set(ids)) == 2
    assert not any("same" in found for found in ids)


async def test_facts(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json() == {"version": "1.2.3"}
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["tiny", "alias"]
    card = (await client.get("/v1/models/tiny")).json()
    assert card == listed["data"][0]
    assert set(card) == {"id", "object", "created", "owned_by", "root", "max_model_len"}
    assert (card["root"], card["max_model_len"], card["object"]) == ("tiny-root", 4096, "model")
    for path in ("/live", "/ready", "/health", "/ping"):
        assert (await client.get(path)).status_code == 200
        assert (await client.head(path)).status_code == 200


async def test_tokenize_and_back(client: httpx.AsyncClient) -> None:
    counted = (await client.post("/tokenize", json={"prompt": "The fox 世"})).json()
    assert counted["count"] == len(counted["tokens"])
    text = (await client.post("/detokenize", json={"tokens": counted["tokens"]})).json()
    assert text == {"prompt": "The fox 世"}


async def test_openapi_describes_the_routes(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    body = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/ChatCompletionRequest"}
    schemas = document["components"]["schemas"]
    assert "temperature" in schemas["ChatCompletionRequest"]["properties"]

    def refs(node: Any) -> list[str]:
        if isinstance(node, dict):
            found = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return found + [ref for value in node.values() for ref in refs(value)]
        return [ref for value in node for ref in refs(value)] if isinstance(node, list) else []

    for ref in refs(document):
        assert ref.removeprefix("#/components/schemas/") in schemas
    for path, operations in document["paths"].items():
        for method in operations:
            response = await client.request(method, path.replace("{id}", "tiny"))
            assert response.status_code != 405, path
            assert "no such route" not in response.text, path


def test_error_bodies_stay_small_and_valid() -> None:
    for message in ("\x00" * 10_000, "\ud800" * 10_000, "é" * 10_000, '"\\' * 10_000):
        body = answer_to(BadRequest(message, param=message)).body()
        assert len(body) < 2 * 4096
        assert len(msgspec.json.decode(body)["error"]["message"]) <= MAX_MESSAGE_CHARS


def test_error_answers_default_to_the_caller() -> None:
    assert json.loads(ErrorAnswer(404, "x").body()) == {
        "error": {"message": "x", "type": "invalid_request_error", "param": None, "code": None}
    }
