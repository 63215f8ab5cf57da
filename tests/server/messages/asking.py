"""How the tests ask for messages, and read their streams back."""

import json
from typing import Any

import httpx

from engine import FinishReason
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import say

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
OFF = {"thinking": {"type": "disabled"}}
WEATHER = {
    "name": "get_weather",
    "description": "Look up the weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    },
}


def message(content: Any = "What is the weather?", **fields: Any) -> dict[str, Any]:
    """A request of one user turn, thinking off unless asked for."""
    turns = [{"role": "user", "content": content}]
    return {"messages": turns, "max_tokens": 500, **OFF, **fields}


def thinking(content: Any = "What is the weather?", **fields: Any) -> dict[str, Any]:
    return message(content, thinking={"type": "adaptive"}, **fields)


def events(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream; it must be framed exactly, names equal to types."""
    parts = stream.split(b"\n\n")
    assert parts.pop() == b""
    found: list[dict[str, Any]] = []
    for part in parts:
        name, data = part.split(b"\n")
        found.append(json.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + found[-1]["type"].encode()
    return found


def script(
    server: FakeServer, tokenizer: Tokenizer, text: str, finish: FinishReason = FinishReason.STOP
) -> None:
    end = "<|im_end|>" if finish is FinishReason.STOP else None
    server.engine.will(*say(tokenizer, text, end=end), finish=finish)


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(MESSAGES, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def ask_stream(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await client.post(MESSAGES, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return events(response.content)


def error_of(response: httpx.Response) -> dict[str, str]:
    found = response.json()
    assert response.headers["content-type"] == "application/json"
    assert set(found) == {"type", "error"}
    assert found["type"] == "error"
    assert set(found["error"]) == {"type", "message"}
    return found["error"]
