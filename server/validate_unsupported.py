"""Fields that would change the output and cannot be honoured: refused, never ignored."""

from typing import Any, cast

from server.errors import BadRequest
from server.protocol import ChatCompletionRequest, CompletionRequest

NOT_YET = (
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "regex",
    "ebnf",
    "json_schema",
)
NEVER = ("prompt_embeds", "use_beam_search", "logits_processors")
FORMAT_TYPES = ("json_object", "json_schema", "structural_tag")


def refuse_unsupported(request: ChatCompletionRequest | CompletionRequest) -> None:
    for name in NOT_YET:
        if _asks(getattr(request, name)):
            raise BadRequest(f"{name} is not supported yet", param=name)
    for name in NEVER:
        if _asks(getattr(request, name)):
            raise BadRequest(f"{name} is not supported", param=name)
    _check_response_format(request.response_format)
    if isinstance(request, CompletionRequest):
        if request.suffix is not None:
            raise BadRequest("suffix is not supported", param="suffix")
        if _asks(request.thinking_token_budget):
            raise BadRequest(
                "thinking_token_budget is for chat only", param="thinking_token_budget"
            )
        return
    if _asks(request.echo):
        raise BadRequest("echo is not supported for chat", param="echo")
    for name in ("functions", "function_call"):
        if _asks(getattr(request, name)):
            raise BadRequest(f"{name} is not supported: use tools", param=name)


def _asks(value: Any) -> bool:
    """Null and false ask for nothing; 0 and empty values do."""
    return value is not None and value is not False


def _check_response_format(value: Any) -> None:
    if value is None:
        return
    kind = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else None
    if kind == "text":
        return
    if kind in FORMAT_TYPES:
        raise BadRequest(f"response_format {kind} is not supported yet", param="response_format")
    raise BadRequest(
        f"response_format.type must be one of text, {', '.join(FORMAT_TYPES)}",
        param="response_format",
    )
