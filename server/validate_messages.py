"""OpenAI chat messages as the dicts a Qwen3.5 template can render.

What changes on the way:
- `developer` is `system`; several or late system messages become one, at the front, joined by a
  blank line: agent frameworks send them, and the template refuses them;
- content is text: null is empty, text parts are concatenated;
- `reasoning` is `reasoning_content`; tool-call arguments are objects, parsed from their JSON text;
- a final message to be continued that opens `<think>` without closing it is reasoning.
"""

from collections.abc import Callable, Sequence
from typing import Any

from server.errors import BadRequest
from server.json_body import decode_object
from server.protocol import MAX_PATH_CHARS, ChatMessage, Text, ToolCall
from server.template import THINK_CLOSE, THINK_OPEN

SYSTEM_ROLES = ("system", "developer")
MEDIA_TYPES = ("image_url", "image", "video_url", "video", "input_audio", "audio_url", "file")


def template_messages(
    messages: Sequence[ChatMessage],
    *,
    continue_final_message: bool,
    untrusted: Callable[[str], str] | None = None,
) -> list[dict[str, Any]]:
    """`untrusted` is applied to what users and tools say."""
    system_texts: list[str] = []
    rendered: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        path = f"messages.{index}"
        text = _text_of(message.content, f"{path}.content")
        if message.role in SYSTEM_ROLES:
            system_texts.append(text)
        elif message.role == "assistant":
            rendered.append(_assistant_message(message, text, path))
        else:
            content = text if untrusted is None else untrusted(text)
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


def _text_of(content: Text, path: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for index, part in enumerate(content):
        kind = part.get("type")
        if kind in MEDIA_TYPES:
            raise BadRequest(
                f"{path}.{index}: image, video, audio and file parts are not supported yet",
                param=f"{path}.{index}",
            )
        if kind != "text":
            raise BadRequest(f'{path}.{index}.type must be "text"', param=f"{path}.{index}.type")
        text = part.get("text")
        if not isinstance(text, str):
            raise BadRequest(f"{path}.{index}.text must be a string", param=f"{path}.{index}.text")
        texts.append(text)
    return "".join(texts)


def _assistant_message(message: ChatMessage, text: str, path: str) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": "assistant", "content": text}
    reasoning = message.reasoning_content
    if reasoning is None:
        reasoning = message.reasoning
    if reasoning is not None:
        rendered["reasoning_content"] = reasoning
    if message.tool_calls:
        rendered["tool_calls"] = [
            _template_call(call, f"{path}.tool_calls.{index}")
            for index, call in enumerate(message.tool_calls)
        ]
    return rendered


def _template_call(call: ToolCall, path: str) -> dict[str, Any]:
    arguments = call.function.arguments
    if isinstance(arguments, str):
        param = f"{path}.function.arguments"[:MAX_PATH_CHARS]
        text = arguments.strip()
        arguments = decode_object(text.encode(), what=param, param=param) if text else {}
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
