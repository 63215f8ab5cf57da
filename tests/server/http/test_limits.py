"""Limits that the operator set hold instead of the defaults, wherever they are read."""

import base64
import json
from typing import Any

import pytest

from engine import ModelConfig
from server.checkpoint_text import CheckpointText
from server.constraints import ConstraintReader, GrammarChecker
from server.limits import Limits
from server.openapi import openapi_document
from server.validate import Validator
from tests.fakes import build_server
from tests.server.http.asking import CHAT, COMPLETIONS, Call, chat

pytestmark = pytest.mark.anyio

LOW = Limits(
    max_json_depth=9,
    max_chars_per_token=1,
    max_messages=2,
    max_prompts=2,
    max_choices=2,
    max_temperature=0.5,
    max_penalty=1.0,
    max_logprobs=1,
    max_logit_bias=1,
    max_stops=1,
    max_tools=1,
    max_tool_name_chars=3,
    max_schema_bytes=200,
    max_schema_depth=1,
    max_schema_properties=1,
    max_enum_values=2,
    max_repeat=3,
)
HIGH = Limits(max_choices=40, max_temperature=5.0, max_penalty=9.0, max_stops=40, max_tools=200)
HI = {"role": "user", "content": "Hi"}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {}}}


SCHEMA = {"properties": {"a": {"type": "null"}, "b": {"type": "null"}}}
BOUND = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": SCHEMA}}}}


def deep(levels: int) -> Any:
    return {"a": deep(levels - 1)} if levels else 1


async def ask(
    checkpoint: CheckpointText,
    model_config: ModelConfig,
    checker: GrammarChecker,
    limits: Limits,
    path: str,
    body: dict[str, Any],
) -> Call:
    validator = Validator(
        checkpoint.tokenizer,
        checkpoint.template,
        model_config,
        checkpoint.defaults,
        served_names=("tiny",),
        max_model_len=8192,
        constraints=ConstraintReader(checker, limits),
        limits=limits,
    )
    server = build_server(validator, checkpoint.tokenizer, limits=limits)
    server.engine.default = None
    for _ in range(64):
        server.engine.will((3,))
    call = Call(server.app, path, body)
    await call.done()
    return call


@pytest.mark.parametrize(
    ("path", "body", "param", "rule"),
    [
        (CHAT, chat(metadata=deep(9)), None, "nested deeper than 9 levels"),
        (COMPLETIONS, {"prompt": "a" * 8193}, "prompt", "more than 8192 characters"),
        (CHAT, {"messages": [HI] * 3}, "messages", "must have at most 2 entries"),
        (COMPLETIONS, {"prompt": ["a"] * 3}, "prompt", "must have at most 2 prompts"),
        (CHAT, chat(n=3), "n", "must be at most 2"),
        (CHAT, chat(best_of=3), "best_of", "must be at most 2"),
        (CHAT, chat(temperature=0.6), "temperature", "must be at most 0.5"),
        (CHAT, chat(presence_penalty=1.5), "presence_penalty", "must be at most 1.0"),
        (CHAT, chat(frequency_penalty=-1.5), "frequency_penalty", "must be at least -1.0"),
        (CHAT, chat(logprobs=True, top_logprobs=2), "top_logprobs", "must be at most 1"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 2}, "logprobs", "must be at most 1"),
        (CHAT, chat(logit_bias={"1": 1, "2": 1}), "logit_bias", "must have at most 1 entries"),
        (CHAT, chat(stop=["a", "b"]), "stop", "must have at most 1 strings"),
        (CHAT, chat(tools=[tool("f")] * 2), "tools", "must have at most 1 entries"),
        (CHAT, chat(guided_json={"enum": [1, 2, 3]}), "guided_json", "past 2 enum values"),
        (CHAT, chat(guided_json=SCHEMA), "guided_json", "past 1 properties"),
        (CHAT, chat(guided_json={"items": {"items": {}}}), "guided_json", "deeper than 1 schemas"),
        (CHAT, chat(guided_json={"maxLength": 4}), "guided_json", "must be at most 3"),
        (
            CHAT,
            chat(guided_json={"description": "d" * 200}),
            "guided_json",
            "larger than 200 bytes",
        ),
        (CHAT, chat(guided_regex="a{4}"), "guided_regex", "bounded by more than 3"),
        (CHAT, chat(guided_regex="a" * 201), "guided_regex", "larger than 200 bytes"),
        (CHAT, chat(guided_choice=["a", "b", "c"]), "guided_choice", "more than 2 choices"),
        (CHAT, chat(tools=[BOUND], tool_choice="required"), "tools", "past 1 properties"),
        (CHAT, chat(tools=[tool("four")]), "tools.0.function.name", "must be 1 to 3 letters"),
        ("/v1/messages", {"max_tokens": 1, "messages": [HI] * 3}, None, "at most 2 entries"),
        ("/v1/responses", {"input": "a", "tools": [tool("f")] * 2}, "tools", "at most 1 entries"),
    ],
)
async def test_lower_limits(
    checkpoint: CheckpointText,
    model_config: ModelConfig,
    checker: GrammarChecker,
    path: str,
    body: dict[str, Any],
    param: str | None,
    rule: str,
) -> None:
    call = await ask(checkpoint, model_config, checker, LOW, path, body)
    assert call.status == 400
    error = json.loads(call.body)["error"]
    assert rule in error["message"]
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 40},
        {"temperature": 5},
        {"frequency_penalty": -9, "presence_penalty": 9},
        {"stop": [str(i) for i in range(40)]},
        {"tools": [tool("f")] * 130},
    ],
)
async def test_higher_limits(
    checkpoint: CheckpointText,
    model_config: ModelConfig,
    checker: GrammarChecker,
    fields: dict[str, Any],
) -> None:
    call = await ask(checkpoint, model_config, checker, HIGH, CHAT, chat(max_tokens=1, **fields))
    assert call.status == 200, call.body


def test_the_document_names_the_limits_of_its_server():
    def chat_fields(limits: Limits) -> dict[str, Any]:
        document = openapi_document("0", limits=limits)
        return document["components"]["schemas"]["ChatCompletionRequest"]["properties"]

    for limits in (Limits(), LOW):
        fields = chat_fields(limits)
        assert "x-limit" not in str(fields)
        assert fields["messages"]["maxItems"] == limits.max_messages
        assert f"'maximum': {limits.max_choices}" in str(fields["n"])
        assert f"'maximum': {limits.max_temperature}" in str(fields["temperature"])
        assert f"'minimum': {-limits.max_penalty}" in str(fields["presence_penalty"])
        assert f"'maxItems': {limits.max_tools}" in str(fields["tools"])
        assert f"'maxLength': {limits.max_tool_name_chars}" in str(fields["tools"])


def test_base64_of_the_largest_image_fits_into_a_body():
    limits = Limits()
    assert len(base64.b64encode(bytes(limits.max_image_bytes))) < limits.max_body_bytes
