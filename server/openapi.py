"""The OpenAPI document of the routes: every operation, and every status it answers with.

Requests are the wire models' own schemas. Two rules of the wire hold for all of them and are
written into each: an optional field may be null, and unknown fields are ignored. Answers, errors
and fields that the models leave open are `openapi_schemas`.

A document is of one server: without API keys it asks for none and knows no 401.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.auth import OPEN_PATHS
from server.limits import DEFAULT_LIMITS, Limits
from server.messages.fault import MESSAGES_PATH
from server.messages.protocol import CountTokensRequest, MessagesRequest
from server.openapi_schemas import ANSWERS, EXAMPLES, FIELDS
from server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from server.responses.protocol import ResponsesRequest
from server.wire_limits import with_values

_JSON = "application/json"
_EVENTS = "text/event-stream"
_PLAIN_TEXT = "text/plain"
_ANYWHERE = (400, 405, 408, 431, 500, 503)
_WITH_BODY = (404, 413, 415)  # 404: the model is not served
_GENERATING = (*_WITH_BODY, 429)
_REASONS = {
    400: "The request is not valid",
    401: "The API key is missing or wrong",
    404: "There is nothing of that name",
    405: "The path serves other methods",
    408: "The request did not arrive in time",
    413: "The body is too large",
    415: "The body is not plain JSON",
    429: "Too many requests are waiting",
    431: "The headers are too large",
    500: "The server failed",
    503: (
        "The server is starting or draining, its engine is dead, too many connections are open, or "
        "the request took too long; error.code says which"
    ),
}
_DESCRIPTION = (
    "Every answer carries x-request-id. An optional field that is null has its default; unknown "
    "fields are ignored. What never becomes a request (no HTTP, headers too large or too slow) is "
    "answered with an Error on every path."
)


def _query(name: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


@dataclass(frozen=True, slots=True)
class _Operation:
    summary: str
    answer: str | None = None  # the schema of a 200, or _PLAIN_TEXT; None: it never succeeds
    body: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()  # besides those that any route may answer with
    streams: bool = False
    query: tuple[dict[str, Any], ...] = ()
    links: tuple[str, ...] = ()  # ids of operations on what was made: they take its id


_HEALTH = _Operation("The engine is well", "Status")
_LIVE = _Operation("The server process runs", "Status")
_READY = _Operation("New work is taken", "Status")
_OPERATIONS: dict[str, dict[str, _Operation]] = {
    "/v1/chat/completions": {
        "post": _Operation(
            "Answer a chat", "ChatCompletion", ChatCompletionRequest, _GENERATING, streams=True
        )
    },
    "/v1/chat/completions/render": {
        "post": _Operation(
            "The prompt of a chat, not run", "Object", ChatCompletionRequest, _WITH_BODY
        )
    },
    "/v1/completions": {
        "post": _Operation(
            "Continue prompts", "Completion", CompletionRequest, _GENERATING, streams=True
        )
    },
    "/v1/responses": {
        "post": _Operation(
            "Create a response",
            "Response",
            ResponsesRequest,
            _GENERATING,
            streams=True,
            links=(
                "get_v1_responses_id",
                "delete_v1_responses_id",
                "post_v1_responses_id_cancel",
                "get_v1_responses_id_input_items",
            ),
        )
    },
    "/v1/responses/{id}": {
        "get": _Operation(
            "A stored response",
            "Response",
            errors=(404,),
            streams=True,
            query=(
                _query("stream", type="boolean"),
                _query("starting_after", type="integer", minimum=0),
            ),
        ),
        "delete": _Operation("Forget a stored response", "DeletedResponse", errors=(404,)),
    },
    "/v1/responses/{id}/cancel": {
        "post": _Operation("End a response that runs in the background", "Response", errors=(404,))
    },
    "/v1/responses/{id}/input_items": {
        "get": _Operation(
            "What a stored response was made from",
            "ResponseInputItems",
            errors=(404,),
            query=(
                _query("order", enum=["asc", "desc"]),
                _query("limit", type="integer", minimum=1, maximum=100),
                _query("after", type="string"),
            ),
        )
    },
    MESSAGES_PATH: {
        "post": _Operation(
            "Answer a chat, as Anthropic's API",
            "Message",
            MessagesRequest,
            _GENERATING,
            streams=True,
        )
    },
    f"{MESSAGES_PATH}/count_tokens": {
        "post": _Operation(
            "Count the tokens of a prompt", "MessageTokenCount", CountTokensRequest, _WITH_BODY
        )
    },
    "/v1/models": {"get": _Operation("The served models", "Models")},
    "/v1/models/{id}": {"get": _Operation("One served model", "Model", errors=(404,))},
    "/tokenize": {
        "post": _Operation("Text or messages to token ids", "Tokens", TokenizeRequest, _WITH_BODY)
    },
    "/detokenize": {"post": _Operation("Token ids to text", "Text", DetokenizeRequest, _WITH_BODY)},
    "/version": {"get": _Operation("The server's version", "Version")},
    "/live": {"get": _LIVE, "head": _LIVE},
    "/ready": {"get": _READY, "head": _READY},
    "/health": {"get": _HEALTH, "head": _HEALTH},
    "/ping": {"get": _HEALTH, "head": _HEALTH},
    "/metrics": {"get": _Operation("Prometheus series", _PLAIN_TEXT)},
    "/openapi.json": {"get": _Operation("This document", "Object")},
}


@cache
def openapi_document(
    version: str,
    *,
    has_keys: bool = True,
    open_metrics: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, Any]:
    """Of one server. `has_keys`: it asks for an API key, on /metrics unless `open_metrics`."""
    open_paths = {path.decode() for path in OPEN_PATHS} | ({"/metrics"} if open_metrics else set())
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "deltaserve", "version": version, "description": _DESCRIPTION},
        "paths": {
            path: {
                method: _described(path, method, operation, has_keys and path not in open_paths)
                for method, operation in operations.items()
            }
            for path, operations in _OPERATIONS.items()
        },
        "components": {"schemas": {**with_values(_request_schemas(), limits), **ANSWERS}},
    }
    if has_keys:
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "anthropic_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return document


def _described(path: str, method: str, operation: _Operation, needs_key: bool) -> dict[str, Any]:
    is_anthropic = path.startswith(MESSAGES_PATH)
    described: dict[str, Any] = {
        "operationId": "_".join([method, *re.findall(r"\w+", path)]),
        "summary": operation.summary,
        "responses": _responses(operation, needs_key, is_anthropic),
    }
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    if parameters := [*in_path, *operation.query]:
        described["parameters"] = parameters
    if operation.body is not None:
        schema = _ref(operation.body.__name__)
        described["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    if needs_key:
        theirs = [{"anthropic_key": []}] if is_anthropic else []
        described["security"] = [{"key": []}, *theirs]
    return described


def _responses(operation: _Operation, needs_key: bool, is_anthropic: bool) -> dict[str, Any]:
    always = ["x-request-id", *(["request-id"] if is_anthropic else [])]
    responses: dict[str, Any] = {}
    if operation.answer is not None:
        content: dict[str, Any] = {_JSON: {"schema": _ref(operation.answer)}}
        if operation.answer == _PLAIN_TEXT:
            content = {_PLAIN_TEXT: {"schema": {"type": "string"}}}
        if operation.streams:
            content[_EVENTS] = {}
        responses["200"] = {"description": "Done", "headers": _headers(always), "content": content}
        if operation.links:
            responses["200"]["links"] = {
                name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
                for name in operation.links
            }
    for status in sorted({*_ANYWHERE, *operation.errors, *((401,) if needs_key else ())}):
        own = {405: ["allow"], 429: ["retry-after"], 503: ["retry-after"]}.get(status, [])
        is_http = status == 431  # the connection's answer, which knows no path
        error = _ref("MessagesError" if is_anthropic and not is_http else "Error")
        responses[str(status)] = {
            "description": _REASONS[status],
            "headers": _headers([*(always[:1] if is_http else always), *own]),
            "content": {_JSON: {"schema": error}},
        }
    return responses


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {
        name: {
            "required": True,
            "schema": {"type": "integer" if name == "retry-after" else "string"},
        }
        for name in names
    }


def _request_schemas() -> dict[str, Any]:
    models = {
        operation.body
        for operations in _OPERATIONS.values()
        for operation in operations.values()
        if operation.body is not None
    }
    _, found = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = found["$defs"]
    for name, schema in schemas.items():
        properties = {**schema["properties"], **FIELDS.get(name, {})}
        examples = EXAMPLES.get(name, {})
        required = schema.get("required", ())
        schema["properties"] = {
            key: _with_example(value if key in required else _or_null(value), examples.get(key))
            for key, value in properties.items()
        }
    return schemas


def _with_example(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return schema if example is None else {**schema, "examples": [example]}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, with null allowed, which is how the wire says "the default"."""
    kind = schema.get("type", ())
    allows = (
        not schema.keys() & {"type", "$ref", "anyOf", "enum", "const"}
        or "null" in (kind if isinstance(kind, list) else [kind])
        or {"type": "null"} in schema.get("anyOf", ())
        or None in schema.get("enum", ())
    )
    if allows:
        return schema
    outer = {key: schema[key] for key in ("default", "title") if key in schema}
    inner = {key: value for key, value in schema.items() if key not in outer}
    if outer.get("default") == 0 and outer["default"] is not False:
        outer["default"] = 0  # an integer even for floats, for it may be sent back as it stands
    return {"anyOf": [inner, {"type": "null"}], **outer}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
