"""A message and the equal chat: one prompt, one set of parameters; and what tokens it counts."""

from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.errors import BadRequest
from server.messages.convert import chat_of, chat_request, num_prompt_tokens, valid_chat
from server.messages.protocol import CountTokensRequest, MessagesRequest
from server.protocol import ChatCompletionRequest, parse_wire
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer
from tests.server.messages.asking import COUNT, MESSAGES, WEATHER, message, script

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
LINKED_IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
USER = {"role": "user", "content": "Hello there."}
WEATHER_FUNCTION = {
    "type": "function",
    "function": {
        "name": WEATHER["name"],
        "description": WEATHER["description"],
        "parameters": WEATHER["input_schema"],
    },
}


def text(said: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **fields}


def tool_use(call_id: str, city: str) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": call_id,
        "name": "get_weather",
        "input": {"city": city, "days": 3},
        **CACHED,
    }


def chat_call(call_id: str, city: str) -> dict[str, Any]:
    arguments = f'{{"city": "{city}", "days": 3}}'
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def result(call_id: str, content: Any = None, **fields: Any) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": call_id, **fields}
    return block if content is None else {**block, "content": content}


TOOL_ROUND = [
    USER,
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "I need both.", "signature": "abc"},
            text("I look."),
            tool_use("toolu_1", "Paris"),
            tool_use("toolu_2", "Rome"),
        ],
    },
]
CHAT_ROUND = [
    USER,
    {
        "role": "assistant",
        "reasoning_content": "I need both.",
        "content": "I look.",
        "tool_calls": [chat_call("toolu_1", "Paris"), chat_call("toolu_2", "Rome")],
    },
]

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({"messages": [USER]}, {"messages": [USER]}),
    "blocks": (
        {"messages": [{"role": "user", "content": [text("Hello", **CACHED), text(" there.")]}]},
        {"messages": [USER]},
    ),
    "no blocks": (
        {"messages": [USER, {"role": "user", "content": []}]},
        {"messages": [USER, {"role": "user", "content": ""}]},
    ),
    "system": (
        {"messages": [USER], "system": "Be brief."},
        {"messages": [{"role": "system", "content": "Be brief."}, USER]},
    ),
    "system blocks": (
        {"messages": [USER], "system": [text("Be "), text("brief.", **CACHED)], **CACHED},
        {"messages": [{"role": "system", "content": "Be brief."}, USER]},
    ),
    "empty system": ({"messages": [USER], "system": []}, {"messages": [USER]}),
    "late system": (
        {"messages": [USER, {"role": "system", "content": [text("Be brief.")]}]},
        {"messages": [USER, {"role": "system", "content": "Be brief."}]},
    ),
    "thinking off": (
        {"messages": [USER], "thinking": {"type": "disabled"}},
        {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    ),
    "thinking on": (
        {"messages": [USER], "thinking": {"type": "enabled", "budget_tokens": 2048}},
        {
            "messages": [USER],
            "chat_template_kwargs": {"enable_thinking": True},
            "thinking_token_budget": 2048,
        },
    ),
    "template arguments first": (
        {
            "messages": [USER],
            "thinking": {"type": "adaptive"},
            "chat_template_kwargs": {"enable_thinking": False, "x": None},
        },
        {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    ),
    "null is default": (
        {
            "messages": [USER],
            "thinking": {"type": "disabled"},
            "chat_template_kwargs": {"enable_thinking": None},
            "system": None,
            "tools": None,
            "stop_sequences": None,
            "metadata": None,
        },
        {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    ),
    "effort": (
        {"messages": [USER], "output_config": {"effort": "high"}},
        {"messages": [USER], "reasoning_effort": "high"},
    ),
    "tools": (
        {"messages": [USER], "tools": [{**WEATHER, **CACHED, "type": "custom"}]},
        {"messages": [USER], "tools": [WEATHER_FUNCTION]},
    ),
    "no tools": ({"messages": [USER], "tools": []}, {"messages": [USER]}),
    "tools off": (
        {"messages": [USER], "tools": [WEATHER], "tool_choice": {"type": "none"}},
        {"messages": [USER], "tools": [WEATHER_FUNCTION], "tool_choice": "none"},
    ),
    "one call": (
        {
            "messages": [USER],
            "tools": [WEATHER],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        },
        {"messages": [USER], "tools": [WEATHER_FUNCTION], "parallel_tool_calls": False},
    ),
    "results": (
        {
            "messages": [
                *TOOL_ROUND,
                {
                    "role": "user",
                    "content": [
                        result("toolu_1", "Sunny.", **CACHED),
                        result("toolu_2", [text("No such "), text("place.")], is_error=True),
                        text("And now?"),
                    ],
                },
            ],
            "tools": [WEATHER],
        },
        {
            "messages": [
                *CHAT_ROUND,
                {"role": "tool", "tool_call_id": "toolu_1", "content": "Sunny."},
                {"role": "tool", "tool_call_id": "toolu_2", "content": "No such place."},
                {"role": "user", "content": "And now?"},
            ],
            "tools": [WEATHER_FUNCTION],
        },
    ),
    "results between text": (
        {
            "messages": [
                *TOOL_ROUND,
                {
                    "role": "user",
                    "content": [
                        text("First:"),
                        result("toolu_2"),
                        text("Then:"),
                        result("toolu_1", is_error=True),
                    ],
                },
            ]
        },
        {
            "messages": [
                *CHAT_ROUND,
                {"role": "user", "content": "First:"},
                {"role": "tool", "tool_call_id": "toolu_2", "content": ""},
                {"role": "user", "content": "Then:"},
                {"role": "tool", "tool_call_id": "toolu_1", "content": "Error"},
            ]
        },
    ),
    "redacted thinking": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [{"type": "redacted_thinking", "data": "xyz"}, text("Hi.")],
                },
                USER,
            ]
        },
        {"messages": [USER, {"role": "assistant", "content": "Hi."}, USER]},
    ),
    "prefill": (
        {"messages": [USER, {"role": "assistant", "content": "The answer is ("}]},
        {
            "messages": [USER, {"role": "assistant", "content": "The answer is ("}],
            "continue_final_message": True,
        },
    ),
    "ends in a call": ({"messages": TOOL_ROUND}, {"messages": CHAT_ROUND}),
    "sampling": (
        {
            "messages": [USER],
            "temperature": 0.5,
            "top_p": 0.5,
            "top_k": 7,
            "stop_sequences": ["a", "bc"],
            "metadata": {"user_id": "x"},
            "stream": True,
            "anthropic_beta": ["x"],
        },
        {
            "messages": [USER],
            "temperature": 0.5,
            "top_p": 0.5,
            "top_k": 7,
            "stop": ["a", "bc"],
            "stream": True,
        },
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_message_is_the_equal_chat(name: str, validator: Validator, tokenizer: Tokenizer) -> None:
    ours, theirs = PAIRS[name]
    request = parse_wire(MessagesRequest, {"max_tokens": 50, **ours})
    found = valid_chat(request, validator)
    equal = validator.chat(parse_wire(ChatCompletionRequest, {"max_tokens": 50, **theirs}))
    decode = tokenizer.decode
    assert decode(found.generation.prompt_ids) == decode(equal.generation.prompt_ids)
    assert found.generation.prompt_ids == equal.generation.prompt_ids
    assert found.generation.stop == equal.generation.stop
    assert unseeded(found.generation.sampling) == unseeded(equal.generation.sampling)
    for field in ("tools", "thinking", "parallel_tool_calls", "stream", "include_reasoning"):
        assert getattr(found, field) == getattr(equal, field)
    counted = parse_wire(CountTokensRequest, ours)
    assert num_prompt_tokens(counted, validator) == len(equal.generation.prompt_ids)


def unseeded(sampling: Any) -> Any:
    return msgspec.structs.replace(sampling, seed=0)


@pytest.mark.anyio
async def test_counted_tokens_are_the_usage_of_the_message(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = message(system="Be brief.", tools=[WEATHER], model="alias")
    counted = await client.post(COUNT, json=body)
    assert counted.status_code == 200
    assert set(counted.json()) == {"input_tokens"}
    script(server, tokenizer, "Fine.")
    usage = (await client.post(MESSAGES, json=body)).json()["usage"]
    assert counted.json()["input_tokens"] == usage["input_tokens"] > 50
    assert len(server.engine.submitted) == 1


@pytest.mark.parametrize(
    ("choice", "chat_choice", "parallel"),
    [
        ({"type": "any"}, "required", True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        (
            {"type": "tool", "name": "get_weather"},
            {"type": "function", "function": {"name": "get_weather"}},
            True,
        ),
    ],
)
def test_forced_calls_are_forced_in_the_chat(
    choice: dict[str, Any], chat_choice: Any, parallel: bool
) -> None:
    body = message(tools=[WEATHER], tool_choice=choice)
    request = parse_wire(MessagesRequest, body)
    chat = chat_request(request, chat_of(request))
    assert chat.tool_choice == chat_choice
    assert chat.parallel_tool_calls is parallel


def test_a_salt_keeps_prompts_apart() -> None:
    request = parse_wire(MessagesRequest, message(cache_salt="tenant"))
    assert chat_request(request, chat_of(request)).cache_salt == "tenant"


def test_a_budget_binds() -> None:
    body = message(thinking={"type": "enabled", "budget_tokens": 1024})
    request = parse_wire(MessagesRequest, body)
    found = chat_request(request, chat_of(request)).thinking_token_budget
    assert found == 1024


def test_an_output_schema_becomes_a_response_format() -> None:
    config = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    request = parse_wire(MessagesRequest, message(output_config=config))
    assert chat_request(request, chat_of(request)).response_format == {
        "type": "json_schema",
        "json_schema": {"name": "output", "schema": {"type": "object"}},
    }


def test_images_become_parts_of_the_chat() -> None:
    content = [text("See "), IMAGE, result("t", [LINKED_IMAGE])]
    chat = chat_of(parse_wire(MessagesRequest, message(content)))
    linked = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    inline = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert chat.messages == [
        {"role": "user", "content": [text("See "), inline]},
        {"role": "tool", "content": [linked], "tool_call_id": "t"},
    ]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (message([text("See "), IMAGE]), "messages.0.content.1"),
        (
            message([text("See "), result("t", [text("x"), IMAGE])], system="Be brief."),
            "messages.0.content.1.content.1",
        ),
        (message([result("t", "Fine."), text("a"), LINKED_IMAGE]), "messages.0.content.2"),
    ],
)
def test_what_the_chat_refuses_is_named_as_the_client_sent_it(
    fields: dict[str, Any], path: str, validator: Validator
) -> None:
    with pytest.raises(BadRequest) as refused:
        valid_chat(parse_wire(MessagesRequest, fields), validator)
    assert refused.value.param == path
    assert refused.value.message == f"{path}: this model takes no images or videos"


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(), st.text(max_size=5)
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KINDS = ("text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking", "document")
BLOCKS = st.fixed_dictionaries(
    {"type": st.one_of(st.sampled_from(KINDS), ANYTHING)},
    optional={
        "text": st.one_of(st.text(max_size=5), ANYTHING),
        "thinking": st.one_of(st.text(max_size=5), ANYTHING),
        "id": st.one_of(st.just("toolu_1"), ANYTHING),
        "tool_use_id": st.one_of(st.just("toolu_1"), ANYTHING),
        "name": st.one_of(st.just("get_weather"), ANYTHING),
        "input": ANYTHING,
        "content": ANYTHING,
        "source": ANYTHING,
        "is_error": ANYTHING,
    },
)
CONTENT = st.one_of(st.text(max_size=5), st.lists(BLOCKS, max_size=3), ANYTHING)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(("user", "assistant", "system", "tool")), "content": CONTENT}
    ),
    max_size=4,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    turns=st.one_of(TURNS, ANYTHING),
    more=st.fixed_dictionaries(
        {},
        optional={
            name: ANYTHING
            for name in ("system", "tools", "tool_choice", "thinking", "output_config", "top_k")
        },
    ),
)
def test_whatever_is_sent_is_answered_or_refused(
    turns: Any, more: dict[str, Any], validator: Validator
) -> None:
    try:
        request = parse_wire(MessagesRequest, {"max_tokens": 5, "messages": turns, **more})
        valid = valid_chat(request, validator)
    except BadRequest:
        return
    assert valid.generation.prompt_ids
