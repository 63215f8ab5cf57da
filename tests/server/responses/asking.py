"""How the tests ask for responses, and read their streams back."""

import json
from typing import Any

from engine import FinishReason
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import WEATHER_TOOL, say

RESPONSES = "/v1/responses"
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
ON = {"chat_template_kwargs": {"enable_thinking": True}}
WEATHER = {"type": "function", **WEATHER_TOOL["function"]}


def ask(given: Any = "What is the weather?", **fields: Any) -> dict[str, Any]:
    """A request, thinking off unless asked for."""
    return {"input": given, **OFF, **fields}


def events(stream: bytes) -> list[dict[str, Any]]:
    """The events of a whole stream: framed exactly, names equal to types, numbered from 0."""
    parts = stream.split(b"\n\n")
    assert parts.pop() == b""
    found: list[dict[str, Any]] = []
    for part in parts:
        name, _, data = part.partition(b"\n")
        assert b"\n" not in data
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        assert event["sequence_number"] == len(found)
        found.append(event)
    return found


def will_say(
    server: FakeServer,
    tokenizer: Tokenizer,
    text: str,
    finish: FinishReason = FinishReason.STOP,
    *,
    group: int = 1,
    num_cached_tokens: int = 0,
    num_saved_tokens: int = 0,
) -> None:
    """The next request gets `text`, `group` tokens at a time."""
    end = "<|im_end|>" if finish is FinishReason.STOP else None
    ids = [token_id for step in say(tokenizer, text, end=end) for token_id in step]
    steps = [tuple(ids[i : i + group]) for i in range(0, len(ids), group)]
    server.engine.will(
        *steps,
        finish=finish,
        num_cached_tokens=num_cached_tokens,
        num_saved_tokens=num_saved_tokens,
    )


def nameless(value: Any) -> Any:
    """The value with ids and times, which differ from answer to answer, made equal."""
    if isinstance(value, list):
        return [nameless(v) for v in value]
    if isinstance(value, dict):
        return {
            k: "?" if k in ("id", "item_id", "call_id", "created_at") else nameless(v)
            for k, v in value.items()
        }
    return value


def text_of(response: dict[str, Any]) -> str:
    """What the SDK calls `output_text`."""
    parts = [part for item in response["output"] for part in item.get("content", ())]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")
