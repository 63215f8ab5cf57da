"""Fields that would change the output and cannot be honoured: refused, never ignored."""

from typing import Any

from server.errors import BadRequest
from server.protocol import ChatCompletionRequest, CompletionRequest

NEVER = ("prompt_embeds", "use_beam_search", "logits_processors")


def refuse_unsupported(request: ChatCompletionRequest | CompletionRequest) -> None:
    for name in NEVER:
        if _asks(getattr(request, name)):
            raise BadRequest(f"{name} is not supported", param=name)
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
        if _asks(getattr(request, name)) and getattr(request, name) != "none":
            raise BadRequest(f"{name} is not supported: use tools", param=name)


def _asks(value: Any) -> bool:
    """Null, false and an empty list ask for nothing; 0 and other empty values do."""
    return value is not None and value is not False and value != []
