"""The wire shapes of the Messages API, field names verbatim; the rules of `server.protocol` hold.

`cache_control` may stand anywhere and decides nothing, for the prefix cache is automatic: only
`cache_marks` reads it. Content is checked here only to be text or a list of objects;
`blocks` knows which blocks may stand where.
"""

from typing import Annotated, Any, Literal, cast

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema

from server.protocol import MAX_STOP_CHARS, Unsupported, WireModel
from server.wire_limits import AtMost, breaks, limits_of

Content = str | list[dict[str, Any]]
# The chat's validator refuses them, unless they ask for nothing.
Nothing = Annotated[Unsupported, WithJsonSchema({"type": "null"})]
NothingOrFalse = Annotated[Unsupported, WithJsonSchema({"enum": [None, False]})]


def _check_content(value: Any) -> Content:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        blocks = cast(list[Any], value)
        if all(isinstance(block, dict) for block in blocks):
            return blocks
    raise breaks("must be a string or a list of blocks")


def _check_stops(value: Any, info: ValidationInfo) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in cast(list[Any], value)):
        raise breaks("must be a list of strings")
    stops = cast(list[str], value)
    most = limits_of(info).max_stops
    if len(stops) > most:
        raise breaks(f"must have at most {most} strings")
    if not all(stops):
        raise breaks("must not hold an empty string")
    if max(map(len, stops), default=0) > MAX_STOP_CHARS:
        raise breaks(f"must not hold a string longer than {MAX_STOP_CHARS} characters")
    return stops


TextOrBlocks = Annotated[Content, PlainValidator(_check_content, json_schema_input_type=Content)]


class Turn(WireModel):
    role: Literal["user", "assistant", "system"]
    content: TextOrBlocks


class Tool(WireModel):
    """A tool of the client's own. Anthropic's tools have no schema and another `type`."""

    type: Literal["custom"] = "custom"
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class ToolChoice(WireModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(WireModel):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(default=None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(WireModel):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(WireModel):
    effort: str | None = Field(default=None, min_length=1)
    format: OutputFormat | None = None


class PromptRequest(WireModel):
    """What decides the prompt: the whole of a request to count its tokens."""

    model: str | None = None
    messages: Annotated[list[Turn], AtMost("max_messages")] = Field(min_length=1, fail_fast=True)
    system: TextOrBlocks = ""
    tools: Annotated[list[Tool], AtMost("max_tools")] = Field(default=[], fail_fast=True)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] = Field(default={})
    chat_template: Nothing = None
    thread: Annotated[Any, WithJsonSchema({"type": "null"})] = None  # refused in words of theirs


class MessagesRequest(PromptRequest):
    max_tokens: int = Field(ge=1)
    stop_sequences: Annotated[
        list[str], PlainValidator(_check_stops, json_schema_input_type=list[str])
    ] = Field(default=[])
    temperature: Annotated[float | None, AtMost("max_temperature")] = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    stream: bool = False
    cache_salt: str | None = Field(default=None, min_length=1)
    prompt_embeds: NothingOrFalse = None
    use_beam_search: NothingOrFalse = None
    logits_processors: NothingOrFalse = None


class CountTokensRequest(PromptRequest):
    pass


# Blocks


class TextBlock(WireModel):
    text: str


class ImageSource(WireModel):
    type: Literal["base64", "url"]
    media_type: str = ""
    data: str = ""
    url: str = ""


class ImageBlock(WireModel):
    source: ImageSource


class ThinkingBlock(WireModel):
    thinking: str


class ToolUseBlock(WireModel):
    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: dict[str, Any]


class ToolResultBlock(WireModel):
    tool_use_id: str = Field(min_length=1)
    content: TextOrBlocks = ""
    is_error: bool = False
