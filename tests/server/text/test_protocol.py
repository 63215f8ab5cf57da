from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadRequest
from server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    WireModel,
    parse_wire,
)

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
PROMPT: dict[str, Any] = {"prompt": "hi"}


def refusal(model_type: type[WireModel], fields: dict[str, Any]) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse_wire(model_type, fields)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


def chat_refusal(**fields: Any) -> BadRequest:
    return refusal(ChatCompletionRequest, {**CHAT, **fields})


def test_unknown_fields_are_ignored():
    fields = {**CHAT, "surprise": {"deep": [1]}, "user": 3, "metadata": [], "store": "?"}
    assert parse_wire(ChatCompletionRequest, fields).messages[0].content == "hi"


@pytest.mark.parametrize("model_type", [ChatCompletionRequest, CompletionRequest])
def test_null_is_the_default_everywhere(model_type: type[WireModel]):
    required = {**CHAT, **PROMPT}
    nulls = dict.fromkeys(set(model_type.model_fields) - set(required))
    assert len(nulls) > 30
    assert parse_wire(model_type, {**nulls, **required}) == parse_wire(model_type, required)


@pytest.mark.parametrize(
    "field",
    ["max_tokens", "max_completion_tokens", "top_k", "n", "seed", "min_tokens", "priority"],
)
def test_a_whole_number_is_an_integer_however_it_is_written(field: str):
    parsed = getattr(parse_wire(ChatCompletionRequest, {**CHAT, field: 5.0}), field)
    assert (parsed, type(parsed)) == (5, int)
    for value in (5.5, True, "5", 5.000001):
        assert chat_refusal(**{field: value}).message == f"{field} must be an integer"
    # Ranges hold as for any integer, and nothing overflows.
    assert chat_refusal(seed=1e300).param == "seed"
    assert chat_refusal(n=17.0).message == "n must be at most 16"


def test_whole_numbers_in_lists_are_token_ids():
    parsed = parse_wire(ChatCompletionRequest, {**CHAT, "stop_token_ids": [1, 2.0]})
    assert parsed.stop_token_ids == [1, 2]
    assert type(parsed.stop_token_ids[1]) is int
    assert chat_refusal(stop_token_ids=[1, 2.5]).param == "stop_token_ids.1"
    assert parse_wire(CompletionRequest, {"prompt": [1.0, 2]}).prompt == [[1, 2]]
    assert parse_wire(CompletionRequest, {"prompt": [[1.0], [2]]}).prompt == [[1], [2]]
    assert refusal(CompletionRequest, {"prompt": [1.5, 2]}).param == "prompt"
    assert parse_wire(DetokenizeRequest, {"tokens": [3.0]}).tokens == [3]


def test_nested_nulls_are_defaults():
    message = {"role": "user", "content": None, "tool_calls": None, "reasoning": None}
    parsed = parse_wire(
        ChatCompletionRequest, {"messages": [message], "stream_options": {"include_usage": None}}
    )
    assert parsed.messages[0].content is None
    assert parsed.messages[0].tool_calls == []
    assert parsed.stream_options is not None
    assert parsed.stream_options.include_usage is False


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("temperature", "0.5", "must be a number"),
        ("temperature", True, "must be a number"),
        ("temperature", -0.1, "must be at least 0.0"),
        ("temperature", 2.01, "must be at most 2.0"),
        ("temperature", float("nan"), "must be a finite number"),
        ("temperature", float("inf"), "must be a finite number"),
        ("temperature", 10**400, "must be a number"),
        ("top_p", 0, "must be greater than 0.0"),
        ("top_p", 1.1, "must be at most 1.0"),
        ("min_p", -0.5, "must be at least 0.0"),
        ("min_p", 1.5, "must be at most 1.0"),
        ("top_k", -2, "must be at least -1"),
        ("top_k", 5.5, "must be an integer"),
        ("presence_penalty", 2.5, "must be at most 2.0"),
        ("presence_penalty", -2.5, "must be at least -2.0"),
        ("frequency_penalty", 2.5, "must be at most 2.0"),
        ("frequency_penalty", -2.5, "must be at least -2.0"),
        ("repetition_penalty", 0, "must be greater than 0.0"),
        ("repetition_penalty", -0.5, "must be greater than 0.0"),
        ("seed", 2**63, "must be at most 9223372036854775807"),
        ("seed", -(2**63) - 1, "must be at least -9223372036854775808"),
        ("seed", 1.5, "must be an integer"),
        ("n", 0, "must be at least 1"),
        ("n", 17, "must be at most 16"),
        ("n", True, "must be an integer"),
        ("best_of", 17, "must be at most 16"),
        ("max_tokens", 0, "must be at least 1"),
        ("max_tokens", "5", "must be an integer"),
        ("max_completion_tokens", 0, "must be at least 1"),
        ("min_tokens", -1, "must be at least 0"),
        ("stop", 5, "must be a string or a list of strings"),
        ("stop", ["a", 5], "must be a string or a list of strings"),
        ("stop", "", "must not hold an empty string"),
        ("stop", ["a", ""], "must not hold an empty string"),
        ("stop", ["a"] * 17, "must have at most 16 strings"),
        ("stop", "a" * 1025, "must not hold a string longer than 1024 characters"),
        ("stop_token_ids", 5, "must be a list"),
        ("stop_token_ids.1", [1, "2"], "must be an integer"),
        ("logit_bias", [1], "must be an object of token ids to numbers"),
        ("logit_bias", {"1": "2"}, "must hold numbers from -100 to 100"),
        ("logit_bias", {"1": True}, "must hold numbers from -100 to 100"),
        ("logit_bias", {"1": 100.5}, "must hold numbers from -100 to 100"),
        ("logit_bias", {"1": float("nan")}, "must hold numbers from -100 to 100"),
        ("logit_bias", {str(i): 1 for i in range(1025)}, "must have at most 1024 entries"),
        ("allowed_token_ids.0", [True], "must be an integer"),
        ("bad_words.0", [3], "must be a string"),
        ("bad_words", ["a"] * 1025, "must have at most 1024 entries"),
        ("ignore_eos", 1, "must be true or false"),
        ("stream", "true", "must be true or false"),
        ("stream_options", [], "must be an object"),
        ("stream_options.include_usage", {"include_usage": 1}, "must be true or false"),
        ("cache_salt", "", "must not be empty"),
        ("cache_salt", 5, "must be a string"),
        ("priority", 1.5, "must be an integer"),
        ("truncate_prompt_tokens", -2, "must be at least -1"),
        ("model", 5, "must be a string"),
        ("logprobs", 1, "must be true or false"),
        ("top_logprobs", 21, "must be at most 20"),
        ("top_logprobs", -1, "must be at least 0"),
        ("tools", [], "must not be empty"),
        ("tools", {}, "must be a list"),
        ("tools", [{"type": "function"}] * 129, "must have at most 128 entries"),
        ("tools.0", ["f"], "must be an object"),
        ("chat_template_kwargs", [], "must be an object"),
        ("reasoning_effort", 5, "must be a string"),
        ("parallel_tool_calls", "no", "must be true or false"),
        ("include_reasoning", 0, "must be true or false"),
    ],
)
def test_field_rules(field: str, value: Any, rule: str):
    caught = chat_refusal(**{field.split(".")[0]: value})
    assert caught.message == f"{field} {rule}"
    assert caught.param == field


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages must not be empty"),
        ("hi", "messages must be a list"),
        ([{"role": "user"}] * 4097, "messages must have at most 4096 entries"),
        (["hi"], "messages.0 must be an object"),
        ([{}], "messages.0.role is required"),
        ([{"role": "user", "content": 5}], "messages.0.content must be a string, null or a list"),
        ([{"role": "user", "content": ["hi"]}], "messages.0.content must be a string, null or a"),
        ([{"role": "user"}, {"role": "user", "content": {}}], "messages.1.content must be"),
        ([{"role": "assistant", "reasoning": 5}], "messages.0.reasoning must be a string"),
        ([{"role": "assistant", "tool_calls": {}}], "messages.0.tool_calls must be a list"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {}}]}],
            "messages.0.tool_calls.0.function.name is required",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}],
            "messages.0.tool_calls.0.function.arguments must be a JSON object as a string",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"type": "x", "function": {"name": "f"}}]}],
            "messages.0.tool_calls.0.type must be 'function'",
        ),
    ],
)
def test_message_rules(messages: Any, message: str):
    caught = refusal(ChatCompletionRequest, {"messages": messages})
    assert caught.message.startswith(message)
    assert caught.param == message.split(" ")[0]


def test_roles():
    for role in ("system", "developer", "user", "assistant", "tool"):
        parse_wire(ChatCompletionRequest, {"messages": [{"role": role}]})
    caught = refusal(ChatCompletionRequest, {"messages": [{"role": "wizard"}]})
    assert caught.param == "messages.0.role"
    assert "'developer'" in caught.message
    assert "wizard" not in caught.message


def test_messages_are_required():
    assert refusal(ChatCompletionRequest, {}).message == "messages is required"


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("hi", ["hi"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a"] * 128, ["a"] * 128),
    ],
)
def test_prompt_forms(prompt: Any, parsed: Any):
    assert parse_wire(CompletionRequest, {"prompt": prompt}).prompt == parsed


@pytest.mark.parametrize(
    "prompt",
    [5, True, {}, [], [True], [1, "a"], ["a", 1], [[1], ["a"]], [[1], 2], [[True]], [1.5], [[[1]]]],
)
def test_prompts_of_another_form(prompt: Any):
    caught = refusal(CompletionRequest, {"prompt": prompt})
    assert caught.message.startswith("prompt must be a string, a list of strings, token ids, or")


@pytest.mark.parametrize("prompt", [["a"] * 129, [[1]] * 129])
def test_prompts_per_batch(prompt: Any):
    caught = refusal(CompletionRequest, {"prompt": prompt})
    assert caught.message == "prompt must have at most 128 prompts"


def test_completion_logprobs():
    assert parse_wire(CompletionRequest, {**PROMPT, "logprobs": 20}).logprobs == 20
    for value in (21, -1, True):
        assert refusal(CompletionRequest, {**PROMPT, "logprobs": value}).param == "logprobs"


def test_completion_max_tokens_may_be_zero_on_the_wire():
    assert parse_wire(CompletionRequest, {**PROMPT, "max_tokens": 0}).max_tokens == 0


def test_integers_pass_for_numbers_only():
    parsed = parse_wire(ChatCompletionRequest, {**CHAT, "temperature": 1, "logit_bias": {"3": 5}})
    assert parsed.temperature == 1.0
    assert parsed.logit_bias == {"3": 5}


def test_token_lists_of_the_token_endpoints():
    assert parse_wire(DetokenizeRequest, {"tokens": [1, 2]}).tokens == [1, 2]
    assert refusal(DetokenizeRequest, {"tokens": [1.5]}).param == "tokens.0"
    assert refusal(DetokenizeRequest, {}).message == "tokens is required"
    assert refusal(TokenizeRequest, {"messages": []}).param == "messages"


@given(
    name=st.sampled_from(sorted(ChatCompletionRequest.model_fields)),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_any_value_parses_or_is_refused_shortly(name: str, value: Any):
    refused = None
    try:
        parse_wire(ChatCompletionRequest, {**CHAT, name: value})
    except BadRequest as error:
        refused = error
    if refused is not None:
        assert refused.param is not None
        assert refused.param.split(".")[0] == name
        assert len(refused.message) < 400


def test_the_schema_shows_the_wire_types():
    completion = CompletionRequest.model_json_schema()["properties"]
    assert {"type": "string"} in completion["prompt"]["anyOf"]
    assert completion["logit_bias"]["type"] == "object"
    chat = ChatCompletionRequest.model_json_schema()
    content = chat["$defs"]["ChatMessage"]["properties"]["content"]
    assert {"type": "string"} in content["anyOf"]


def test_a_long_bad_list_gives_one_short_error():
    caught = chat_refusal(stop_token_ids=["x"] * 200_000)
    assert caught.message == "stop_token_ids.0 must be an integer"
