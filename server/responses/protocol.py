"""The wire shapes of /v1/responses, field names verbatim.

The rules are those of `server.protocol`: unknown fields are ignored, null means the default, types
are strict. Sampling fields and template controls are the ones of chat; `convert` hands them on.
"""

from typing import Annotated, Any, Literal, cast

from pydantic import Field, PlainValidator

from server.protocol import ChatPromptFields, NumLogprobs, SamplingFields, Strings, WireModel
from server.wire_limits import AtMost, breaks

MAX_METADATA = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512

Items = list[dict[str, Any]]


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is dict for v in cast(list[Any], value))


def _check_input(value: Any) -> str | Items:
    if isinstance(value, str):
        return value
    if _is_objects(value):
        return cast(Items, value)
    raise breaks("must be a string or a list of items")


def _check_content(value: Any) -> str | Items:
    if isinstance(value, str):
        return value
    if _is_objects(value):
        return cast(Items, value)
    raise breaks("must be a string or a list of content parts")


def _check_metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise breaks("must be an object of strings")
    pairs = cast(dict[str, Any], value)
    if len(pairs) > MAX_METADATA:
        raise breaks(f"must have at most {MAX_METADATA} entries")
    for key, text in pairs.items():
        if not isinstance(text, str):
            raise breaks("must be an object of strings")
        if len(key) > MAX_METADATA_KEY_CHARS or len(text) > MAX_METADATA_VALUE_CHARS:
            raise breaks(
                f"must have keys of at most {MAX_METADATA_KEY_CHARS} and values of at most "
                f"{MAX_METADATA_VALUE_CHARS} characters"
            )
    return pairs


Content = Annotated[str | Items, PlainValidator(_check_content, json_schema_input_type=str | Items)]


class ReasoningFields(WireModel):
    effort: str | None = Field(default=None, min_length=1)
    summary: str | None = None  # no effect: the reasoning itself is in the answer


class TextFields(WireModel):
    format: dict[str, Any] | None = None
    verbosity: str | None = None  # no effect


class ResponsesRequest(SamplingFields, ChatPromptFields):
    input: Annotated[str | Items, PlainValidator(_check_input, json_schema_input_type=str | Items)]
    instructions: str | None = None
    previous_response_id: str | None = Field(default=None, min_length=1)
    store: bool = True
    metadata: Annotated[
        dict[str, str],
        PlainValidator(_check_metadata, json_schema_input_type=dict[str, str]),
    ] = Field(default={})
    max_output_tokens: int | None = Field(default=None, ge=1)
    reasoning: ReasoningFields | None = None
    text: TextFields | None = None
    tools: Annotated[list[dict[str, Any]] | None, AtMost("max_tools")] = Field(
        default=None, fail_fast=True
    )
    tool_choice: Any = None  # `convert` and `validate_tools` know which
    parallel_tool_calls: bool = True
    truncation: Literal["auto", "disabled"] = "disabled"
    include: Strings = Field(default=[])
    top_logprobs: NumLogprobs | None = None
    background: bool = False
    conversation: Any = None
    prompt: Any = None
    user: Any = None  # these four are repeated in the answer and have no other effect
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    max_tool_calls: Any = None


class MessageItem(WireModel):
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class FunctionCallItem(WireModel):
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str = ""
    status: str | None = None


class FunctionCallOutputItem(WireModel):
    call_id: str = Field(min_length=1)
    output: Content


class ReasoningItem(WireModel):
    content: list[dict[str, Any]] = Field(default=[])
    summary: list[dict[str, Any]] = Field(default=[])


class ItemReference(WireModel):
    id: str = Field(min_length=1)
