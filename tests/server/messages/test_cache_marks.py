"""`cache_control` is accepted wherever it may stand, and makes the usage tell of cache writes."""

from typing import Any

import httpx
import pytest

from server.messages.cache_marks import marks_cache
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import say
from tests.server.messages.asking import MESSAGES, events, message

pytestmark = pytest.mark.anyio

MARK = {"cache_control": {"type": "ephemeral"}}
TEXT = {"type": "text", "text": "hi"}


@pytest.mark.parametrize(
    "fields",
    [
        MARK,
        {"tools": [{"name": "f", "input_schema": {}}, {"name": "g", "input_schema": {}, **MARK}]},
        {"system": [{**TEXT, **MARK}]},
        {"messages": [{"role": "user", "content": [TEXT, {**TEXT, **MARK}]}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "x", "content": [{**TEXT, **MARK}]}
                    ],
                }
            ]
        },
    ],
)
def test_marks_are_found(fields: dict[str, Any]) -> None:
    assert marks_cache(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cache_control": None},
        {"system": "cache_control", "tools": [], "messages": [{"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": [TEXT]}], "metadata": MARK},
    ],
)
def test_others_have_none(fields: dict[str, Any]) -> None:
    assert not marks_cache(fields)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("marked", [False, True])
async def test_the_parts_of_the_input_add_up(
    stream: bool, marked: bool, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "ab"), num_cached_tokens=3, num_saved_tokens=2)
    body = message(stream=stream, **(MARK if marked else {}))
    response = await client.post(MESSAGES, json=body)
    found = events(response.content)[0]["message"] if stream else response.json()
    usage = found["usage"]
    assert usage["cache_read_input_tokens"] == 3
    assert usage["cache_creation_input_tokens"] == (2 if marked else 0)
    parts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert sum(usage[part] for part in parts) == len(server.engine.submitted[0].prompt_ids)
