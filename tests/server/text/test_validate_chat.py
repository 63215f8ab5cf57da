from typing import Any

import pytest

from engine import GrammarSpec, ModelConfig
from server.checkpoint_text import CheckpointText
from server.constraints import ConstraintReader, GrammarChecker
from server.errors import BadRequest
from server.protocol import ChatCompletionRequest, parse_wire
from server.valid import StreamOptions, ValidChat
from server.validate import Validator
from tests.server.text.conftest import WINDOW

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object"}},
}
HI = [{"role": "user", "content": "hi"}]


def chat(validator: Validator, **fields: Any) -> ValidChat:
    return validator.chat(parse_wire(ChatCompletionRequest, {"messages": HI, **fields}))


def refused(validator: Validator, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        chat(validator, **fields)
    return caught.value


def prompt_of(validator: Validator, tiny: CheckpointText, **fields: Any) -> str:
    return tiny.tokenizer.decode(chat(validator, **fields).generation.prompt_ids)


def test_the_least_request(validator: Validator, tiny: CheckpointText):
    valid = chat(validator)
    generation = valid.generation
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert generation.prompt_ids == tuple(tiny.tokenizer.encode(text))
    assert generation.n == 1
    assert generation.stop == ()
    assert generation.skip_special_tokens is True
    assert generation.eos_ids == tiny.tokenizer.eos_ids | {7}
    assert generation.sampling.max_tokens == WINDOW - len(generation.prompt_ids)
    assert generation.sampling.num_logprobs is None
    assert valid.stream is None
    assert valid.tools is None
    assert valid.thinking is True
    assert valid.include_reasoning is True
    assert valid.parallel_tool_calls is True
    assert valid.logprobs is False


def test_model_names(validator: Validator):
    chat(validator, model="tiny")
    chat(validator, model="alias")
    caught = refused(validator, model="gpt-5")
    assert (caught.status, caught.code, caught.param) == (404, "model_not_found", "model")
    assert caught.type == "invalid_request_error"
    assert "gpt-5" not in caught.message


def test_limits_of_max_tokens(validator: Validator):
    room = WINDOW - len(chat(validator).generation.prompt_ids)
    assert chat(validator, max_tokens=5).generation.sampling.max_tokens == 5
    assert chat(validator, max_tokens=WINDOW).generation.sampling.max_tokens == room
    both = chat(validator, max_tokens=5, max_completion_tokens=7)
    assert both.generation.sampling.max_tokens == 7
    for name in ("max_tokens", "max_completion_tokens"):
        caught = refused(validator, **{name: WINDOW + 1})
        assert caught.param == name
        assert str(WINDOW) in caught.message


def test_the_window_may_change(validator: Validator):
    validator.max_model_len = 20
    caught = refused(validator, max_tokens=21)
    assert caught.message == "max_tokens must be at most 20, this model's maximum context length"


def test_prompts_past_the_window(validator: Validator):
    num_tokens = len(chat(validator).generation.prompt_ids)
    validator.max_model_len = num_tokens + 1
    assert chat(validator).generation.sampling.max_tokens == 1
    validator.max_model_len = num_tokens
    caught = refused(validator)
    assert caught.code == "context_length_exceeded"
    assert str(num_tokens) in caught.message


def test_text_is_bounded_before_it_is_tokenised(validator: Validator):
    long = [{"role": "user", "content": "x" * (16 * WINDOW)}]
    caught = refused(validator, messages=long)
    assert caught.code == "context_length_exceeded"
    assert f"more than {16 * WINDOW} characters" in caught.message


def test_thinking_follows_the_template(validator: Validator):
    assert chat(validator, chat_template_kwargs={"enable_thinking": True}).thinking
    assert not chat(validator, chat_template_kwargs={"enable_thinking": False}).thinking
    assert not chat(validator, reasoning_effort="none").thinking
    assert chat(validator, reasoning_effort="high").thinking
    assert chat(validator, chat_template_kwargs={"enable_thinking": None}).thinking
    explicit = {"enable_thinking": True}
    assert chat(validator, reasoning_effort="none", chat_template_kwargs=explicit).thinking
    caught = refused(validator, chat_template_kwargs={"enable_thinking": "false"})
    assert caught.param == "chat_template_kwargs.enable_thinking"


def test_reasoning_effort_reaches_a_template_that_uses_it(
    tiny: CheckpointText, model_config: ModelConfig
):
    from server.template import ChatTemplate

    template = ChatTemplate("effort {{ reasoning_effort | default('unset') }}")
    validator = Validator(
        tiny.tokenizer,
        template,
        model_config,
        tiny.defaults,
        served_names=("m",),
        max_model_len=WINDOW,
        constraints=ConstraintReader(GrammarChecker()),  # no worker starts before it is asked
    )
    assert prompt_of(validator, tiny, reasoning_effort="high") == "effort high"
    assert prompt_of(validator, tiny, reasoning_effort="none") == "effort unset"
    assert prompt_of(validator, tiny) == "effort unset"


def test_template_arguments_cannot_replace_messages(validator: Validator, tiny: CheckpointText):
    plain = prompt_of(validator, tiny)
    kwargs = {"messages": [], "tools": [TOOL], "add_generation_prompt": False}
    assert prompt_of(validator, tiny, chat_template_kwargs=kwargs) == plain


def test_generation_prompt_and_continuation(validator: Validator, tiny: CheckpointText):
    history = [*HI, {"role": "assistant", "content": "Once"}]
    assert prompt_of(validator, tiny, messages=history, continue_final_message=True).endswith(
        "<think>\n\n</think>\n\nOnce"
    )
    opened = [*HI, {"role": "assistant", "content": "<think>\nOnce"}]
    assert chat(validator, messages=opened, continue_final_message=True).thinking
    assert prompt_of(validator, tiny, add_generation_prompt=False).endswith("hi<|im_end|>\n")
    assert not chat(validator, add_generation_prompt=False).thinking
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert refused(validator, messages=history, **both).param == "continue_final_message"
    assert refused(validator, continue_final_message=True).param == "continue_final_message"


def test_conversations_without_a_user(validator: Validator):
    caught = refused(validator, messages=[{"role": "system", "content": "S"}])
    assert caught.message == "messages: No user query found in messages."


def test_per_request_templates_are_refused(validator: Validator):
    assert refused(validator, chat_template="{{ 1 }}").param == "chat_template"


def test_a_model_without_a_template(tiny: CheckpointText, model_config: ModelConfig):
    validator = Validator(
        tiny.tokenizer,
        None,
        model_config,
        tiny.defaults,
        served_names=("m",),
        max_model_len=WINDOW,
        constraints=ConstraintReader(GrammarChecker()),  # no worker starts before it is asked
    )
    assert "no chat template" in refused(validator).message


def test_tools_are_in_the_prompt_and_in_the_answer(validator: Validator, tiny: CheckpointText):
    tools = [TOOL]
    valid = chat(validator, tools=tools)
    assert valid.tools == (TOOL,)
    assert chat(validator, tools=tools, tool_choice="auto").tools == (TOOL,)
    none = chat(validator, tools=tools, tool_choice="none")
    assert none.tools is None
    assert none.generation.prompt_ids == valid.generation.prompt_ids
    assert "get_weather" in tiny.tokenizer.decode(valid.generation.prompt_ids)
    assert chat(validator, tools=tools, parallel_tool_calls=False).parallel_tool_calls is False


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"function": {"name": "f"}}, "tools.0.type"),
        ({"type": "web", "function": {"name": "f"}}, "tools.0.type"),
        ({"type": "function"}, "tools.0.function"),
        (function(name=""), "tools.0.function.name"),
        (function(name="a b"), "tools.0.function.name"),
        (function(name="f\n"), "tools.0.function.name"),
        (function(name="x" * 65), "tools.0.function.name"),
        (function(name=5), "tools.0.function.name"),
        (function(description=5), "tools.0.function.description"),
        (function(parameters=[]), "tools.0.function.parameters"),
        (function(strict="yes"), "tools.0.function.strict"),
    ],
)
def test_tool_declarations(validator: Validator, tool: dict[str, Any], param: str):
    caught = refused(validator, tools=[tool])
    assert caught.param == param
    assert caught.message.startswith(param)


def test_tool_names_and_nulls_that_are_fine(validator: Validator):
    nulls = function(name="A-z_9" + "x" * 59, description=None, parameters=None, strict=None)
    assert chat(validator, tools=[nulls, function(strict=False)]).tools is not None


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"type": "function", "function": {"name": "nobody"}},
            "tool_choice.function.name must name a declared tool",
        ),
        ({"type": "function"}, "tool_choice.function.name must name a declared tool"),
        ({"type": "allowed_tools"}, "tool_choice must be"),
        ("always", "tool_choice must be"),
        (5, "tool_choice must be"),
        ([], "tool_choice must be"),
    ],
)
def test_tool_choices(validator: Validator, choice: Any, message: str):
    assert refused(validator, tools=[TOOL], tool_choice=choice).message.startswith(message)


@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function"}])
def test_a_choice_needs_tools(validator: Validator, choice: Any):
    caught = refused(validator, tool_choice=choice)
    assert caught.message == "tool_choice is only allowed with tools"


def test_logprobs(validator: Validator):
    sampled = chat(validator, logprobs=True)
    assert sampled.logprobs is True
    assert sampled.generation.sampling.num_logprobs == 0
    top = chat(validator, logprobs=True, top_logprobs=20)
    assert top.generation.sampling.num_logprobs == 20
    assert refused(validator, top_logprobs=3).param == "top_logprobs"
    assert refused(validator, logprobs=False, top_logprobs=0).param == "top_logprobs"


def test_stream_options(validator: Validator):
    assert chat(validator, stream=True).stream == StreamOptions()
    usage = {"include_usage": True, "continuous_usage_stats": True}
    assert chat(validator, stream=True, stream_options=usage).stream == StreamOptions(
        include_usage=True, continuous_usage=True
    )
    alone = {"continuous_usage_stats": True}
    assert chat(validator, stream=True, stream_options=alone).stream == StreamOptions()
    assert refused(validator, stream_options={}).param == "stream_options"


@pytest.mark.parametrize(
    "field",
    [
        "prompt_embeds",
        "use_beam_search",
        "logits_processors",
        "functions",
        "function_call",
        "echo",
    ],
)
def test_what_cannot_be_honoured_is_refused(validator: Validator, field: str):
    for value in (True, 0, "x", {}, [{}]):
        caught = refused(validator, **{field: value})
        assert caught.param == field
        assert "not supported" in caught.message
    for value in (None, False, []):
        chat(validator, **{field: value})


def test_no_function_is_no_function(validator: Validator):
    chat(validator, functions=[], function_call="none")
    assert refused(validator, function_call="auto").param == "function_call"


def test_a_prompt_that_is_too_long_is_told_so_in_one_way(validator: Validator):
    words = "word " * 100_000
    for fields in ({"messages": [{"role": "user", "content": words}]}, {"tools": [tool(words)]}):
        caught = refused(validator, **fields)
        assert caught.param == "messages"
        assert caught.code == "context_length_exceeded"
        assert "maximum context length of" in caught.message


def tool(description: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "description": description}}


def test_response_formats(validator: Validator):
    assert grammar_of(validator, response_format={"type": "text"}) is None
    schema = {"name": "x", "schema": {"type": "integer"}}
    for value in ({"type": "json_object"}, {"type": "json_schema", "json_schema": schema}):
        grammar = grammar_of(validator, response_format=value)
        assert grammar is not None
        assert grammar.after_token_id is not None  # the prompt ends in an open think block
        off = {"enable_thinking": False}
        grammar = grammar_of(validator, response_format=value, chat_template_kwargs=off)
        assert grammar is not None
        assert grammar.after_token_id is None
    for value in ({}, {"type": "xml"}, {"type": []}, {"type": "structural_tag"}, "text", 5):
        assert refused(validator, response_format=value).param == "response_format"


def grammar_of(validator: Validator, **fields: Any) -> GrammarSpec | None:
    return chat(validator, **fields).generation.sampling.grammar


@pytest.mark.parametrize(
    "forced",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"tools": [{**TOOL, "function": {**TOOL["function"], "strict": True}}]},
    ],
)
def test_forced_and_strict_tools_bind_the_answer(validator: Validator, forced: dict[str, Any]):
    assert grammar_of(validator, tools=[TOOL]) is None
    valid = chat(validator, **{"tools": [TOOL], **forced})
    assert valid.tools is not None
    assert valid.generation.sampling.grammar is not None


def test_nothing_stops_a_forced_call_halfway(validator: Validator):
    wished = {"tools": [TOOL], "stop": ["Paris", "\n"], "stop_token_ids": [5]}
    free = chat(validator, **wished).generation
    assert free.stop == ("Paris", "\n")
    assert 5 in free.sampling.stop_token_ids
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        forced = chat(validator, **wished, tool_choice=choice).generation
        assert forced.stop == ()
        assert 5 not in forced.sampling.stop_token_ids
        assert forced.sampling.stop_token_ids
    assert refused(validator, tools=[TOOL], tool_choice="required", stop_token_ids=[-1])


def test_settings_that_pass_through(validator: Validator):
    valid = chat(
        validator,
        n=3,
        stop=["a", "b"],
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        priority=-2,
        include_reasoning=False,
        cache_salt="tenant",
    )
    generation = valid.generation
    assert generation.n == 3
    assert generation.stop == ("a", "b")
    assert generation.include_stop is True
    assert generation.skip_special_tokens is False
    assert generation.priority == -2
    assert valid.include_reasoning is False


def test_truncation_keeps_the_end(validator: Validator):
    whole = chat(validator).generation.prompt_ids
    kept = chat(validator, truncate_prompt_tokens=4).generation.prompt_ids
    assert kept == whole[-4:]
    assert chat(validator, truncate_prompt_tokens=10**9).generation.prompt_ids == whole
    validator.max_model_len = len(whole)
    assert chat(validator, truncate_prompt_tokens=-1).generation.prompt_ids == whole[1:]
    assert refused(validator, truncate_prompt_tokens=0).param == "truncate_prompt_tokens"
