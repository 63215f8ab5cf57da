"""Declared tools and `tool_choice`: their shapes. What they demand of the answer: `constraints`."""

import re
from collections.abc import Sequence
from typing import Any, cast

from server.errors import BadRequest
from server.protocol import ChatCompletionRequest

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_tools(tools: Sequence[dict[str, Any]] | None, max_name_chars: int) -> None:
    """Check each tool's shape."""
    for index, tool in enumerate(tools or ()):
        path = f"tools.{index}"
        if tool.get("type") != "function":
            raise BadRequest(f'{path}.type must be "function"', param=f"{path}.type")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise BadRequest(f"{path}.function must be an object", param=f"{path}.function")
        _check_function(cast(dict[str, Any], function), f"{path}.function", max_name_chars)


def _check_function(function: dict[str, Any], path: str, max_name_chars: int) -> None:
    name = function.get("name")
    if not isinstance(name, str) or len(name) > max_name_chars or not FUNCTION_NAME.fullmatch(name):
        raise BadRequest(
            f"{path}.name must be 1 to {max_name_chars} letters, digits, underscores or hyphens",
            param=f"{path}.name",
        )
    if not isinstance(function.get("description", ""), str | None):
        raise BadRequest(f"{path}.description must be a string", param=f"{path}.description")
    if not isinstance(function.get("parameters", {}), dict | None):
        raise BadRequest(f"{path}.parameters must be an object", param=f"{path}.parameters")
    strict = function.get("strict")
    if not isinstance(strict, bool | None):
        raise BadRequest(f"{path}.strict must be true or false", param=f"{path}.strict")


def active_tools(request: ChatCompletionRequest) -> tuple[dict[str, Any], ...] | None:
    """The tools whose calls are to be parsed out of the answer; None: the answer is verbatim."""
    choice = request.tool_choice
    if request.tools is None:
        if choice is not None:
            raise BadRequest("tool_choice is only allowed with tools", param="tool_choice")
        return None
    if choice is None or choice in ("auto", "required"):
        return tuple(request.tools)
    if choice == "none":
        return None
    if isinstance(choice, dict) and cast(dict[str, Any], choice).get("type") == "function":
        function = cast(dict[str, Any], choice).get("function")
        name = cast(dict[str, Any], function).get("name") if isinstance(function, dict) else None
        if all(tool["function"]["name"] != name for tool in request.tools):
            raise BadRequest(
                "tool_choice.function.name must name a declared tool",
                param="tool_choice.function.name",
            )
        return tuple(request.tools)
    raise BadRequest(
        'tool_choice must be "auto", "none", "required" or an object that names a function',
        param="tool_choice",
    )
