from typing import Any

import pytest

from server.errors import BadRequest
from server.media.loaded import MediaRef
from server.media_parts import media_refs
from server.protocol import ChatMessage
from server.validate_messages import template_messages

USER = {"role": "user", "content": "hi"}


def normalised(*messages: dict[str, Any], continues: bool = False) -> list[dict[str, Any]]:
    return template_messages(
        [ChatMessage.model_validate(message) for message in messages],
        continue_final_message=continues,
    )


def refused(*messages: dict[str, Any], continues: bool = False) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        normalised(*messages, continues=continues)
    return caught.value


def call(arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}],
    }


def test_one_system_message_is_left_as_it_is():
    system = {"role": "system", "content": " S "}
    assert normalised(system, USER) == [system, USER]


def test_developer_is_system():
    assert normalised({"role": "developer", "content": "D"}, USER)[0]["role"] == "system"


def test_several_and_late_system_messages_become_one():
    merged = normalised(
        {"role": "developer", "content": "A"},
        {"role": "system", "content": ""},
        USER,
        {"role": "system", "content": [{"type": "text", "text": "B"}]},
    )
    assert merged == [{"role": "system", "content": "A\n\nB"}, USER]
    late = {"role": "system", "content": "L"}
    assert normalised(USER, late) == [late, USER]


def test_text_parts_are_concatenated_and_null_is_empty():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    assert normalised({"role": "user", "content": parts})[0]["content"] == "a b"
    assert normalised({"role": "user", "content": []})[0]["content"] == ""
    for role in ("user", "assistant", "tool"):
        assert normalised({"role": role, "content": None})[0]["content"] == ""


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_audio"}, "messages.1.content.0"),
        ({"type": "audio_url", "audio_url": {"url": "data:,"}}, "messages.1.content.0"),
        ({"type": "file", "file": {}}, "messages.1.content.0"),
        ({"type": "image_url"}, "messages.1.content.0.image_url"),
        ({"type": "image_url", "image_url": ""}, "messages.1.content.0.image_url"),
        ({"type": "image_url", "image_url": ["x"]}, "messages.1.content.0.image_url"),
        ({"type": "image_url", "image_url": {}}, "messages.1.content.0.image_url.url"),
        ({"type": "image_url", "image_url": {"url": 5}}, "messages.1.content.0.image_url.url"),
        (
            {"type": "image_url", "image_url": {"url": "data:,", "detail": 5}},
            "messages.1.content.0.image_url.detail",
        ),
        ({"type": "video", "video": ["a.png", "b.png"]}, "messages.1.content.0.video"),
        ({"type": "wizardry"}, "messages.1.content.0.type"),
        ({"text": "x"}, "messages.1.content.0.type"),
        ({"type": ["text"], "text": "x"}, "messages.1.content.0.type"),
        ({"type": "text"}, "messages.1.content.0.text"),
        ({"type": "text", "text": 5}, "messages.1.content.0.text"),
    ],
)
def test_other_parts_are_refused(part: dict[str, Any], param: str):
    caught = refused(USER, {"role": "user", "content": [part]})
    assert caught.param == param
    assert caught.message.startswith(param)


IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:a", "detail": "low"}}
MEDIA_PARTS = [
    IMAGE_PART,
    {"type": "image_url", "image_url": "data:a"},
    {"type": "image", "image": "data:a"},
    {"type": "video_url", "video_url": {"url": "data:a", "detail": None}},
    {"type": "video_url", "video_url": "data:a"},
    {"type": "video", "video": "data:a"},
]


def a_text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize("role", ["user", "tool"])
def test_media_stand_between_texts(role: str):
    parts = [a_text("a"), a_text(" b"), IMAGE_PART, MEDIA_PARTS[4], a_text("c"), a_text("")]
    assert normalised({"role": role, "content": parts})[0]["content"] == [
        a_text("a b"),
        {"type": "image"},
        {"type": "video"},
        a_text("c"),
    ]


@pytest.mark.parametrize("part", MEDIA_PARTS)
def test_all_spellings_of_media_are_read_alike(part: dict[str, Any]):
    kind = "image" if "image" in part["type"] else "video"
    messages = [
        ChatMessage.model_validate(message)
        for message in (USER, {"role": "user", "content": [a_text("x"), part]})
    ]
    assert media_refs(messages) == [MediaRef(kind, "data:a", "messages.1.content.1")]
    assert normalised(USER, {"role": "user", "content": [part]})[1]["content"] == [{"type": kind}]


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_media_in_other_roles_are_refused(role: str):
    message = {"role": role, "content": [a_text("x"), IMAGE_PART]}
    caught = refused(USER, message)
    assert caught.param == "messages.1.content.1"
    with pytest.raises(BadRequest) as before:
        media_refs([ChatMessage.model_validate(message)])
    assert before.value.param == "messages.0.content.1"


def test_only_the_texts_around_media_are_untrusted():
    (message,) = template_messages(
        [ChatMessage(role="user", content=[a_text("a"), a_text("b"), IMAGE_PART, a_text("c")])],
        continue_final_message=False,
        untrusted=str.upper,
    )
    assert message["content"] == [a_text("AB"), {"type": "image"}, a_text("C")]


def test_reasoning_under_both_names():
    for name in ("reasoning", "reasoning_content"):
        (message,) = normalised({"role": "assistant", "content": "x", name: "why"})
        assert message == {"role": "assistant", "content": "x", "reasoning_content": "why"}
    both = {"role": "assistant", "reasoning": "a", "reasoning_content": "b"}
    assert normalised(both)[0]["reasoning_content"] == "b"


@pytest.mark.parametrize(
    ("sent", "parsed"),
    [
        ('{"a": "é", "b": [1, 2.5, null]}', {"a": "é", "b": [1, 2.5, None]}),
        ("", {}),
        (" \n", {}),
        ("{}", {}),
        (None, {}),
        ({"a": 1}, {"a": 1}),
        ('{"n": 12345678901234567890123}', {"n": 12345678901234567890123}),
    ],
)
def test_call_arguments_become_objects(sent: Any, parsed: dict[str, Any]):
    (message,) = normalised(call(sent))
    assert message["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": parsed}}
    ]


@pytest.mark.parametrize(
    "sent", ["[1]", "5", '{"a": ', "{a: 1}", '{"a": NaN}', '{"a":' * 200 + "1" + "}" * 200]
)
def test_other_call_arguments_are_refused(sent: str):
    caught = refused(USER, call(sent))
    assert caught.param == "messages.1.tool_calls.0.function.arguments"
    assert caught.message.startswith("messages.1.tool_calls.0.function.arguments")


def test_an_opened_block_is_continued_as_reasoning():
    def last(**fields: Any) -> dict[str, Any]:
        return normalised(USER, {"role": "assistant", **fields}, continues=True)[-1]

    assert last(content="<think>\nso far") == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "so far",
    }
    assert last(content="<think>")["reasoning_content"] == ""
    closed = "<think>a</think>b"
    assert last(content=closed) == {"role": "assistant", "content": closed}
    assert last(content="<think>", reasoning="r")["content"] == "<think>"
    assert normalised(USER, {"role": "assistant", "content": "<think>x"})[-1]["content"] == (
        "<think>x"
    )


def test_only_an_assistant_message_without_calls_can_be_continued():
    for last in (USER, {"role": "tool"}, {"role": "system"}, call("{}")):
        assert refused(USER, last, continues=True).param == "continue_final_message"
