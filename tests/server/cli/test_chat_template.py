"""The demo model's chat template against the Qwen3.5 format, string by string."""

from importlib import resources
from typing import Any

import pytest

from server.errors import BadRequest
from server.template import ChatTemplate

SOURCE = resources.files("server.demo_model").joinpath("chat_template.jinja").read_text("utf-8")
TEMPLATE = ChatTemplate(SOURCE)
THINK = "<|im_start|>assistant\n<think>\n"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": 'für <"x">', "parameters": {"type": "object"}},
}

Message = dict[str, Any]


def user(content: Any = "hi") -> Message:
    return {"role": "user", "content": content}


def system(content: Any = "be kind") -> Message:
    return {"role": "system", "content": content}


def assistant(content: Any = "yes", **fields: Any) -> Message:
    return {"role": "assistant", "content": content, **fields}


def result(content: str = "ok") -> Message:
    return {"role": "tool", "content": content, "tool_call_id": "x"}


def call(name: str, **arguments: Any) -> Message:
    return {"id": "x", "type": "function", "function": {"name": name, "arguments": arguments}}


def render(*messages: Message, tools: list[Any] | None = None, **kwargs: Any) -> str:
    return TEMPLATE.render(
        messages, tools, add_generation_prompt=True, kwargs=kwargs, max_chars=10_000
    )


HI = "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user()], HI + THINK),
        ([user("  hi \n")], HI + THINK),
        ([system(), user()], "<|im_start|>system\nbe kind<|im_end|>\n" + HI + THINK),
        ([system(" "), user()], "<|im_start|>system\n<|im_end|>\n" + HI + THINK),
        (
            [user(), assistant(), user()],
            HI + "<|im_start|>assistant\nyes<|im_end|>\n" + HI + THINK,
        ),
        (
            [user(), assistant("<think>\nwhy\n</think>\n\nyes"), user()],
            HI + "<|im_start|>assistant\nyes<|im_end|>\n" + HI + THINK,
        ),
        (
            [user(), assistant("<think>\nwhy\n</think>\n\nyes")],
            HI + "<|im_start|>assistant\n<think>\nwhy\n</think>\n\nyes<|im_end|>\n" + THINK,
        ),
        (
            [user(), assistant("yes", reasoning_content="\n why ")],
            HI + "<|im_start|>assistant\n<think>\nwhy\n</think>\n\nyes<|im_end|>\n" + THINK,
        ),
        (
            [user(), assistant()],
            HI + "<|im_start|>assistant\n<think>\n\n</think>\n\nyes<|im_end|>\n" + THINK,
        ),
        (
            [user([{"type": "text", "text": "a "}, {"type": "image"}, {"video": "x"}])],
            "<|im_start|>user\na <|vision_start|><|image_pad|><|vision_end|>"
            "<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n" + THINK,
        ),
    ],
)
def test_turns(messages: list[Message], expected: str):
    assert render(*messages) == expected


def test_thinking_off_and_on():
    assert render(user(), enable_thinking=False) == HI + THINK + "\n</think>\n\n"
    assert render(user(), enable_thinking=True) == HI + THINK
    assert render(user(), enable_thinking=None) == HI + THINK


def test_pictures_are_numbered_across_turns_when_asked():
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    prompt = render(user(image), assistant(), user(image), add_vision_id=True)
    assert [f"Picture {n}: <|vision_start|>" in prompt for n in (1, 2, 3)] == [True, True, False]


def test_calls_and_results_in_history():
    calls = [
        call("first", text="raw\n", count=3, flag=True, nothing=None, many=[1, "é"], ratio=1.5),
        call("second"),
    ]
    prompt = render(
        user(),
        assistant("Look:", tool_calls=calls, reasoning_content="hm"),
        result("one"),
        result(" two "),
    )
    assert prompt == (
        HI + "<|im_start|>assistant\n<think>\nhm\n</think>\n\nLook:\n\n"
        "<tool_call>\n<function=first>\n"
        "<parameter=text>\nraw\n\n</parameter>\n<parameter=count>\n3\n</parameter>\n"
        "<parameter=flag>\nTrue\n</parameter>\n<parameter=nothing>\nNone\n</parameter>\n"
        '<parameter=many>\n[1, "é"]\n</parameter>\n<parameter=ratio>\n1.5\n</parameter>\n'
        "</function>\n</tool_call>\n"
        "<tool_call>\n<function=second>\n</function>\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\none\n</tool_response>\n"
        "<tool_response>\ntwo\n</tool_response><|im_end|>\n" + THINK
    )


def test_a_call_without_content_has_no_blank_line_before_it():
    prompt = render(user(), assistant(None, tool_calls=[call("f")]), result())
    assert "</think>\n\n<tool_call>\n<function=f>\n" in prompt


def test_a_wrapped_tool_result_is_not_a_question():
    wrapped = user("<tool_response>\nok\n</tool_response>")
    prompt = render(user(), assistant("a", reasoning_content="kept"), wrapped)
    assert "<think>\nkept\n</think>\n\na" in prompt
    assert "kept" not in render(user(), assistant("a", reasoning_content="kept"), user())


def test_equal_questions_count_by_their_place():
    prompt = render(user("same"), assistant("a", reasoning_content="old"), user("same"))
    assert "old" not in prompt


def test_tools_open_the_system_turn():
    prompt = render(system(), user(), tools=[TOOL, TOOL])
    line = (
        '{"type": "function", "function": {"name": "weather", '
        '"description": "für <\\"x\\">", "parameters": {"type": "object"}}}'
    )
    head, _, tail = prompt.partition("\n\nCall functions only in this format:\n\n")
    assert head == (
        "<|im_start|>system\n# Tools\n\nYou have access to the following functions:\n\n"
        f"<tools>\n{line}\n{line}\n</tools>"
        '\n\n- für <"x">\n<function=weather>\n- für <"x">\n<function=weather>'
    )
    example = "</function>\n</tool_call>"
    assert tail.endswith(example + "\n\nbe kind<|im_end|>\n" + HI + THINK)
    assert render(user(), tools=[TOOL]).endswith(example + "<|im_end|>\n" + HI + THINK)
    assert render(user(), tools=[]) == HI + THINK


def test_each_tool_is_listed_by_what_it_is_for_as_it_is_called():
    parameters = {"type": "object", "properties": {"city": {"type": "string"}, "unit": {}}}
    functions: list[Message] = [
        {"name": "a", "description": "Finds. And more.\nMuch more.", "parameters": parameters},
        {"name": "b", "description": "x" * 200},
        {"name": "c", "parameters": {"properties": {}}},
    ]
    tools = [{"type": "function", "function": function} for function in functions]
    lines = (
        "- Finds\n<function=a>\n<parameter=city>\n<parameter=unit>",
        f"- {'x' * 100}\n<function=b>",
        "-\n<function=c>",
    )
    assert "\n".join(("</tools>\n", *lines, "\nCall functions")) in render(user(), tools=tools)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "No messages provided."),
        ([system()], "No user query found in messages."),
        ([user(), system()], "System message must be at the beginning."),
        ([user(), {"role": "developer", "content": "x"}], "Unexpected message role."),
        ([user({"a": 1})], "Unexpected content type."),
        ([user(5)], "Unexpected content type."),
        ([user([{"type": "sound"}])], "Unexpected item type in content."),
        ([system([{"type": "image"}]), user()], "System message cannot contain images."),
    ],
)
def test_refusals(messages: list[Message], said: str):
    with pytest.raises(BadRequest, match=said):
        render(*messages)
