"""Structured output and forced tools on the default model, whose own words are noise.

Whatever the weights say, an answer that was not cut has the shape that was asked for, streamed and
whole, with and without thinking.
"""

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pydantic
import pytest

from tests.e2e.live import LiveServer, live_server

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
ASK = [{"role": "user", "content": "Tell me."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("structured") / "log") as server:
        yield server


def answer(server: LiveServer, **fields: Any) -> dict[str, Any]:
    body = {"messages": ASK, "max_tokens": 400, "thinking_token_budget": 20, **fields}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] != "length", choice
    return choice


def check_person(text: str) -> None:
    person = json.loads(text)
    assert list(person) in (["name", "age"], ["name", "age", "tags"])
    assert isinstance(person["name"], str)
    assert len(person["name"]) <= 12
    assert 0 <= person["age"] <= 120
    assert set(person.get("tags", [])) <= {"red", "green"}


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_json_schema(server: LiveServer, thinks: bool, seed: int) -> None:
    choice = answer(
        server,
        seed=seed,
        chat_template_kwargs={"enable_thinking": thinks},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON, "strict": True},
        },
    )
    check_person(choice["message"]["content"])
    assert bool(choice["message"]["reasoning"]) == thinks


def test_regex_choice_and_grammar(server: LiveServer) -> None:
    for given, pattern in (
        ({"regex": "[a-c]{3}-\\d{2}"}, "[a-c]{3}-\\d{2}"),
        ({"choice": ["yes", "no", "maybe so"]}, "yes|no|maybe so"),
        ({"grammar": 'root ::= "<" [xy] ">"'}, "<[xy]>"),
    ):
        for seed in range(3):
            choice = answer(server, seed=seed, structured_outputs=given)
            assert re.fullmatch(pattern, choice["message"]["content"]), choice
            body = {"prompt": "x", "max_tokens": 60, "seed": seed, "structured_outputs": given}
            text = server.post("/v1/completions", body).json()["choices"][0]["text"]
            assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_forced_calls(server: LiveServer, thinks: bool, seed: int) -> None:
    common: dict[str, Any] = {
        "seed": seed,
        "tools": [WEATHER, TIME],
        "chat_template_kwargs": {"enable_thinking": thinks},
        "max_tokens": 2000,
    }
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in (
        answer(server, tool_choice=named, **common),
        answer(server, tool_choice="required", parallel_tool_calls=False, **common),
    ):
        assert choice["finish_reason"] == "tool_calls"
        assert not choice["message"]["content"]
        (call,) = choice["message"]["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "get_weather":
            assert {"city", "days"} <= set(arguments) <= {"city", "days", "unit"}
            assert arguments["days"] in range(1, 10)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("forced", ["json_object", "required"])
def test_tags_that_other_tokens_spell_end_no_thinking(
    server: LiveServer, forced: str, seed: int
) -> None:
    """Where it is free, the model may write nothing but the pieces of `</think>` and braces."""
    words = ("</", "think", ">", "{", "}")
    found = [server.post("/tokenize", {"prompt": word}).json()["tokens"] for word in words]
    fields: dict[str, Any] = {"response_format": {"type": "json_object"}}
    if forced == "required":
        fields = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    choice = answer(
        server,
        seed=seed,
        temperature=2,
        frequency_penalty=2,  # so that no piece comes much oftener than the others
        allowed_token_ids=sorted({token_id for ids in found for token_id in ids}),
        thinking_token_budget=150,
        max_tokens=800,
        **fields,
    )
    message = choice["message"]
    assert message["reasoning_content"]
    if forced == "required":
        assert not message["content"]
        assert choice["finish_reason"] == "tool_calls"
        for call in message["tool_calls"]:
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
    else:
        assert isinstance(json.loads(message["content"]), dict)


def test_streamed_equals_whole(server: LiveServer) -> None:
    body: dict[str, Any] = {
        "messages": ASK,
        "seed": 3,
        "max_tokens": 400,
        "thinking_token_budget": 10,
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    whole = answer(server, **body)["message"]["tool_calls"][0]["function"]
    with openai.OpenAI(base_url=server.base_url + "/v1", api_key="x", max_retries=0) as client:
        model = client.models.list().data[0].id
        extra = {"thinking_token_budget": body.pop("thinking_token_budget")}
        stream = client.chat.completions.create(model=model, stream=True, extra_body=extra, **body)
        arguments = "".join(
            call.function.arguments or ""
            for chunk in stream
            for call in chunk.choices[0].delta.tool_calls or ()
            if call.function
        )
    assert arguments == whole["arguments"]


class Point(pydantic.BaseModel):
    x: int
    label: str = pydantic.Field(max_length=10)


def test_the_sdk_parses_pydantic_models(server: LiveServer) -> None:
    with openai.OpenAI(base_url=server.base_url + "/v1", api_key="x", max_retries=0) as client:
        model = client.models.list().data[0].id
        chat = client.chat.completions.parse(
            model=model,
            messages=ASK,  # type: ignore[arg-type]
            response_format=Point,
            max_tokens=400,
            seed=1,
            extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        )
        assert isinstance(chat.choices[0].message.parsed, Point)
        response = client.responses.parse(
            model=model,
            input="A point.",
            text_format=Point,
            max_output_tokens=400,
            extra_body={"seed": 1, "chat_template_kwargs": {"enable_thinking": False}},
        )
        assert isinstance(response.output_parsed, Point)


def test_what_cannot_be_served_is_refused_and_named(server: LiveServer) -> None:
    for fields, param in (
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            "response_format",
        ),
        ({"structured_outputs": {"regex": "(("}}, "structured_outputs"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool"),
    ):
        response = server.post("/v1/chat/completions", {"messages": ASK, **fields})
        assert response.status_code == 400, response.text
        assert param in response.json()["error"]["param"]


# Two automata whose product takes minutes.
ENDLESS = {
    "allOf": [{"type": "integer", "multipleOf": 9973}, {"type": "integer", "multipleOf": 9967}]
}
GOOD = {"structured_outputs": {"grammar": 'start: "yes" | "no"'}, "temperature": 0}


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ('start: a\na: %json {"type": "integer", "multipleOf": 100000007}', "in line 2 "),
        ("start: a\n\na: /[a-z]{1,20000}/", "in line 3 "),
        ('root ::= "ab"{0,50000}', "in line 1 "),
    ],
)
def test_grammars_past_the_limits_are_refused_by_their_line(
    server: LiveServer, grammar: str, said: str
) -> None:
    before = answer(server, **GOOD)
    body = {"messages": ASK, "structured_outputs": {"grammar": grammar}}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400, response.text
    assert len(response.content) < 4096
    error = response.json()["error"]
    assert error["param"] == "structured_outputs"
    assert error["message"].startswith("structured_outputs.grammar cannot be used: " + said)
    assert answer(server, **GOOD) == before


def test_schemas_that_compile_for_ever_hold_up_nobody(server: LiveServer) -> None:
    before = answer(server, **GOOD)
    body = {"messages": ASK, "structured_outputs": {"json": ENDLESS}}
    with ThreadPoolExecutor(5) as threads:
        slow = [
            threads.submit(server.post, "/v1/chat/completions", {**body, "seed": i})
            for i in range(4)
        ]
        for _ in range(5):
            assert server.post("/tokenize", {"prompt": "Tell me."}).status_code == 200
            assert answer(server, **GOOD) == before, "a grammar that is known waits for none"
        assert not all(one.done() for one in slow), "they are compiled two at a time"
        for one in slow:
            assert one.result().status_code == 400
            assert "takes too long to compile" in one.result().json()["error"]["message"]
    assert answer(server, **GOOD) == before


def test_a_client_that_goes_away_ends_the_compilation(server: LiveServer) -> None:
    body = {"messages": ASK, "structured_outputs": {"json": ENDLESS}}
    for _ in range(2):  # as many as are compiled at a time
        with pytest.raises(httpx.ReadTimeout):
            server.post("/v1/chat/completions", body, timeout=0.3)
    new = {"messages": ASK, "structured_outputs": {"choice": ["quite", "new"]}}
    reply = server.post("/v1/chat/completions", new, timeout=3.5)  # before their time is up
    assert reply.status_code == 200, reply.text


def test_killed_grammar_workers_are_replaced(server: LiveServer) -> None:
    workers = server.children("constraints.worker")
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    for i in range(3):  # as many as there are workers, and one more
        given = {"choice": [f"new {i}", f"other {i}"]}
        assert answer(server, structured_outputs=given)["message"]["content"] in given["choice"]
    assert not set(server.children("constraints.worker")) & set(workers)
