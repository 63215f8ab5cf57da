"""Event sequences, exactly; and that the whole message is what they fold to."""

import json
from typing import Any

import httpx
import pytest

from engine import FinishReason
from server.messages.message import WholeMessage, input_json
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import PARIS_CALL, ROME_CALL, say
from tests.server.messages.asking import (
    MESSAGES,
    WEATHER,
    ask,
    ask_stream,
    message,
    script,
    thinking,
)

pytestmark = pytest.mark.anyio
Event = dict[str, Any]


def start(index: int, **block: Any) -> Event:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, **change: Any) -> Event:
    return {"type": "content_block_delta", "index": index, "delta": change}


def stop(index: int) -> Event:
    return {"type": "content_block_stop", "index": index}


def merged(found: list[Event]) -> list[Event]:
    """The events with neighbouring deltas of one kind joined: what all token splits agree on."""
    joined: list[Event] = []
    for event in found:
        last = joined[-1] if joined else {}
        same = event["type"] == last.get("type") == "content_block_delta"
        if same and event["delta"]["type"] == last["delta"]["type"]:
            key = next(key for key in event["delta"] if key != "type")
            last["delta"][key] += event["delta"][key]
        else:
            joined.append(event)
    return joined


def check_frame(found: list[Event], stop_reason: str, stop_sequence: str | None = None) -> None:
    """The first event and the last two."""
    first, last_but_one, last = found[0], found[-2], found[-1]
    begun = first["message"]
    assert set(first) == {"type", "message"}
    assert first["type"] == "message_start"
    assert begun["id"].startswith("msg_")
    assert begun == {
        "id": begun["id"],
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": begun["usage"],
    }
    assert last_but_one == {
        "type": "message_delta",
        "delta": {"stop_reason": stop_reason, "stop_sequence": stop_sequence},
        "usage": {**begun["usage"], "output_tokens": last_but_one["usage"]["output_tokens"]},
    }
    assert last == {"type": "message_stop"}


async def test_the_bytes_of_a_stream(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "ab"), num_cached_tokens=3)
    response = await client.post(MESSAGES, json=message(stream=True, model="alias"))
    request = server.engine.submitted[0]
    message_id = "msg_" + request.id.partition("-")[0]
    num_new = len(request.prompt_ids) - 3
    usage = (
        f'"usage":{{"input_tokens":{num_new},"cache_creation_input_tokens":0,'
        '"cache_read_input_tokens":3,"output_tokens":'
    )
    assert response.text == (
        'event: message_start\ndata: {"type":"message_start","message":'
        f'{{"id":"{message_id}","type":"message","role":"assistant","model":"alias",'
        f'"content":[],"stop_reason":null,"stop_sequence":null,{usage}1}}}}}}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        '"content_block":{"type":"text","text":""}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"a"}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"b"}}\n\n'
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        'event: message_delta\ndata: {"type":"message_delta","delta":'
        f'{{"stop_reason":"end_turn","stop_sequence":null}},{usage}3}}}}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )


async def test_thinking_text_and_calls_are_blocks_in_order(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    text = f"I look.\n</think>\n\nLooking.\n\n{PARIS_CALL}\n{ROME_CALL}"
    script(server, tokenizer, text)
    found = merged(await ask_stream(client, thinking(tools=[WEATHER])))
    check_frame(found, "tool_use")
    ids = [
        event["content_block"]["id"]
        for event in found
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use"
    ]
    assert len(set(ids)) == 2
    assert all(call_id.startswith("toolu_") for call_id in ids)
    signature = found[3]["delta"]["signature"]
    assert signature
    call = {"type": "tool_use", "name": "get_weather", "input": {}}
    assert found[1:-2] == [
        start(0, type="thinking", thinking="", signature=""),
        delta(0, type="thinking_delta", thinking="I look."),
        delta(0, type="signature_delta", signature=signature),
        stop(0),
        start(1, type="text", text=""),
        delta(1, type="text_delta", text="Looking."),
        stop(1),
        start(2, **call, id=ids[0]),
        delta(2, type="input_json_delta", partial_json='{"city": "Paris", "days": 3}'),
        stop(2),
        start(3, **call, id=ids[1]),
        delta(3, type="input_json_delta", partial_json='{"city": "Rome", "days": 3}'),
        stop(3),
    ]


async def test_text_around_calls_is_blocks_of_its_own(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    script(server, tokenizer, f"Before.{PARIS_CALL} After.")
    found = await ask_stream(client, message(tools=[WEATHER]))
    starts = [event["content_block"] for event in found if "content_block" in event]
    assert [block["type"] for block in starts] == ["text", "tool_use", "text"]
    stops = [event["index"] for event in found if event["type"] == "content_block_stop"]
    assert stops == [0, 1, 2]


@pytest.mark.parametrize("text", ["I wonder whether", "I wonder.\n</think>"])
async def test_a_cut_in_the_thinking_leaves_only_that(
    text: str, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    script(server, tokenizer, text, FinishReason.LENGTH)
    found = merged(await ask_stream(client, thinking()))
    check_frame(found, "max_tokens")
    kinds = [event["delta"]["type"] for event in found if event["type"] == "content_block_delta"]
    assert kinds == ["thinking_delta", "signature_delta"]
    assert found[2]["delta"]["thinking"] == text.removesuffix("\n</think>")


async def test_a_cut_call_keeps_what_it_streamed(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = message(tools=[WEATHER])
    for _ in range(2):
        script(server, tokenizer, PARIS_CALL[: PARIS_CALL.index("ris")], FinishReason.LENGTH)
    found = merged(await ask_stream(client, body))
    check_frame(found, "max_tokens")
    assert found[2] == delta(0, type="input_json_delta", partial_json='{"city": "Pa')
    whole = await ask(client, body)
    assert whole["stop_reason"] == "max_tokens"
    assert whole["content"][0]["input"] == {}


async def test_nothing_at_all(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    script(server, tokenizer, "")
    found = await ask_stream(client, message())
    check_frame(found, "end_turn")
    assert len(found) == 3
    assert found[-2]["usage"]["output_tokens"] == 1


@pytest.mark.parametrize(
    ("fields", "text", "shown", "stop_reason", "stop_sequence"),
    [
        ({"stop_sequences": ["day", "zzz"]}, "A sunny day.", "A sunny ", "stop_sequence", "day"),
        ({"stop_sequences": ["zzz"]}, "A sunny day.", "A sunny day.", "end_turn", None),
        ({"stop_sequences": []}, "A sunny day.", "A sunny day.", "end_turn", None),
    ],
)
async def test_stop_sequences(
    fields: dict[str, Any],
    text: str,
    shown: str,
    stop_reason: str,
    stop_sequence: str | None,
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
) -> None:
    script(server, tokenizer, text)
    found = merged(await ask_stream(client, message(**fields)))
    check_frame(found, stop_reason, stop_sequence)
    assert found[2] == delta(0, type="text_delta", text=shown)


async def test_omitted_thinking_is_not_shown(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    script(server, tokenizer, "secret\n</think>\n\nSunny.")
    body = message(thinking={"type": "adaptive", "display": "omitted"})
    whole = await ask(client, body)
    assert whole["content"] == [{"type": "text", "text": "Sunny."}]


CASES: dict[str, tuple[dict[str, Any], str, FinishReason]] = {
    "text": (message(), "Hello, 世界 😀!", FinishReason.STOP),
    "cut": (message(), "Hello, 世", FinishReason.LENGTH),
    "empty": (message(), "", FinishReason.STOP),
    "thinking": (thinking(), "Let me see.\n</think>\n\nSunny.", FinishReason.STOP),
    "only thinking": (thinking(), "Let me see.", FinishReason.STOP),
    "two calls": (
        thinking(tools=[WEATHER]),
        f"I look.\n</think>\n\nLooking.\n\n{PARIS_CALL}\n{ROME_CALL}",
        FinishReason.STOP,
    ),
    "one call allowed": (
        message(tools=[WEATHER], tool_choice={"type": "auto", "disable_parallel_tool_use": True}),
        f"{PARIS_CALL}\n{ROME_CALL}",
        FinishReason.STOP,
    ),
    "no arguments": (
        message(tools=[WEATHER]),
        "<tool_call>\n<function=get_weather>\n</function>\n</tool_call>",
        FinishReason.STOP,
    ),
    "cut call": (message(tools=[WEATHER]), PARIS_CALL[:95], FinishReason.LENGTH),
    "nameless call": (message(tools=[WEATHER]), "<tool_call>\n<function=", FinishReason.LENGTH),
    "tools off": (
        message(tools=[WEATHER], tool_choice={"type": "none"}),
        PARIS_CALL,
        FinishReason.STOP,
    ),
    "stop sequence": (message(stop_sequences=["day"]), "A sunny day.", FinishReason.STOP),
}


@pytest.mark.parametrize("group", [1, 3, 1000])
@pytest.mark.parametrize("name", CASES)
async def test_streamed_and_whole_are_equal(
    name: str, group: int, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    """However the engine groups tokens into deltas."""
    body, text, finish = CASES[name]
    end = "<|im_end|>" if finish is FinishReason.STOP else None
    ids = [token_id for step in say(tokenizer, text, end=end) for token_id in step]
    server.engine.will(*[(i,) for i in ids], finish=finish, num_cached_tokens=2)
    groups = [tuple(ids[i : i + group]) for i in range(0, len(ids), group)]
    server.engine.will(*groups, finish=finish, num_cached_tokens=2)
    whole = await ask(client, body)
    folded = WholeMessage()
    for event in await ask_stream(client, body):
        folded.fold(event)
    streamed = folded.as_json()
    for block in streamed["content"]:
        if block["type"] == "tool_use":
            block["input"] = json.loads(bytes(block["input"]))
    for found in (whole, streamed):
        assert found.pop("id").startswith("msg_")
        for block in found["content"]:
            assert block.pop("id", "toolu_").startswith("toolu_")
    assert whole == streamed
    total = whole["usage"]["input_tokens"] + whole["usage"]["cache_read_input_tokens"]
    assert total == len(server.engine.submitted[0].prompt_ids)
    assert whole["usage"]["output_tokens"] == len(ids) or name == "stop sequence"


async def test_a_whole_message_is_exactly_this(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(
        *say(tokenizer, f"Hm.\n</think>\n\nI look.\n\n{PARIS_CALL}"), num_cached_tokens=5
    )
    whole = await ask(client, thinking(tools=[WEATHER]))
    prompt = server.engine.submitted[0].prompt_ids
    reasoning, text, call = whole["content"]
    assert whole == {
        "id": whole["id"],
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": reasoning["signature"]},
            {"type": "text", "text": "I look."},
            {
                "type": "tool_use",
                "id": call["id"],
                "name": "get_weather",
                "input": {"city": "Paris", "days": 3},
            },
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(prompt) - 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 5,
            "output_tokens": whole["usage"]["output_tokens"],
        },
    }
    assert text["type"] == "text"
    assert isinstance(reasoning["signature"], str)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', b'{"a": 1}'),
        ('{"a": ' + "7" * 5000 + "}", b'{"a": ' + b"7" * 5000 + b"}"),
        ('{"a": 12345678901234567890123, "b": "hal', b'{"a": 12345678901234567890123}'),
        ('{"a": [1, 2]', b'{"a": [1, 2]}'),
        ('{"a": "é", "b": "', b'{"a": "\\u00e9"}'),
        ("{", b"{}"),
        ("", b"{}"),
        ('{"a": ' + "7" * 5000 + ', "b": "hal', b"{}"),
    ],
)
def test_input_of_a_call(arguments: str, expected: bytes) -> None:
    assert bytes(input_json(arguments)) == expected
