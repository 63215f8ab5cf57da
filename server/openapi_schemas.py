"""What the OpenAPI document says in JSON Schema beyond the request models: answers, errors, fields.

Answers are written as clients may rely on them: the keys that are always there, and no promise that
no other key is. Error bodies are exact. `FIELDS` describes request fields whose wire type is open
because code with more knowledge checks them; a field that is always refused takes null only, or
what asks for nothing.
"""

from typing import Any

from server.media_parts import MEDIA_KINDS
from server.wire_limits import NAMED

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_ANY_OBJECT: Schema = {"type": "object"}
_NOTHING: Schema = {"type": "null", "default": None}
_NOTHING_OR_FALSE: Schema = {"enum": [None, False], "default": None}


def _object(**properties: Schema) -> Schema:
    """An object with at least these keys."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _exactly(**properties: Schema) -> Schema:
    return {**_object(**properties), "additionalProperties": False}


def _with_optional(schema: Schema, **properties: Schema) -> Schema:
    return {**schema, "properties": {**schema["properties"], **properties}}


def _list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _is(value: str) -> Schema:
    return {"const": value}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_USAGE = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_FINISH: Schema = {"enum": ["stop", "length", "tool_calls"]}
_STOP_REASON: Schema = {"type": ["string", "integer", "null"]}
_ITEMS = _list(_object(type=_STRING))


def _choices(**said: Schema) -> Schema:
    """Of a completion: one or more, which differ in how they hold what was said."""
    choice = _object(
        index=_COUNT,
        **said,
        logprobs={"type": ["object", "null"]},
        finish_reason=_FINISH,
        stop_reason=_STOP_REASON,
    )
    return _list(choice, minItems=1)


ANSWERS: dict[str, Schema] = {
    "Error": _exactly(
        error=_exactly(
            message=_STRING,
            type={
                "enum": [
                    "invalid_request_error",
                    "authentication_error",
                    "rate_limit_error",
                    "server_error",
                ]
            },
            param=_TEXT_OR_NULL,
            code={"type": ["string", "integer", "null"]},
        )
    ),
    "MessagesError": _exactly(
        type=_is("error"),
        error=_with_optional(
            _exactly(
                type={
                    "enum": [
                        "invalid_request_error",
                        "authentication_error",
                        "not_found_error",
                        "overloaded_error",
                        "api_error",
                    ]
                },
                message=_STRING,
            ),
            details=_exactly(error_code=_is("thread_unsupported_request")),
        ),
    ),
    "ChatCompletion": _object(
        id=_STRING,
        object=_is("chat.completion"),
        created=_COUNT,
        model=_STRING,
        choices=_choices(
            message=_object(
                role=_is("assistant"),
                content=_TEXT_OR_NULL,
                reasoning_content=_TEXT_OR_NULL,
                reasoning=_TEXT_OR_NULL,
            )
        ),
        usage=_USAGE,
    ),
    "Completion": _object(
        id=_STRING,
        object=_is("text_completion"),
        created=_COUNT,
        model=_STRING,
        choices=_choices(text=_STRING),
        usage=_USAGE,
    ),
    "Response": _object(
        id=_STRING,
        object=_is("response"),
        created_at=_COUNT,
        status={
            "enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
        },
        model=_STRING,
        output=_ITEMS,
        # Null until it is over, in the background.
        usage={
            "anyOf": [
                _object(input_tokens=_COUNT, output_tokens=_COUNT, total_tokens=_COUNT),
                {"type": "null"},
            ]
        },
        error={"anyOf": [_object(code=_STRING, message=_STRING), {"type": "null"}]},
        incomplete_details={"type": ["object", "null"]},
    ),
    "DeletedResponse": _object(id=_STRING, object=_is("response"), deleted={"const": True}),
    "ResponseInputItems": _object(
        object=_is("list"),
        data=_ITEMS,
        first_id=_TEXT_OR_NULL,
        last_id=_TEXT_OR_NULL,
        has_more={"type": "boolean"},
    ),
    "Message": _object(
        id=_STRING,
        type=_is("message"),
        role=_is("assistant"),
        model=_STRING,
        content=_list(_object(type={"enum": ["text", "thinking", "tool_use"]})),
        stop_reason={"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        stop_sequence=_TEXT_OR_NULL,
        usage=_object(input_tokens=_COUNT, output_tokens=_COUNT),
    ),
    "MessageTokenCount": _object(input_tokens=_COUNT),
    "Tokens": _object(count=_COUNT, max_model_len=_COUNT, tokens=_list(_COUNT)),
    "Text": _object(prompt=_STRING),
    "Model": _object(
        id=_STRING,
        object=_is("model"),
        created=_COUNT,
        owned_by=_STRING,
        root=_STRING,
        max_model_len=_COUNT,
    ),
    "Models": _object(object=_is("list"), data=_list(_ref("Model"), minItems=1)),
    "Version": _object(version=_STRING),
    "Status": _object(status=_is("ok")),
    "Object": _ANY_OBJECT,
}

_FUNCTION: Schema = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", NAMED: "max_tool_name_chars"},
        "description": _TEXT_OR_NULL,
        "parameters": {"type": ["object", "null"]},
        "strict": {"type": ["boolean", "null"]},
    },
}
_TOOL = _object(type=_is("function"), function=_FUNCTION)
_TOOLS: Schema = {**_list(_TOOL, minItems=1), NAMED: "max_tools", "default": None}
_RESPONSE_TOOL: Schema = {
    **_FUNCTION,
    "required": ["type", "name"],
    "properties": {"type": _is("function"), **_FUNCTION["properties"]},
}
_CHOICE_WORD: Schema = {"enum": [None, "auto", "none", "required"]}
_TOOL_CHOICE: Schema = {
    "anyOf": [_CHOICE_WORD, _object(type=_is("function"), function=_object(name=_STRING))],
    "default": None,
}
# Short, since it stands in many places: what formats there are, the reader of constraints knows.
_TAG: Schema = {
    **_object(type=_is("structural_tag")),
    "description": "With structures and triggers, or with format: a structural tag of xgrammar",
}
_TAG_OR_TEXT: Schema = {"type": ["object", "string", "null"], "default": None}
_RESPONSE_FORMAT: Schema = {
    "default": None,
    "anyOf": [
        {"type": "null"},
        _object(type={"enum": ["text", "json_object"]}),
        _object(
            type=_is("json_schema"),
            json_schema=_with_optional(
                _object(schema=_ANY_OBJECT),
                name={"description": "Has no effect"},
                strict={"type": ["boolean", "null"]},
            ),
        ),
        _TAG,
    ],
}
_JSON_SCHEMA: Schema = {"type": ["object", "string", "null"], "default": None}
_PATTERN: Schema = {"type": ["string", "null"], "minLength": 1, "default": None}
_CHOICES: Schema = {"type": ["array", "null"], "items": _STRING, "minItems": 1, "default": None}
_TEXT_PART = _object(type=_is("text"), text=_STRING)
_URL: Schema = {"type": "string", "minLength": 1}
_MEDIA: Schema = {
    "anyOf": [_URL, _with_optional(_object(url=_URL), detail=_TEXT_OR_NULL)],
    "description": "A data: URL; where the server allows it, an http(s): or file: URL",
}
_MEDIA_PARTS: list[Schema] = [
    {**_object(**{"type": _is(name), name: _MEDIA}), "description": "From users and tools"}
    for name in MEDIA_KINDS
]
_PART: Schema = {"anyOf": [_TEXT_PART, *_MEDIA_PARTS]}
_CONTENT: Schema = {"anyOf": [_STRING, {"type": "null"}, _list(_PART)]}
_EXAMPLE_CHAT: list[Any] = [{"role": "user", "content": "What is the weather?"}]

_PROMPT_FIELDS: dict[str, Schema] = {"chat_template": _NOTHING}
_SAMPLING_FIELDS: dict[str, Schema] = {
    "response_format": _RESPONSE_FORMAT,
    "structured_outputs": {
        "type": ["object", "null"],
        "default": None,
        "properties": {
            "json": _JSON_SCHEMA,
            "regex": _PATTERN,
            "choice": _CHOICES,
            "grammar": _PATTERN,
            "json_object": {"type": ["boolean", "null"]},
            "structural_tag": _TAG_OR_TEXT,
        },
        "minProperties": 1,
    },
    "guided_json": _JSON_SCHEMA,
    "guided_regex": _PATTERN,
    "guided_choice": _CHOICES,
    "guided_grammar": _PATTERN,
    "regex": _PATTERN,
    "ebnf": _PATTERN,
    "json_schema": _JSON_SCHEMA,
    "structural_tag": _TAG_OR_TEXT,
    "prompt_embeds": _NOTHING_OR_FALSE,
    "use_beam_search": _NOTHING_OR_FALSE,
    "logits_processors": _NOTHING_OR_FALSE,
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatCompletionRequest": {"messages": _EXAMPLE_CHAT},
    "CompletionRequest": {"prompt": "The quick brown fox"},
    "ResponsesRequest": {"input": "What is the weather?"},
    "MessagesRequest": {"messages": _EXAMPLE_CHAT, "max_tokens": 100},
    "CountTokensRequest": {"messages": _EXAMPLE_CHAT},
    "DetokenizeRequest": {"tokens": [1, 2, 3]},
    "TokenizeRequest": {"messages": _EXAMPLE_CHAT},
}

# By model and field. A field that a model does not have is a mistake here: the tests look.
FIELDS: dict[str, dict[str, Schema]] = {
    "ChatMessage": {"content": _CONTENT},
    "ChatCompletionRequest": {
        **_SAMPLING_FIELDS,
        **_PROMPT_FIELDS,
        "tools": _TOOLS,
        "tool_choice": _TOOL_CHOICE,
        "echo": _NOTHING_OR_FALSE,
        "functions": _NOTHING_OR_FALSE,
        "function_call": _NOTHING_OR_FALSE,
    },
    "CompletionRequest": {
        **_SAMPLING_FIELDS,
        "suffix": _NOTHING,
        "thinking_token_budget": _NOTHING_OR_FALSE,
    },
    "ResponsesRequest": {
        **_SAMPLING_FIELDS,
        **_PROMPT_FIELDS,
        "tools": {**_list(_RESPONSE_TOOL), NAMED: "max_tools", "default": None},
        "tool_choice": {
            "anyOf": [_CHOICE_WORD, _object(type=_is("function"), name=_STRING)],
            "default": None,
        },
        "conversation": _NOTHING,
        "prompt": _NOTHING,
    },
    "TokenizeRequest": {**_PROMPT_FIELDS, "tools": _TOOLS},
}
