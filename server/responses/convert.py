"""A Responses request as the equal chat request, so that both have one validation and one prompt.

Items become messages like this:
- `instructions` is the first system message;
- what one answer of the model consists of (reasoning, message, calls, and text after calls) is one
  assistant message; a message after a message, and reasoning after either, begin another;
- an output of a call is a tool message; a reference is the stored item it names;
- a call that was cut (`status: "incomplete"`, arguments that are no object) is left out: nothing
  can answer it.

Everything chat shares with Responses goes through as the client sent it. A refusal of the chat
request is put in the terms of the Responses request by `Conversion.refusal`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from server.errors import BadRequest
from server.json_body import decode_object
from server.media.loaded import MediaRef
from server.protocol import ChatCompletionRequest, Model, parse_wire
from server.responses.protocol import (
    FunctionCallItem,
    FunctionCallOutputItem,
    ItemReference,
    Items,
    MessageItem,
    ReasoningItem,
    ResponsesRequest,
)

ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
TEXT_TYPES = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
MEDIA_TYPES = ("input_file", "input_audio", "input_video")
TOOL_FIELDS = ("name", "description", "parameters", "strict")
# Tools of OpenAI's that are no function of the client's: the model cannot be told of them.
HOSTED_TYPES = frozenset(
    (
        *("apply_patch", "code_interpreter", "computer", "computer_use_preview", "custom"),
        *("file_search", "image_generation", "local_shell", "mcp", "namespace", "shell"),
        *("tool_search", "web_search", "web_search_preview"),
    )
)
_DATED = re.compile(r"_20[0-9]{2}_[0-9]{2}_[0-9]{2}$")  # a version of such a type
LOGPROBS = "message.output_text.logprobs"

# Chat fields that this API has under other names or not at all.
_NOT_SHARED = frozenset(
    (
        "messages",
        "tools",
        "tool_choice",
        "logprobs",
        "top_logprobs",
        "max_completion_tokens",
        "stream_options",
        "n",
        "echo",
        "functions",
        "function_call",
    )
)
_MESSAGE = re.compile(r"messages\.(\d+)(?:\.content)?(.*)", re.DOTALL)
_PATH = re.compile(
    r"(?<![\w.])(?:tools|tool_choice|response_format|reasoning_effort|max_completion_tokens)\b"
    r"[\w.$-]*"
)
_ITEM = re.compile(r"input\.\d")
_FUNCTION = re.compile(r"(tools\.\d+|tool_choice)\.function")

FindItem = Callable[[str], dict[str, Any] | None]


@dataclass(slots=True)
class Conversion:
    """Fields of a chat request, and where they come from."""

    fields: dict[str, Any]
    origins: list[str]  # of each message: the Responses field that its content came from
    items: Items  # the input of this request, references resolved
    names: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # chat's, ours

    def refusal(self, error: BadRequest) -> BadRequest:
        """A refusal of the chat request, in terms of the Responses request."""
        param = error.param
        if param is None:
            return error
        ours = self._our_name(param)
        message = _PATH.sub(lambda path: self._our_name(path[0]), error.message)
        if message == error.message and message.startswith(param):
            message = ours + message[len(param) :]
        return BadRequest(
            message, param=ours, status=error.status, type=error.type, code=error.code
        )

    def refs(self, refs: Sequence[MediaRef]) -> list[MediaRef]:
        """What the chat request refers to, at the paths of the Responses request."""
        return [replace(ref, path=self._our_name(ref.path)) for ref in refs]

    def _our_name(self, param: str) -> str:
        if found := _MESSAGE.match(param):
            origin = self.origins[int(found[1])]
            return origin + found[2] if _ITEM.match(origin) else origin.partition(".")[0]
        param = _FUNCTION.sub(r"\1", param, count=1)
        for theirs, ours in self.names:
            if param == theirs or param.startswith(f"{theirs}."):
                return ours + param[len(theirs) :]
        return param


def convert(
    request: ResponsesRequest,
    body: dict[str, Any],
    earlier: Items,
    find_item: FindItem,
    max_json_depth: int,
) -> Conversion:
    """Make the chat request. `earlier` are the items of the conversation that is continued."""
    _refuse_unsupported(request)
    shared = ChatCompletionRequest.model_fields.keys() - _NOT_SHARED
    fields = {name: value for name, value in body.items() if name in shared}
    names = [("messages", "input"), ("max_completion_tokens", "max_output_tokens")]
    if request.max_output_tokens is not None:
        fields["max_completion_tokens"] = request.max_output_tokens
    if request.reasoning is not None and request.reasoning.effort is not None:
        fields["reasoning_effort"] = request.reasoning.effort
        names.append(("reasoning_effort", "reasoning.effort"))
    if request.text is not None and request.text.format is not None:
        fields["response_format"] = _response_format(request.text.format)
        names += [
            ("response_format.json_schema", "text.format"),
            ("response_format", "text.format"),
        ]
    if LOGPROBS in request.include or request.top_logprobs:
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    tools = [(i, tool) for i, tool in enumerate(request.tools or ()) if not _is_hosted(tool)]
    if tools:
        fields["tools"] = [_tool(tool) for _, tool in tools]
        names += [(f"tools.{at}", f"tools.{i}") for at, (i, _) in enumerate(tools) if at != i]
    if request.tool_choice is not None and (tools or request.tool_choice not in ("auto", "none")):
        if request.tools and not tools:
            raise BadRequest(
                "tool_choice asks for a call, and no tool is a function", param="tool_choice"
            )
        fields["tool_choice"] = _tool_choice(request.tool_choice)

    messages = _Messages(max_json_depth)
    if request.instructions is not None:
        messages.put({"role": "system", "content": request.instructions}, "instructions")
    for item in earlier:
        messages.add(item, "previous_response_id")
    items = _input_items(request.input, find_item)
    for index, item in enumerate(items):
        messages.add(item, "input" if isinstance(request.input, str) else f"input.{index}")
    fields["messages"] = messages.messages
    return Conversion(fields, messages.origins, items, names)


def _refuse_unsupported(request: ResponsesRequest) -> None:
    if request.conversation is not None:
        raise BadRequest(
            "conversation is not supported: use previous_response_id", param="conversation"
        )
    if request.prompt is not None:
        raise BadRequest("prompt is not supported: send instructions and input", param="prompt")
    for name, is_asked in (
        ("return_token_ids", request.return_token_ids),
        ("prompt_logprobs", request.prompt_logprobs is not None),
    ):
        if is_asked:
            raise BadRequest(f"{name} is for chat and completions only", param=name)
    if request.n != 1:
        raise BadRequest("n must be 1: a response is one answer", param="n")


def _response_format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema":
        return given
    schema = {name: value for name, value in given.items() if name != "type"}
    return {"type": "json_schema", "json_schema": schema}


def _is_hosted(tool: dict[str, Any]) -> bool:
    kind = tool.get("type")
    return isinstance(kind, str) and _DATED.sub("", kind) in HOSTED_TYPES


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A flat tool as chat nests it, its fields in the order they came in."""
    if tool.get("type") != "function":
        return {"type": tool.get("type")}
    function = {k: v for k, v in tool.items() if k in TOOL_FIELDS and v is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise BadRequest(
            'tool_choice must be "auto", "none", "required" or an object that names a function',
            param="tool_choice",
        )
    return {"type": "function", "function": {"name": choice.get("name")}}


def _input_items(given: str | Items, find_item: FindItem) -> Items:
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return [_resolved(item, f"input.{index}", find_item) for index, item in enumerate(given)]


def _resolved(item: dict[str, Any], path: str, find_item: FindItem) -> dict[str, Any]:
    kind = item.get("type")
    if kind is None and "role" in item:
        return {"type": "message", **item}
    if kind is None and "id" in item:
        kind = "item_reference"
    if kind not in ITEM_TYPES:
        raise BadRequest(
            f"{path}.type must be one of {', '.join(ITEM_TYPES)}", param=f"{path}.type"
        )
    if kind != "item_reference":
        return item
    found = find_item(_read(ItemReference, item, path).id)
    if found is None:
        raise BadRequest(f"{path}.id: no such item is stored", param=f"{path}.id", status=404)
    return found


def _read(model: type[Model], item: dict[str, Any], path: str) -> Model:
    try:
        return parse_wire(model, item)
    except BadRequest as error:
        raise BadRequest(f"{path}.{error.message}", param=f"{path}.{error.param}") from None


class _Messages:
    """Chat messages that grow item by item."""

    def __init__(self, max_json_depth: int) -> None:
        self._max_json_depth = max_json_depth
        self.messages: list[dict[str, Any]] = []
        self.origins: list[str] = []
        self._answer: dict[str, Any] | None = None  # the last message, while it may grow

    def put(self, message: dict[str, Any], origin: str) -> None:
        self._answer = message if message["role"] == "assistant" else None
        self.messages.append(message)
        self.origins.append(origin)

    def add(self, item: dict[str, Any], path: str) -> None:
        match item["type"]:
            case "message":
                self._add_message(_read(MessageItem, item, path), path)
            case "reasoning":
                self._add_reasoning(_read(ReasoningItem, item, path), path)
            case "function_call":
                self._add_call(_read(FunctionCallItem, item, path), path)
            case "function_call_output":
                result = _read(FunctionCallOutputItem, item, path)
                content = _content(result.output, f"{path}.output")
                message = {"role": "tool", "tool_call_id": result.call_id, "content": content}
                self.put(message, f"{path}.output")
            case kind:
                raise AssertionError(f"unknown item type {kind}")

    def _add_message(self, item: MessageItem, path: str) -> None:
        if item.role != "assistant":
            content = _content(item.content, f"{path}.content")
            self.put({"role": item.role, "content": content}, f"{path}.content")
            return
        text = _text(item.content, f"{path}.content")
        answer = self._grown(path, goes_on=lambda a: "content" not in a or "tool_calls" in a)
        answer["content"] = answer.get("content", "") + text

    def _add_reasoning(self, item: ReasoningItem, path: str) -> None:
        name = "content" if item.content else "summary"
        text = _text(item.content or item.summary, f"{path}.{name}")
        if text:  # without any it is for a server that can read `encrypted_content`
            answer = self._grown(path, goes_on=lambda a: "reasoning_content" in a and len(a) == 2)
            answer["reasoning_content"] = answer.get("reasoning_content", "") + text

    def _add_call(self, item: FunctionCallItem, path: str) -> None:
        param = f"{path}.arguments"
        text = item.arguments.strip()
        try:
            read = partial(decode_object, what=param, param=param, max_depth=self._max_json_depth)
            arguments = read(text.encode()) if text else {}
        except BadRequest:
            if item.status == "incomplete":
                return
            raise
        function = {"name": item.name, "arguments": arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        self._grown(path, goes_on=lambda _: True).setdefault("tool_calls", []).append(call)

    def _grown(self, path: str, *, goes_on: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The assistant message that the item belongs to: the last one or a new one."""
        if self._answer is not None and goes_on(self._answer):
            return self._answer
        answer: dict[str, Any] = {"role": "assistant"}
        self.put(answer, path)
        return answer


def _content(content: str | Items, path: str) -> str | Items:
    if isinstance(content, str):
        return content
    return [_part(part, f"{path}.{index}") for index, part in enumerate(content)]


def _part(part: dict[str, Any], path: str) -> dict[str, Any]:
    if part.get("type") != "input_image":
        return {"type": "text", "text": _part_text(part, path)}
    url = part.get("image_url")
    if not isinstance(url, str) or not url:
        raise BadRequest(
            f"{path}.image_url must be a URL: files by id are not supported",
            param=f"{path}.image_url",
        )
    detail = part.get("detail")
    image = {"url": url} if detail is None else {"url": url, "detail": detail}
    return {"type": "image_url", "image_url": image}


def _text(content: str | Items, path: str) -> str:
    """The text of content that can be nothing else."""
    if isinstance(content, str):
        return content
    return "".join(_part_text(part, f"{path}.{index}") for index, part in enumerate(content))


def _part_text(part: dict[str, Any], path: str) -> str:
    kind = part.get("type")
    if kind in MEDIA_TYPES:
        raise BadRequest(f"{path}: {kind} is not supported", param=path)
    if kind not in TEXT_TYPES and kind != "refusal":
        raise BadRequest(
            f'{path}.type must be "input_text", "output_text" or, from users, "input_image"',
            param=f"{path}.type",
        )
    name = "refusal" if kind == "refusal" else "text"
    text = part.get(name)
    if not isinstance(text, str):
        raise BadRequest(f"{path}.{name} must be a string", param=f"{path}.{name}")
    return text
