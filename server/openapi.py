"""The OpenAPI document of the routes, with the request models' own JSON schemas."""

import re
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.auth import PROBES
from server.messages.protocol import CountTokensRequest, MessagesRequest
from server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from server.responses.protocol import ResponsesRequest

_POST: dict[str, tuple[str, type[BaseModel]]] = {
    "/v1/chat/completions": ("Answer a chat", ChatCompletionRequest),
    "/v1/chat/completions/render": ("The prompt of a chat, not run", ChatCompletionRequest),
    "/v1/completions": ("Continue prompts", CompletionRequest),
    "/v1/responses": ("Create a response", ResponsesRequest),
    "/v1/messages": ("Answer a chat, as Anthropic's API", MessagesRequest),
    "/v1/messages/count_tokens": ("Count the tokens of a prompt", CountTokensRequest),
    "/tokenize": ("Text or messages to token ids", TokenizeRequest),
    "/detokenize": ("Token ids to text", DetokenizeRequest),
}
_GET = {
    "/v1/responses/{id}": "A stored response",
    "/v1/responses/{id}/input_items": "What a stored response was made from",
    "/v1/models": "The served models",
    "/v1/models/{id}": "One served model",
    "/version": "The server's version",
    "/live": "The server process runs",
    "/ready": "New work is taken",
    "/health": "The engine is well",
    "/ping": "The same as /health",
    "/metrics": "Prometheus series",
    "/openapi.json": "This document",
}
_PROBES = {path.decode() for path in PROBES}
_STREAMED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
_WORK_ERRORS = (400, 401, 404, 408, 413, 415, 429, 500, 503)
_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}


@cache
def openapi_document(version: str) -> dict[str, Any]:
    _, schemas = models_json_schema(
        [(model, "validation") for _, model in _POST.values()],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for path, (summary, model) in _POST.items():
        body = {"application/json": {"schema": _ref(model.__name__)}}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": body},
                "responses": _responses(path, _WORK_ERRORS),
            }
        }
    for path, summary in _GET.items():
        errors = (503,) if path in _PROBES else (401, 404) if "{" in path else (401,)
        operation: dict[str, Any] = {"summary": summary, "responses": _responses(path, errors)}
        if "{" in path:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in re.findall(r"{(\w+)}", path)
            ]
        if path in _PROBES:
            operation["security"] = []
        paths[path] = {"get": operation}
        if path == "/v1/responses/{id}":
            paths[path]["delete"] = {**operation, "summary": "Forget a stored response"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "deltaserve", "version": version},
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Error": _ERROR_SCHEMA},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _responses(path: str, errors: tuple[int, ...]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if path == "/metrics":
        content = {"text/plain": {"schema": {"type": "string"}}}
    if path in _STREAMED:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "Done", "content": content}}
    for status in errors:
        responses[str(status)] = {
            "description": "Refused" if status < 500 else "Not possible now",
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    return responses
