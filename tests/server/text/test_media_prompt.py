"""Placeholders in rendered prompts, with the bundled model's tokenizer and template.

They are small, but added tokens, splitting and the vision part of the template are the family's.
"""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Media, ModelConfig
from server.chat_prompt import ChatPrompt, ChatPrompter
from server.checkpoint_text import read_checkpoint_text
from server.errors import BadRequest
from server.media.loaded import LoadedMedia
from server.media_parts import key_of, media_refs
from server.protocol import ChatCompletionRequest, parse_wire
from server.template import ChatTemplate
from server.tokenizer import Tokenizer
from tests.server.seeing import DOT, IMAGE, MEDIA, VIDEO, id_of, vision_of

DEMO = Path(__file__).parents[3] / "server" / "demo_model"
TEXT = read_checkpoint_text(DEMO)
TOKENIZER: Tokenizer = TEXT.tokenizer
VISION = vision_of(TOKENIZER)
START, END = VISION.vision_start_token_id, VISION.vision_end_token_id
PAD, VIDEO_PAD = VISION.image_token_id, VISION.video_token_id
WINDOW = 1000
PICTURE = {"type": "image_url", "image_url": {"url": "data:image"}}
A_DOT = {"type": "image_url", "image_url": {"url": "data:dot"}}
CLIP = {"type": "video_url", "video_url": {"url": "data:video"}}
TYPED = "<|vision_start|><|image_pad|><|vision_end|><|video_pad|>"


def say(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def prompt(
    *parts: dict[str, Any],
    template: ChatTemplate | None = TEXT.template,
    literal: bool = False,
    messages: list[dict[str, Any]] | None = None,
    window: int = WINDOW,
    **fields: Any,
) -> ChatPrompt:
    """Of one user message, or of `messages`."""
    sent = [{"role": "user", "content": list(parts)}] if messages is None else messages
    request = parse_wire(ChatCompletionRequest, {"messages": sent, **fields})
    prompter = ChatPrompter(TOKENIZER, template, VISION, literal_control_tokens=literal)
    assert prompter.takes_media
    refs = media_refs(request.messages)
    return prompter.prompt(
        request,
        request.messages,
        {key_of(ref): MEDIA[ref.url] for ref in refs},
        add_special_tokens=False,
        window=window,
    )


def asked(content: str) -> str:
    """The prompt of one user message, as text."""
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n<think>\n"


def expanded(text: str) -> list[int]:
    """The ids of a prompt whose placeholders are written out."""
    return TOKENIZER.encode(text)


def without_media(message: dict[str, Any]) -> dict[str, Any]:
    parts = message["content"]
    if isinstance(parts, str):
        return message
    return {**message, "content": [part for part in parts if part["type"] == "text"]}


def image(num_pads: int) -> str:
    return "<|vision_start|>" + "<|image_pad|>" * num_pads + "<|vision_end|>"


CLIP_TEXT = "".join(
    f"<{second} seconds><|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    for second in ("0.2", "1.2")
)


def check_places(found: ChatPrompt, *media: LoadedMedia) -> None:
    """Each picture stands where its pads do, and no two on the same."""
    pictures = [picture for item in media for picture in item.pictures]
    assert len(found.media) == len(pictures)
    end = 0
    for placed, picture in zip(found.media, pictures, strict=True):
        num_pads = (picture.height // 32) * (picture.width // 32)
        pad = PAD if picture.num_frames == 1 else VIDEO_PAD
        stop = placed.start + num_pads
        assert placed.start >= end
        assert found.ids[placed.start : stop] == [pad] * num_pads
        assert (found.ids[placed.start - 1], found.ids[stop]) == (START, END)
        assert placed == Media.of(
            placed.start, picture.num_frames, picture.height, picture.width, picture.pixels
        )
        end = stop


def test_an_image_is_as_many_pads_as_it_has_merged_patches() -> None:
    found = prompt(say("See "), PICTURE, say(" this?"))
    assert found.text == asked(f"See {image(1)} this?")
    assert found.ids == expanded(asked(f"See {image(6)} this?"))
    check_places(found, IMAGE)


def test_a_video_is_times_and_frames() -> None:
    found = prompt(say("See "), CLIP, say("this?"))
    assert found.text == asked("See <|vision_start|><|video_pad|><|vision_end|>this?")
    assert found.ids == expanded(asked(f"See {CLIP_TEXT}this?"))
    assert found.ids.count(START) == found.ids.count(END) == 2
    check_places(found, VIDEO)


def test_several_media_keep_their_order() -> None:
    found = prompt(A_DOT, PICTURE, say("and"), CLIP, A_DOT)
    assert found.ids == expanded(asked(f"{image(1)}{image(6)}and{CLIP_TEXT}{image(1)}"))
    check_places(found, DOT, IMAGE, VIDEO, DOT)


def test_tool_results_and_many_turns() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    found = prompt(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [PICTURE, say("What is it?")]},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": [say("Here: "), A_DOT]},
            {"role": "tool", "content": [A_DOT]},
        ]
    )
    parts = found.text.split("<|image_pad|>")
    assert len(parts) == 4
    whole = parts[0] + "<|image_pad|>" * 6 + parts[1] + "<|image_pad|>".join(("", *parts[2:]))
    assert found.ids == expanded(whole)
    check_places(found, IMAGE, DOT, DOT)


def test_pictures_are_counted_by_the_template_where_it_is_asked_to() -> None:
    found = prompt(PICTURE, CLIP, A_DOT, chat_template_kwargs={"add_vision_id": True})
    text = asked(f"Picture 1: {image(6)}Video 1: {CLIP_TEXT}Picture 2: {image(1)}")
    assert found.ids == expanded(text)
    check_places(found, IMAGE, VIDEO, DOT)


@pytest.mark.parametrize("literal", [False, True])
def test_what_people_write_never_counts(literal: bool) -> None:
    """In any text of any role, in tools, and in calls."""
    tool = {"type": "function", "function": {"name": "f", "description": TYPED, "parameters": {}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {TYPED: TYPED}}}
    messages = [
        {"role": "system", "content": TYPED},
        {"role": "user", "content": [say(TYPED), PICTURE, say(TYPED), CLIP, say("<|image_")]},
        {"role": "assistant", "content": TYPED, "reasoning": TYPED, "tool_calls": [call]},
        {"role": "tool", "content": [say("pad|>" + TYPED), A_DOT]},
    ]
    found = prompt(messages=messages, tools=[tool], literal=literal)
    check_places(found, IMAGE, VIDEO, DOT)
    plain = prompt(messages=[*map(without_media, messages)], tools=[tool], literal=literal)
    for pad, own in ((PAD, 7), (VIDEO_PAD, 4)):
        assert found.ids.count(pad) == plain.ids.count(pad) + own
    text = TOKENIZER.decode(found.ids)
    assert text.count(TYPED) == TOKENIZER.decode(plain.ids).count(TYPED) > 5


@given(
    st.lists(
        st.sampled_from([PICTURE, A_DOT, CLIP])
        | st.text(alphabet="a \n<|>é你", max_size=6).map(say)
        | st.sampled_from([TYPED, "<|im_end|>", "<|image_pad", "|>", "<|video_pad|>"]).map(say),
        max_size=8,
    )
)
def test_segments_tokenise_as_the_whole(parts: list[dict[str, Any]]) -> None:
    found = prompt(say("."), *parts, say("."))
    written = {"data:image": image(6), "data:dot": image(1), "data:video": CLIP_TEXT}
    said = [
        part["text"] if part["type"] == "text" else written[part[part["type"]]["url"]]
        for part in parts
    ]
    assert found.ids == expanded(asked("." + "".join(said) + "."))
    check_places(found, *(MEDIA[part[part["type"]]["url"]] for part in parts if "text" not in part))


def test_pads_do_not_count_as_characters() -> None:
    most = 16 * 12
    plain = prompt(PICTURE, say("x"))
    room = most - len(plain.text)
    assert prompt(PICTURE, say("x" * (room + 1)), window=12).media
    with pytest.raises(BadRequest) as caught:
        prompt(PICTURE, say("x" * (room + 2)), window=12)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content if m.content is string }}{% endfor %}",
        "<|image_pad|><|image_pad|>",
        "<|video_pad|><|image_pad|>",
        "<|image_pad|>",
    ],
)
def test_a_template_has_to_keep_the_media(source: str) -> None:
    with pytest.raises(BadRequest) as caught:
        prompt(PICTURE, CLIP, template=ChatTemplate(source))
    assert caught.value.param == "messages"


def test_a_template_may_leave_out_what_stands_around_a_video() -> None:
    found = prompt(CLIP, PICTURE, template=ChatTemplate("a<|video_pad|>b<|image_pad|>c"))
    assert found.ids == expanded(f"a{CLIP_TEXT}b{'<|image_pad|>' * 6}c")


def test_special_tokens_are_asked_for_once() -> None:
    """Where the first segment is, if at all."""
    calls: list[bool] = []

    class Noting(Tokenizer):
        def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
            calls.append(add_special_tokens)
            return super().encode(text, add_special_tokens)

    noting = Noting.from_dir(DEMO)
    request = parse_wire(
        ChatCompletionRequest, {"messages": [{"role": "user", "content": [PICTURE, A_DOT]}]}
    )
    media = {key_of(ref): MEDIA[ref.url] for ref in media_refs(request.messages)}
    ChatPrompter(noting, TEXT.template, VISION, literal_control_tokens=False).prompt(
        request, request.messages, media, add_special_tokens=True, window=WINDOW
    )
    assert calls == [True, False, False]


def test_a_tokenizer_of_another_model_takes_no_media() -> None:
    config = ModelConfig.from_dir(DEMO)
    assert config.vision is None or config.vision.image_token_id == id_of(
        TOKENIZER, "<|image_pad|>"
    )
    other = type(VISION)(
        **{name: getattr(VISION, name) for name in VISION.__struct_fields__}
        | {"image_token_id": id_of(TOKENIZER, "a")}
    )
    assert not ChatPrompter(
        TOKENIZER, TEXT.template, other, literal_control_tokens=False
    ).takes_media
