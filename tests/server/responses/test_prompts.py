"""What the model is asked: the same as by the equal chat request; and what is refused."""

import re
from typing import Any

import httpx
import pytest

from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import CHAT, WEATHER_TOOL
from tests.server.responses.asking import OFF, ON, RESPONSES, WEATHER, ask, will_say

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "Weather?"}
CALL = {
    "type": "function_call",
    "call_id": "c1",
    "name": "get_weather",
    "arguments": '{"city": "Paris"}',
}
CHAT_CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "Sunny"}
CHAT_RESULT = {"role": "tool", "tool_call_id": "c1", "content": "Sunny"}


def said(text: str) -> dict[str, Any]:
    return {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def thought(text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": content}


EQUALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a string": ({"input": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}),
    "instructions": (
        {"input": [USER], "instructions": "Be brief."},
        {"messages": [{"role": "system", "content": "Be brief."}, USER]},
    ),
    "roles and parts": (
        {
            "input": [
                {"role": "developer", "content": "One."},
                {"type": "message", "role": "system", "content": "Two."},
                {
                    "type": "message",
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "a"},
                        {"type": "input_text", "text": "b"},
                    ],
                },
            ],
            "instructions": "Zero.",
        },
        {
            "messages": [
                {"role": "system", "content": "Zero."},
                {"role": "developer", "content": "One."},
                {"role": "system", "content": "Two."},
                {"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]},
            ]
        },
    ),
    "thinking": ({"input": "Hi", **ON}, {"messages": [{"role": "user", "content": "Hi"}], **ON}),
    "no thinking": (
        {"input": "Hi", "reasoning": {"effort": "none"}},
        {"messages": [{"role": "user", "content": "Hi"}], **OFF},
    ),
    "tools": (
        {"input": [USER], "tools": [WEATHER], "tool_choice": "auto"},
        {"messages": [USER], "tools": [WEATHER_TOOL]},
    ),
    "tools of OpenAI's beside one": (
        {
            "input": [USER],
            "tools": [
                {"type": "web_search_preview_2025_03_11"},
                WEATHER,
                {"type": "namespace", "name": "n", "tools": [WEATHER]},
                {"type": "custom", "name": "apply_patch", "format": {"type": "text"}},
            ],
        },
        {"messages": [USER], "tools": [WEATHER_TOOL]},
    ),
    "tools of OpenAI's alone": (
        {"input": [USER], "tools": [{"type": "web_search"}], "tool_choice": "auto"},
        {"messages": [USER]},
    ),
    "one answer is one message": (
        {
            "input": [USER, thought("Hm."), said("I look."), CALL, CALL, said("Wait."), RESULT],
            "tools": [{"strict": None, **WEATHER}],
        },
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": "I look.Wait.",
                    "reasoning_content": "Hm.",
                    "tool_calls": [CHAT_CALL, CHAT_CALL],
                },
                CHAT_RESULT,
            ],
            "tools": [WEATHER_TOOL],
        },
    ),
    "answers in a row": (
        {"input": [USER, said("One."), said("Two."), thought("Hm."), said("Three."), USER]},
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "One."},
                {"role": "assistant", "content": "Two."},
                {"role": "assistant", "content": "Three.", "reasoning_content": "Hm."},
                USER,
            ]
        },
    ),
    "calls in turn": (
        {"input": [USER, CALL, RESULT, thought("A"), thought("B"), CALL, RESULT]},
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [CHAT_CALL]},
                CHAT_RESULT,
                {"role": "assistant", "reasoning_content": "AB", "tool_calls": [CHAT_CALL]},
                CHAT_RESULT,
            ]
        },
    ),
    "a result in parts": (
        {"input": [USER, CALL, {**RESULT, "output": [{"type": "input_text", "text": "Sunny"}]}]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [CHAT_CALL]}, CHAT_RESULT]},
    ),
    "a summary": (
        {
            "input": [
                USER,
                CALL,
                RESULT,
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
                CALL,
                RESULT,
            ]
        },
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [CHAT_CALL]},
                CHAT_RESULT,
                {"role": "assistant", "reasoning_content": "Hm.", "tool_calls": [CHAT_CALL]},
                CHAT_RESULT,
            ]
        },
    ),
    "reasoning that only its maker can read": (
        {"input": [USER, {"type": "reasoning", "summary": [], "encrypted_content": "x"}, CALL]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [CHAT_CALL]}]},
    ),
    "a cut call": (
        {"input": [USER, said("One."), {**CALL, "arguments": '{"ci', "status": "incomplete"}]},
        {"messages": [USER, {"role": "assistant", "content": "One."}]},
    ),
    "empty arguments and a refusal": (
        {
            "input": [
                USER,
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
                {**CALL, "arguments": ""},
            ]
        },
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": "No.",
                    "tool_calls": [
                        {**CHAT_CALL, "function": {"name": "get_weather", "arguments": "{}"}}
                    ],
                },
            ]
        },
    ),
    "the rest": (
        {"input": "Hi", "max_output_tokens": 9, "stop": "x", "seed": 3, "top_k": 5, "min_p": 0.1},
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "max_completion_tokens": 9,
            "stop": ["x"],
            "seed": 3,
            "top_k": 5,
            "min_p": 0.1,
        },
    ),
}


@pytest.mark.parametrize("name", EQUALS)
async def test_the_prompt_is_that_of_the_equal_chat(
    name: str, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    responses, chat = EQUALS[name]
    for path, body in ((RESPONSES, responses), (CHAT, chat)):
        will_say(server, tokenizer, "Hi.")
        answer = await client.post(path, json={"seed": 1, **body})
        assert answer.status_code == 200, answer.text
    ours, theirs = server.engine.submitted
    assert tokenizer.decode(ours.prompt_ids) == tokenizer.decode(theirs.prompt_ids)
    assert ours.prompt_ids == theirs.prompt_ids
    assert ours.sampling == theirs.sampling


async def test_what_asks_for_nothing_is_accepted(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    will_say(server, tokenizer, "Hi.")
    harmless = {
        "tools": [],
        "tool_choice": "auto",
        "include": ["reasoning.encrypted_content"],
        "background": False,
        "text": {"format": {"type": "text"}},
        "stream_options": {"include_obfuscation": False},
        "top_logprobs": 0,
        "conversation": None,
        "previous_response_id": None,
        "unheard_of": {"a": 1},
    }
    response = await client.post(RESPONSES, json=ask(**harmless))
    assert response.status_code == 200, response.text


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
BAD = {"type": "object", "properties": {"a": {"not": {"minimum": 3}}}}


def format_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "name": "out", "schema": schema}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": 3}, "input"),
    ({"input": []}, "input"),
    ({"input": ["Hi"]}, "input"),
    ({"input": [{"role": "tool", "content": "Hi"}]}, "input.0.role"),
    ({"input": [{"role": "user"}]}, "input.0.content"),
    ({"input": [{"role": "user", "content": 3}]}, "input.0.content"),
    ({"input": [USER, {"type": "message", "content": "Hi"}]}, "input.1.role"),
    ({"input": [{"type": "web_search_call"}]}, "input.0.type"),
    ({"input": [{}]}, "input.0.type"),
    ({"input": [{"role": "user", "content": [{"type": "text"}]}]}, "input.0.content.0.text"),
    ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input.0.content.0.type"),
    ({"input": [{"role": "user", "content": [IMAGE]}]}, "input.0.content.0"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input.0.content.0.image_url",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        "input.0.content.0",
    ),
    ({"input": [USER, {**said(""), "content": [IMAGE]}]}, "input.1.content.0.type"),
    ({"input": [USER, {**CALL, "call_id": 1}]}, "input.1.call_id"),
    ({"input": [USER, {**CALL, "name": None}]}, "input.1.name"),
    ({"input": [USER, {**CALL, "arguments": "[1]"}]}, "input.1.arguments"),
    ({"input": [USER, {**CALL, "arguments": '{"ci'}]}, "input.1.arguments"),
    ({"input": [USER, CALL, {**RESULT, "output": None}]}, "input.2.output"),
    ({"input": [USER, CALL, {**RESULT, "output": [IMAGE]}]}, "input.2.output.0"),
    ({"input": [USER, {"type": "reasoning", "content": "Hm."}]}, "input.1.content"),
    ({"input": [{"role": "assistant", "content": "Hi"}]}, "input"),
    ({"instructions": 3}, "instructions"),
    ({"background": "yes"}, "background"),
    ({"background": True, "store": False}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"n": 2}, "n"),
    ({"include": "message.output_text.logprobs"}, "include"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": -1}, "top_logprobs"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 10**6}, "max_output_tokens"),
    ({"temperature": 9}, "temperature"),
    ({"stream": "yes"}, "stream"),
    ({"store": 1}, "store"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"metadata": {"a": "b" * 513}}, "metadata"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"truncation": "some"}, "truncation"),
    ({"reasoning": {"effort": ""}}, "reasoning.effort"),
    ({"text": {"format": {"type": "xml"}}}, "text.format"),
    ({"tools": [{"type": "web_serch"}]}, "tools.0.type"),
    ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"tools": [{"type": "mcp"}, {**WEATHER, "name": ""}]}, "tools.1.name"),
    ({"return_token_ids": True}, "return_token_ids"),
    ({"text": {"format": format_of({"not": {"minimum": 3}})}}, "text.format"),
    ({"max_output_tokens": 10**9}, "max_output_tokens"),
    ({"tools": [{**WEATHER, "parameters": BAD, "strict": True}]}, "tools"),
    ({"prompt_logprobs": 0}, "prompt_logprobs"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name"),
    ({"tools": [{**WEATHER, "parameters": []}]}, "tools.0.parameters"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}},
        "tool_choice.name",
    ),
    ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs.enable_thinking"),
    ({"stop": [""]}, "stop"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"input": "word " * 5000}, "input"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"), REFUSED, ids=[f"{i}-{r[1]}" for i, r in enumerate(REFUSED)]
)
async def test_what_is_wrong_is_named(
    fields: dict[str, Any],
    param: str,
    streamed: bool,
    server: FakeServer,
    client: httpx.AsyncClient,
) -> None:
    response = await client.post(RESPONSES, json={**ask(), "stream": streamed, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"].startswith(param.partition(".")[0])
    assert not re.search(r"function\.|response_format|max_completion", error["message"])
    assert server.engine.submitted == []


async def test_an_unknown_model_is_404(client: httpx.AsyncClient) -> None:
    response = await client.post(RESPONSES, json=ask(model="gpt-4"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_a_schema_is_refused_or_obeyed_as_in_chat(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    named = {"name": "out", "schema": schema, "strict": True}
    will_say(server, tokenizer, '{"a": 1}')
    chat = await client.post(
        CHAT,
        json={
            "messages": [USER],
            "response_format": {"type": "json_schema", "json_schema": named},
            **OFF,
        },
    )
    will_say(server, tokenizer, '{"a": 1}')
    ours = await client.post(
        RESPONSES, json=ask([USER], text={"format": {"type": "json_schema", **named}})
    )
    assert ours.status_code == chat.status_code
    if chat.status_code == 400:
        assert chat.json()["error"]["param"] == "response_format"
        assert ours.json()["error"]["param"] == "text.format"
        return
    assert ours.json()["text"]["format"] == {"type": "json_schema", **named}
    assert server.engine.submitted[0].prompt_ids == server.engine.submitted[1].prompt_ids


async def test_truncation_drops_the_oldest_turns(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    turns: list[dict[str, Any]] = []
    for number in range(9):
        turns.append({"role": "user", "content": f"Turn {number}. " + "word " * 300})
        turns.append(said("Yes."))
    turns.append({"role": "user", "content": "Last."})
    body = ask(turns, instructions="Be brief.")
    refused = await client.post(RESPONSES, json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == "input"
    will_say(server, tokenizer, "Hi.")
    response = await client.post(RESPONSES, json={**body, "truncation": "auto"})
    assert response.status_code == 200, response.text
    prompt = tokenizer.decode(server.engine.submitted[0].prompt_ids)
    first = next(i for i in range(9) if f"Turn {i}. " in prompt)
    assert first > 0
    assert "Be brief." in prompt
    assert all(f"Turn {i}. " in prompt for i in range(first, 9))
    assert prompt.rstrip().partition("Last.")[1]
    kept = ask(turns[2 * first - 2 :], instructions="Be brief.")  # one turn more is too much
    assert (await client.post(RESPONSES, json=kept)).status_code == 400

    alone = ask("word " * 5000, truncation="auto")
    assert (await client.post(RESPONSES, json=alone)).status_code == 400
