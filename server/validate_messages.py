"""OpenAI chat messages as the dicts a Qwen3.5 template can render.

What changes on the way:
- `developer` is `system`; several or late system messages become one, at the front, joined by a
  blank line: agent frameworks send them, and the template refuses them;
- content is text: null is empty, text parts are concatenated; with images or videos it is a list of
  text, `image` and `video` items, which says where they stand and not what they are;
- `reasoning` is `reasoning_content`; tool-call arguments are objects, parsed from their JSON text;
- a final message to be continued that opens `<think>` without closing it is reasoning.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from server.errors import BadRequest
from server.json_body import decode_object
from server.limits import DEFAULT_LIMITS
from server.media.loaded import MediaRef
from server.media_parts import read_part
from server.protocol import MAX_PATH_CHARS, ChatMessage, ToolCall
from server.template import THINK_CLOSE, THINK_OPEN

SYSTEM_ROLES = ("system", "developer")

Items = list[dict[str, Any]]


def template_messages(
    messages: Sequence[ChatMessage],
    *,
    continue_final_message: bool,
    untrusted: Callable[[str], str] | None = None,
    max_json_depth: int = DEFAULT_LIMITS.max_json_depth,
) -> list[dict[str, Any]]:
    """`untrusted` is applied to what users and tools say."""
    system_texts: list[str] = []
    rendered: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        path = f"messages.{index}"
        if message.role in SYSTEM_ROLES:
            system_texts.append(_text_of(message, path))
        elif message.role == "assistant":
            text = _text_of(message, path)
            rendered.append(_assistant_message(message, text, path, max_json_depth))
        else:
            content = _content_of(message, path, untrusted or str)
            rendered.append({"role": message.role, "content": content})
    if continue_final_message:
        _open_final_message(messages, rendered)
    if system_texts:
        rendered.insert(0, {"role": "system", "content": _joined(system_texts)})
    return rendered


def _joined(system_texts: list[str]) -> str:
    if len(system_texts) == 1:
        return system_texts[0]
    return "\n\n".join(text for text in system_texts if text.strip())


def _text_of(message: ChatMessage, path: str) -> str:
    """The content of a message that can hold nothing but text."""
    content = _content_of(message, path, str)
    assert isinstance(content, str), "media in a role that takes none"
    return content


def _content_of(message: ChatMessage, path: str, said: Callable[[str], str]) -> str | Items:
    """`said` is applied to the text between images and videos."""
    content = message.content
    if content is None or isinstance(content, str):
        return said(content or "")
    items: Items = []
    texts: list[str] = []

    def end_text() -> None:
        if texts:
            items.append({"type": "text", "text": said("".join(texts))})
            texts.clear()

    for index, part in enumerate(content):
        match read_part(part, f"{path}.content.{index}", message.role):
            case MediaRef(kind=kind):
                end_text()
                items.append({"type": kind})
            case text:
                texts.append(text)
    if not items:
        return said("".join(texts))
    end_text()
    return items


def _assistant_message(
    message: ChatMessage, text: str, path: str, max_json_depth: int
) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": "assistant", "content": text}
    reasoning = message.reasoning_content
    if reasoning is None:
        reasoning = message.reasoning
    if reasoning is not None:
        rendered["reasoning_content"] = reasoning
    if message.tool_calls:
        rendered["tool_calls"] = [
            _template_call(call, f"{path}.tool_calls.{index}", max_json_depth)
            for index, call in enumerate(message.tool_calls)
        ]
    return rendered


def _template_call(call: ToolCall, path: str, max_json_depth: int) -> dict[str, Any]:
    arguments = call.function.arguments
    if isinstance(arguments, str):
        param = f"{path}.function.arguments"[:MAX_PATH_CHARS]
        text = arguments.strip()
        read = partial(decode_object, what=param, param=param, max_depth=max_json_depth)
        arguments = read(text.encode()) if text else {}
    return {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _open_final_message(messages: Sequence[ChatMessage], rendered: list[dict[str, Any]]) -> None:
    """Make the final message one whose text can be continued, or refuse it."""
    last = messages[-1]
    if last.role != "assistant" or last.tool_calls:
        raise BadRequest(
            "continue_final_message: the final message must be an assistant's, without tool_calls",
            param="continue_final_message",
        )
    text: str = rendered[-1]["content"]
    opened = text.lstrip()
    if (
        opened.startswith(THINK_OPEN)
        and THINK_CLOSE not in opened
        and "reasoning_content" not in rendered[-1]
    ):
        reasoning = opened.removeprefix(THINK_OPEN).lstrip("\n")
        rendered[-1] = {"role": "assistant", "content": "", "reasoning_content": reasoning}
