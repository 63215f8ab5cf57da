"""/v1/chat/completions: what a client gets, streamed and whole, from scripted tokens."""

import json
from typing import Any

import httpx
import pytest

from engine import FinishReason
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import (
    CHAT,
    PARIS_CALL,
    ROME_CALL,
    WEATHER_TOOL,
    chat,
    events,
    fold,
    say,
    thinking,
)

pytestmark = pytest.mark.anyio


async def test_a_whole_answer_is_these_bytes(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "It is sunny."), num_cached_tokens=3)
    response = await client.post(CHAT, json=chat())
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    num_prompt = len(server.engine.submitted[0].prompt_ids)
    num_out = len(tokenizer.encode("It is sunny.")) + 1
    assert answer["id"].startswith("chatcmpl-")
    expected = (
        f'{{"id":"{answer["id"]}","object":"chat.completion","created":{answer["created"]},'
        '"model":"tiny","system_fingerprint":"deltaserve-1.2.3","choices":[{"index":0,'
        '"message":{"role":"assistant","content":"It is sunny.","reasoning_content":null,'
        '"reasoning":null},"logprobs":null,"finish_reason":"stop","stop_reason":null}],'
        f'"usage":{{"prompt_tokens":{num_prompt},"completion_tokens":{num_out},'
        f'"total_tokens":{num_prompt + num_out},"prompt_tokens_details":{{"cached_tokens":3}},'
        '"completion_tokens_details":{"reasoning_tokens":0}}}'
    )
    assert response.text == expected


async def test_a_stream_is_these_bytes(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("ab")
    assert len(ids) == 2
    server.engine.will(*say(tokenizer, "ab"))
    response = await client.post(CHAT, json=chat(stream=True, model="alias"))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    first = events(response.content)[0]
    head = (
        f'data: {{"id":"{first["id"]}","object":"chat.completion.chunk",'
        f'"created":{first["created"]},"model":"alias",'
        '"system_fingerprint":"deltaserve-1.2.3","choices":[{"index":0,"delta":{'
    )
    middle = '},"logprobs":null,"finish_reason":'
    assert response.text == (
        f'{head}"role":"assistant","content":"a"{middle}null,"stop_reason":null}}]}}\n\n'
        f'{head}"content":"b"{middle}null,"stop_reason":null}}]}}\n\n'
        f'{head[:-1]}{{{middle}"stop","stop_reason":null}}]}}\n\n'
        "data: [DONE]\n\n"
    )


CASES: dict[str, tuple[dict[str, Any], str, FinishReason]] = {
    "plain": (chat(), "Hello, 世界 😀!", FinishReason.STOP),
    "cut": (chat(), "Hello, 世", FinishReason.LENGTH),
    "empty": (chat(), "", FinishReason.STOP),
    "reasoning": (thinking(), "Let me think.\n</think>\n\nSunny.", FinishReason.STOP),
    "only reasoning": (thinking(), "Let me think.", FinishReason.LENGTH),
    "hidden": (thinking(include_reasoning=False), "Hm.\n</think>\n\nSunny.", FinishReason.STOP),
    "call": (chat(tools=[WEATHER_TOOL]), PARIS_CALL, FinishReason.STOP),
    "two calls": (
        thinking(tools=[WEATHER_TOOL]),
        f"I look.\n</think>\n\nLooking.\n\n{PARIS_CALL}\n{ROME_CALL}",
        FinishReason.STOP,
    ),
    "one call allowed": (
        chat(tools=[WEATHER_TOOL], parallel_tool_calls=False),
        f"{PARIS_CALL}\n{ROME_CALL}",
        FinishReason.STOP,
    ),
    "cut call": (chat(tools=[WEATHER_TOOL]), PARIS_CALL[:70], FinishReason.LENGTH),
    "markup without tools": (chat(), PARIS_CALL, FinishReason.STOP),
    "stop string": (chat(stop=["day", "zzz"]), "It is a sunny day today.", FinishReason.STOP),
}


@pytest.mark.parametrize("group", [1, 3, 1000])
@pytest.mark.parametrize("name", CASES)
async def test_streamed_and_whole_are_equal(
    name: str, group: int, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    """However the engine groups tokens into deltas."""
    body, text, finish = CASES[name]
    body = {**body, "logprobs": True, "top_logprobs": 2}
    end = "<|im_end|>" if finish is FinishReason.STOP else None
    ids = [token_id for step in say(tokenizer, text, end=end) for token_id in step]
    server.engine.will(*[(i,) for i in ids], finish=finish)
    server.engine.will(
        *[tuple(ids[i : i + group]) for i in range(0, len(ids), group)], finish=finish
    )
    whole = (await client.post(CHAT, json=body)).json()
    streamed = await client.post(
        CHAT, json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    chunks = events(streamed.content)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    joined = fold(chunks)
    choice = whole["choices"][0]
    message = choice["message"]
    assert joined["content"] == (message["content"] or "")
    assert joined["reasoning"] == joined["reasoning_content"] == (message["reasoning"] or "")
    assert message["reasoning"] == message["reasoning_content"]
    assert [c["function"] for c in joined["tool_calls"]] == [
        c["function"] for c in message.get("tool_calls", [])
    ]
    assert joined["logprobs"] == choice["logprobs"]["content"]
    assert joined["finish_reason"] == choice["finish_reason"]
    assert joined["stop_reason"] == choice["stop_reason"]


async def ask(
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
    body: dict[str, Any],
    text: str,
    finish: FinishReason = FinishReason.STOP,
) -> dict[str, Any]:
    end = "<|im_end|>" if finish is FinishReason.STOP else None
    server.engine.will(*say(tokenizer, text, end=end), finish=finish)
    response = await client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_reasoning_is_split_off_and_counted(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    answer = await ask(
        server, client, tokenizer, thinking(), "I think so.\n</think>\n\nIt is sunny."
    )
    message = answer["choices"][0]["message"]
    assert message["content"] == "It is sunny."
    assert message["reasoning"] == message["reasoning_content"] == "I think so."
    num_reasoning = len(tokenizer.encode("I think so.\n"))
    details = answer["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": num_reasoning}
    assert "tool_calls" not in message


@pytest.mark.parametrize("finish", list(FinishReason))
async def test_reasoning_alone_has_null_content(
    finish: FinishReason, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    answer = await ask(server, client, tokenizer, thinking(), "I think.", finish)
    choice = answer["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning"] == "I think."
    assert choice["finish_reason"] == finish.value


async def test_hidden_reasoning_shows_nowhere(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = thinking(include_reasoning=False, logprobs=True)
    answer = await ask(server, client, tokenizer, body, "secret\n</think>\n\nSunny.")
    choice = answer["choices"][0]
    assert choice["message"]["reasoning"] is None
    assert choice["message"]["content"] == "Sunny."
    shown = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
    assert b"secret" not in shown
    assert shown.endswith(b"Sunny.")
    num_reasoning = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert num_reasoning == len(tokenizer.encode("secret\n"))


async def test_calls_are_parsed_and_finish_as_tool_calls(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = chat(tools=[WEATHER_TOOL])
    answer = await ask(server, client, tokenizer, body, f"{PARIS_CALL}\n{ROME_CALL}")
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    calls = choice["message"]["tool_calls"]
    assert [call["type"] for call in calls] == ["function", "function"]
    assert len({call["id"] for call in calls}) == 2
    assert all(call["id"].startswith("call_") for call in calls)
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [
        {"city": "Paris", "days": 3},
        {"city": "Rome", "days": 3},
    ]


async def test_a_call_cut_at_the_limit_finishes_as_length(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = chat(tools=[WEATHER_TOOL])
    cut = PARIS_CALL[: PARIS_CALL.index("ris")]
    answer = await ask(server, client, tokenizer, body, cut, FinishReason.LENGTH)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Pa'


async def test_parallel_calls_off_gives_one(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = chat(tools=[WEATHER_TOOL], parallel_tool_calls=False)
    answer = await ask(server, client, tokenizer, body, f"{PARIS_CALL}\n{ROME_CALL}")
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER_TOOL], "tool_choice": "none"}])
async def test_without_tools_markup_is_text(
    fields: dict[str, Any], server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    answer = await ask(server, client, tokenizer, chat(**fields), PARIS_CALL)
    choice = answer["choices"][0]
    assert choice["message"]["content"] == PARIS_CALL
    assert choice["finish_reason"] == "stop"


async def test_call_fragments_name_themselves_once(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, PARIS_CALL))
    response = await client.post(CHAT, json=chat(tools=[WEATHER_TOOL], stream=True))
    chunks = events(response.content)
    fragments = [
        part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert fragments[0]["function"]["name"] == "get_weather"
    assert len(fragments) > 3  # the string value streams
    joined = fold(chunks)
    assert json.loads(joined["tool_calls"][0]["function"]["arguments"]) == {
        "city": "Paris",
        "days": 3,
    }
    assert joined["content"] == ""


async def test_choices_are_merged_as_they_come(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    texts = ("It is sunny.", "Rain", "The weather is warm today.")
    for text in texts:
        server.engine.will(*say(tokenizer, text), num_cached_tokens=2)
    body = chat(n=3, stream=True, stream_options={"include_usage": True}, seed=5)
    response = await client.post(CHAT, json=body)
    chunks = events(response.content)
    assert [fold(chunks, i)["content"] for i in range(3)] == list(texts)
    order = [chunk["choices"][0]["index"] for chunk in chunks[:-1]]
    assert order != sorted(order)
    usage = chunks[-1]["usage"]
    num_prompt = len(server.engine.submitted[0].prompt_ids)
    assert usage["prompt_tokens"] == num_prompt
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}
    num_out = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert usage["completion_tokens"] == num_out
    requests = server.engine.submitted
    assert len({request.id for request in requests}) == 3
    assert len({request.sampling.seed for request in requests}) == 3


async def test_whole_answer_with_choices(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "Rain"))
    server.engine.will(*say(tokenizer, "Sun", end=None), finish=FinishReason.LENGTH)
    choices = (await client.post(CHAT, json=chat(n=2))).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert [choice["message"]["content"] for choice in choices] == ["Rain", "Sun"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "length"]


async def test_continuous_usage_runs_along(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "It is sunny."))
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = await client.post(CHAT, json=chat(stream=True, stream_options=options))
    chunks = events(response.content)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == counts[-2] == len(tokenizer.encode("It is sunny.")) + 1


async def test_without_include_usage_no_chunk_has_usage(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "It is sunny."))
    chunks = events((await client.post(CHAT, json=chat(stream=True))).content)
    assert all(chunk.get("usage") is None and chunk["choices"] for chunk in chunks)


@pytest.mark.parametrize("text", ["It is sunny.", "é世界😀", "a\nb\t\x00c"])
async def test_logprob_bytes_join_to_the_content(
    text: str, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = chat(logprobs=True, top_logprobs=3)
    answer = await ask(server, client, tokenizer, body, text)
    choice = answer["choices"][0]
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == text.encode()
    assert choice["message"]["content"] == text
    for entry in entries:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert entry["logprob"] == -0.25
        tops = [top["logprob"] for top in entry["top_logprobs"]]
        assert tops == [-0.25, -1.25, -2.25]


async def test_null_fields_mean_default_and_unknown_ones_nothing(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = chat(model=None, stream=None, stop=None, tools=None, n=None, a_new_field={"x": 1})
    answer = await ask(server, client, tokenizer, body, "Fine.")
    assert answer["model"] == "tiny"
    assert answer["choices"][0]["message"]["content"] == "Fine."
