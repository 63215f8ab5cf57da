from typing import Any

import pytest

from server.checkpoint_text import CheckpointText
from server.errors import BadRequest
from server.template import ChatTemplate, TooLong, starts_in_reasoning

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "description": "<é> & 'q'"}}


@pytest.fixture(scope="module")
def template(tiny: CheckpointText) -> ChatTemplate:
    assert tiny.template is not None
    return tiny.template


def render(source: str, *messages: dict[str, Any], **options: Any) -> str:
    options = {"add_generation_prompt": True, "max_chars": 10_000, **options}
    return ChatTemplate(source).render(messages or (USER,), None, **options)


def whole(template: ChatTemplate, *messages: dict[str, Any], **options: Any) -> str:
    options = {"add_generation_prompt": True, "max_chars": 10_000, **options}
    return template.render(messages, options.pop("tools", None), **options)


def test_prompt_of_a_conversation(template: ChatTemplate):
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "x", "b": [1, "é"]}}}
    prompt = whole(
        template,
        {"role": "system", "content": " Be brief. "},
        USER,
        {"role": "assistant", "content": "", "reasoning_content": "why", "tool_calls": [call]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        tools=[TOOL],
    )
    assert prompt == (
        "<|im_start|>system\n# Tools\n<tools>\n"
        '{"type": "function", "function": {"name": "f", "description": "<é> & \'q\'"}}\n</tools>\n'
        "Call one as <tool_call>\n<function=name>\n...after </think> <think>\n\n"
        "Be brief.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nwhy\n</think>\n\n<tool_call>\n<function=f>\n"
        '<parameter=a>\nx\n</parameter>\n<parameter=b>\n[1, "é"]\n</parameter>\n'
        "</function>\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n"
        "</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


def test_template_arguments(template: ChatTemplate):
    assert "enable_thinking" in template.kwarg_names
    off = whole(template, USER, kwargs={"enable_thinking": False})
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert whole(template, USER, kwargs={"unused": 1}) == whole(template, USER)


@pytest.mark.parametrize(
    "name",
    ["messages", "tools", "add_generation_prompt", "raise_exception", "range", "bos_token"],
)
def test_arguments_of_the_renderer_cannot_be_replaced(name: str):
    source = (
        "{{ messages[0].content }}|{{ tools }}|{{ add_generation_prompt }}|{{ bos_token }}|"
        "{% for i in range(1) %}{{ i }}{% endfor %}{{ raise_exception is none }}"
    )
    template = ChatTemplate(source, special_tokens={"bos_token": "<s>"})
    assert name not in template.kwarg_names
    plain = whole(template, USER)
    assert plain == "hi|None|True|<s>|0False"
    assert whole(template, USER, kwargs={name: None}) == plain


def test_refusals_of_the_template_reach_the_client(template: ChatTemplate):
    with pytest.raises(BadRequest) as caught:
        whole(template, {"role": "assistant", "content": "x"})
    assert caught.value.message == "messages: No user query found in messages."
    assert caught.value.param == "messages"
    with pytest.raises(BadRequest) as caught:
        render("{{ raise_exception('x' * 5000) }}")
    assert len(caught.value.message) < 250


@pytest.mark.parametrize(
    "source",
    [
        "{{ missing.field }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ messages[5].content.x }}",
        "{% for k, v in messages[0].content|items %}{% endfor %}",
        "{{ messages|tojson(indent=messages) }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_other_failures_say_nothing_of_our_insides(source: str):
    with pytest.raises(BadRequest) as caught:
        render(source)
    assert caught.value.message == "messages: the chat template cannot render this conversation"


def test_bad_syntax_is_refused_at_start():
    with pytest.raises(ValueError, match="does not compile: line 2"):
        ChatTemplate("x\n{% for %}")


def test_output_is_bounded():
    long = {"role": "user", "content": "x" * 101}
    assert render("{{ messages[0].content }}", long, max_chars=101) == "x" * 101
    with pytest.raises(TooLong):
        render("{{ messages[0].content }}", long, max_chars=100)
    with pytest.raises(TooLong):
        render("{% for i in range(90000) %}{{ 'x' * 999 }}{% endfor %}", max_chars=1000)


def test_time_is_bounded():
    source = "{% for i in range(90000) %}{{ '' }}{% endfor %}"
    template = ChatTemplate(source, time_limit_s=0.0)
    with pytest.raises(BadRequest, match="took too long"):
        whole(template, USER)


def test_the_environment_is_that_of_transformers():
    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"
    assert (
        render("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "1"
    )
    assert render("{{ {'b': '<é>', 'a': [1.5, true, none]} | tojson }}") == (
        '{"b": "<é>", "a": [1.5, true, null]}'
    )
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == (
        '{\n "a": 2,\n "b": 1\n}'
    )
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "hi!"
    assert render("{{ '<b>' }}") == "<b>"


def answer(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


@pytest.mark.parametrize(
    ("last", "ending", "thinking"),
    [
        (answer("Once upon"), "<think>\n\n</think>\n\nOnce upon", False),
        (answer("Once upon \n"), "<think>\n\n</think>\n\nOnce upon", False),
        (answer(""), "<think>\n\n</think>\n\n", False),
        (answer("why</think>so"), "<think>\nwhy\n</think>\n\nso", False),
        (answer("so", reasoning_content="why"), "<think>\nwhy\n</think>\n\nso", False),
        (answer("a <think> b"), "<think>\n\n</think>\n\na <think> b", False),
        (answer("", reasoning_content="because"), "<think>\nbecause", True),
        (answer("", reasoning_content=""), "<think>\n", True),
    ],
)
def test_continuing_the_final_message(
    template: ChatTemplate, last: dict[str, Any], ending: str, thinking: bool
):
    prompt = whole(template, USER, last, add_generation_prompt=False, continue_final_message=True)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" + ending
    assert starts_in_reasoning(prompt) == thinking


def test_a_template_that_drops_the_final_message_cannot_continue_it():
    with pytest.raises(BadRequest) as caught:
        render("{{ messages[0].content }}", USER, answer("x"), continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_a_template_that_keeps_space_keeps_it_in_what_is_continued():
    source = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert render(source, USER, answer("x \n"), continue_final_message=True) == "[hi][x \n"


@pytest.mark.parametrize(
    ("prompt", "thinking"),
    [
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>user\n<think> is a tag<|im_end|>\n<|im_start|>assistant\n", False),
        ("<|im_start|>user\n</think>\n<|im_end|>\n<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\nx<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n", False),
        ("<|im_start|>assistant\n<think>\nso far", True),
        ("<think>\n", False),
        ("", False),
    ],
)
def test_where_a_prompt_ends(prompt: str, thinking: bool):
    assert starts_in_reasoning(prompt) == thinking


def test_tool_instructions_are_not_judged(template: ChatTemplate):
    assert starts_in_reasoning(whole(template, USER, tools=[TOOL]))
    off = whole(template, USER, tools=[TOOL], kwargs={"enable_thinking": False})
    assert not starts_in_reasoning(off)
