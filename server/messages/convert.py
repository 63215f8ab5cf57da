"""A Messages request -> the equal chat request, judged by the chat's own validator.

So the prompt, the limits and the defaults are the chat's. Refusals come back in the names that the
client used: `tools.0.input_schema`, not `tools.0.function.parameters`.

Decisions that the two formats leave open:
- without `thinking` the model's own default holds; `chat_template_kwargs` go before `thinking`;
- `budget_tokens` binds as soon as the validator takes a thinking budget. Until then it is accepted
  and not enforced: the API documents it as a target, and `max_tokens` still bounds the answer;
- `display: "omitted"` hides the thinking, as `include_reasoning: false` does;
- a final assistant turn is a prefill that the answer continues, unless it holds a tool call;
- an empty list of tools is none.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS, Limits
from server.media.loaded import MediaRef
from server.media_parts import LoadedByKey
from server.media_wait import AwaitsMedia, with_media
from server.messages.blocks import SYSTEM_BLOCKS, Chat
from server.messages.fault import NO_THREADS
from server.messages.protocol import (
    CountTokensRequest,
    MessagesRequest,
    PromptRequest,
    Tool,
    ToolChoice,
)
from server.protocol import ChatCompletionRequest, TokenizeRequest, parse_wire
from server.valid import ValidChat
from server.validate import Validator
from server.validate_unsupported import NEVER

BUDGET_FIELD = "thinking_token_budget"

_MESSAGE_PATH = re.compile(r"\b(messages\.\d+)(\.content\.\d+)?\b")
_NAMES = (
    (re.compile(r"\btools\.(\d+)\.function\.parameters\b"), r"tools.\1.input_schema"),
    (re.compile(r"\btools\.(\d+)\.function\b"), r"tools.\1"),
    (re.compile(r"\btool_choice\.function\.name\b"), "tool_choice.name"),
    (re.compile(rf"\b{BUDGET_FIELD}\b"), "thinking.budget_tokens"),
    (re.compile(r"\bresponse_format(?:\.json_schema)?\b"), "output_config.format"),
    (re.compile(r"\breasoning_effort\b"), "output_config.effort"),
)


def valid_chat(
    request: MessagesRequest, validator: Validator
) -> ValidChat | AwaitsMedia[ValidChat]:
    """What `validator` makes of the equal chat request. Raises BadRequest in the client's names."""
    chat = chat_of(request)
    with _client_names(chat.sources):
        equal = chat_request(request, chat, validator.limits)
        refs = validator.media_of(equal.messages)

    def validated(media: LoadedByKey) -> ValidChat:
        with _client_names(chat.sources):
            return validator.chat(equal, media)

    return with_media(_client_refs(refs, chat), validated)


def num_prompt_tokens(request: CountTokensRequest, validator: Validator) -> int | AwaitsMedia[int]:
    """The prompt tokens that a message of the same fields would have."""
    chat = chat_of(request)
    with _client_names(chat.sources):
        fields = {"model": request.model, **_prompt_fields(request, chat)}
        equal = parse_wire(TokenizeRequest, fields, validator.limits)
        refs = validator.media_of(equal.messages or ())

    def counted(media: LoadedByKey) -> int:
        with _client_names(chat.sources):
            return validator.tokenize(equal, media)["count"]

    return with_media(_client_refs(refs, chat), counted)


def _client_refs(refs: Sequence[MediaRef], chat: Chat) -> list[MediaRef]:
    """The same, at the paths of the blocks that the client sent."""
    return [replace(ref, path=chat.sources.get(ref.path, ref.path)) for ref in refs]


def chat_of(request: PromptRequest) -> Chat:
    """The messages of the equal chat request."""
    if request.thread is not None:
        raise BadRequest(
            "thread is not supported: send the whole conversation without it",
            param="thread",
            code=NO_THREADS,
        )
    chat = Chat()
    if request.system:
        chat.add_content("system", request.system, "system", SYSTEM_BLOCKS)
    for index, turn in enumerate(request.messages):
        chat.add_turn(turn, f"messages.{index}")
    return chat


def chat_request(
    request: MessagesRequest, chat: Chat, limits: Limits = DEFAULT_LIMITS
) -> ChatCompletionRequest:
    choice = request.tool_choice
    thinking = request.thinking
    config = request.output_config
    fields = {
        **_prompt_fields(request, chat),
        "model": request.model,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": request.stop_sequences,
        "stream": request.stream,
        "cache_salt": request.cache_salt,
        **{name: getattr(request, name) for name in NEVER},
    }
    if choice is not None and (request.tools or choice.type in ("any", "tool")):
        fields["tool_choice"] = _chat_choice(choice)
        fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if thinking is not None:
        fields["include_reasoning"] = thinking.display != "omitted"
        if thinking.type == "enabled":
            fields["thinking_token_budget"] = thinking.budget_tokens
    if config is not None and config.format is not None:
        schema = {"name": "output", "schema": config.format.schema_}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return parse_wire(ChatCompletionRequest, fields, limits)


def _prompt_fields(request: PromptRequest, chat: Chat) -> dict[str, Any]:
    """The fields that decide the prompt, which chat and tokenize requests share."""
    kwargs = {name: v for name, v in request.chat_template_kwargs.items() if v is not None}
    if request.thinking is not None:
        kwargs = {"enable_thinking": request.thinking.type != "disabled", **kwargs}
    last = chat.messages[-1]
    return {
        "messages": chat.messages,
        "tools": [_chat_tool(tool) for tool in request.tools] or None,
        "chat_template_kwargs": kwargs,
        "chat_template": request.chat_template,
        "reasoning_effort": request.output_config and request.output_config.effort,
        "continue_final_message": last["role"] == "assistant" and "tool_calls" not in last,
    }


def _chat_tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.input_schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _chat_choice(choice: ToolChoice) -> str | dict[str, Any]:
    match choice.type:
        case "any":
            return "required"
        case "tool":
            if choice.name is None:
                raise BadRequest("tool_choice.name is required", param="tool_choice.name")
            return {"type": "function", "function": {"name": choice.name}}
        case "auto" | "none":
            return choice.type


@contextmanager
def _client_names(sources: dict[str, str]) -> Generator[None]:
    """Rewrite the field names in refusals of the chat request to those of the Messages request."""

    def source(match: re.Match[str]) -> str:
        message, part = match[1], match[2] or ""
        return sources.get(message + part) or sources.get(message, message) + part

    def renamed(text: str) -> str:
        for pattern, name in _NAMES:
            text = pattern.sub(name, text)
        return _MESSAGE_PATH.sub(source, text)

    try:
        yield
    except BadRequest as error:
        raise BadRequest(
            renamed(error.message),
            param=error.param and renamed(error.param),
            status=error.status,
            type=error.type,
            code=error.code,
        ) from None
