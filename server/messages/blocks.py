"""Turns of content blocks -> the messages of a chat request.

A turn of the Messages API may be several messages of a chat: each `tool_result` is a tool message,
and what stands between them is a user message; order is kept. In an assistant's turn `thinking` is
the reasoning, `tool_use` a tool call, and text the content. `redacted_thinking` holds nothing that
this model wrote or could read: it is accepted and left out. A `tool_result` with `is_error` and no
text at all reads "Error": the chat format has no mark for it.

What a chat message or part was made of is written down in `Chat.sources`, so that a refusal by the
chat's own rules can name the block that the client sent.
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from server.errors import BadRequest
from server.messages.protocol import (
    Content,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from server.protocol import MAX_PATH_CHARS, WireModel, parse_wire

USER_BLOCKS = ("text", "image", "tool_result")
ASSISTANT_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use")
SYSTEM_BLOCKS = ("text",)
RESULT_BLOCKS = ("text", "image")
THOUGHT_BREAK = "\n\n"  # between the thinking blocks of one turn

Block = TypeVar("Block", bound=WireModel)
Json = dict[str, Any]


@dataclass
class Chat:
    """Messages of a chat request, as JSON, and where each came from."""

    messages: list[Json] = field(default_factory=list[Json])
    sources: dict[str, str] = field(default_factory=dict[str, str])  # chat path -> client's path

    def add(self, message: Json, source: str, parts: list[str] | None = None) -> None:
        """Append a message made of `source`, its content parts of `parts`."""
        path = f"messages.{len(self.messages)}"
        self.messages.append(message)
        self.sources[path] = source
        for index, part in enumerate(parts or ()):
            self.sources[f"{path}.content.{index}"] = part

    def add_content(self, role: str, content: Content, path: str, allowed: tuple[str, ...]) -> None:
        """Append a message of text and images."""
        if isinstance(content, str):
            self.add({"role": role, "content": content}, path)
            return
        sources = [f"{path}.{index}" for index in range(len(content))]
        parts = [
            _part(block, source, allowed) for block, source in zip(content, sources, strict=True)
        ]
        self.add({"role": role, "content": parts}, path, sources)

    def add_turn(self, turn: Turn, path: str) -> None:
        path = f"{path}.content"
        if isinstance(turn.content, str) or turn.role == "system":
            self.add_content(turn.role, turn.content, path, SYSTEM_BLOCKS)
        elif turn.role == "user":
            self._add_user_blocks(turn.content, path)
        else:
            self._add_assistant_blocks(turn.content, path)

    def _add_user_blocks(self, blocks: list[Json], path: str) -> None:
        parts: list[Json] = []
        sources: list[str] = []
        for index, block in enumerate(blocks):
            source = f"{path}.{index}"
            if block.get("type") == "tool_result":
                self._add_user_parts(parts, path, sources)
                parts, sources = [], []
                self._add_result(_read(ToolResultBlock, block, source), source)
            else:
                parts.append(_part(block, source, USER_BLOCKS))
                sources.append(source)
        self._add_user_parts(parts, path, sources)
        if not blocks:
            self.add({"role": "user", "content": ""}, path)

    def _add_user_parts(self, parts: list[Json], path: str, sources: list[str]) -> None:
        if parts:
            self.add({"role": "user", "content": parts}, path, sources)

    def _add_result(self, block: ToolResultBlock, path: str) -> None:
        self.add_content("tool", block.content, f"{path}.content", RESULT_BLOCKS)
        message = self.messages[-1]
        message["tool_call_id"] = block.tool_use_id
        if block.is_error and not message["content"]:
            message["content"] = "Error"

    def _add_assistant_blocks(self, blocks: list[Json], path: str) -> None:
        parts: list[Json] = []
        sources: list[str] = []
        thoughts: list[str] = []
        calls: list[Json] = []
        for index, block in enumerate(blocks):
            source = f"{path}.{index}"
            match block.get("type"):
                case "thinking":
                    thoughts.append(_read(ThinkingBlock, block, source).thinking)
                case "redacted_thinking":
                    pass
                case "tool_use":
                    calls.append(_call(_read(ToolUseBlock, block, source)))
                case _:
                    parts.append(_part(block, source, ASSISTANT_BLOCKS))
                    sources.append(source)
        message: Json = {"role": "assistant", "content": parts}
        if thoughts:
            message["reasoning_content"] = THOUGHT_BREAK.join(thoughts)
        if calls:
            message["tool_calls"] = calls
        self.add(message, path, sources)


def _part(block: Json, path: str, allowed: tuple[str, ...]) -> Json:
    """One text or image block as a content part."""
    kind = block.get("type")
    if kind == "text" and "text" in allowed:
        return {"type": "text", "text": _read(TextBlock, block, path).text}
    if kind == "image" and "image" in allowed:
        return _image_part(_read(ImageBlock, block, path), path)
    raise BadRequest(f"{path}.type must be one of {', '.join(allowed)} here", param=f"{path}.type")


def _image_part(block: ImageBlock, path: str) -> Json:
    source = block.source
    needed = ("url",) if source.type == "url" else ("media_type", "data")
    for name in needed:
        if not getattr(source, name):
            raise BadRequest(f"{path}.source.{name} is required", param=f"{path}.source.{name}")
    url = source.url if source.type == "url" else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _call(block: ToolUseBlock) -> Json:
    return {
        "id": block.id,
        "type": "function",
        "function": {"name": block.name, "arguments": block.input},
    }


def _read(model_type: type[Block], block: Json, path: str) -> Block:
    try:
        return parse_wire(model_type, block)
    except BadRequest as error:
        param = f"{path}.{error.param}"[:MAX_PATH_CHARS]
        raise BadRequest(f"{path}.{error.message}", param=param) from None
