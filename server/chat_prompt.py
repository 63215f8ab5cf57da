"""The messages of a chat -> its prompt: rendered by the model's template, tokenised, media placed.

Text that costs too much to tokenise is refused before it is. The bound counts what the template
wrote: the placeholder of an image is one there, however many tokens it becomes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine import Media, VisionConfig
from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS, Limits
from server.media_parts import LoadedByKey, key_of, media_refs
from server.media_prompt import MediaPrompt
from server.protocol import ChatMessage, ChatPromptFields
from server.template import ChatTemplate, TooLong
from server.tokenizer import LITERAL, Tokenizer
from server.validate_messages import template_messages


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    text: str  # as the template wrote it: one placeholder for an image or a video
    ids: list[int]
    media: tuple[Media, ...]


class ChatPrompter:
    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        vision: VisionConfig | None,
        *,
        literal_control_tokens: bool,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """`template` None: the model does not chat. `vision` None: it takes no media."""
        self._template = template
        self._mark = tokenizer.literal if literal_control_tokens else None
        self._encode = tokenizer.encode_marked if literal_control_tokens else tokenizer.encode
        self._media_prompt = None
        if vision is not None:
            self._media_prompt = MediaPrompt(tokenizer, vision, encode=self._encode)
        self._limits = limits

    @property
    def takes_media(self) -> bool:
        return self._media_prompt is not None and self._media_prompt.is_usable

    def prompt(
        self,
        request: ChatPromptFields,
        messages: Sequence[ChatMessage],
        media: LoadedByKey,
        *,
        add_special_tokens: bool,
        window: int,
    ) -> ChatPrompt:
        """`media` holds all that `messages` refer to. Raises BadRequest."""
        template = self._checked_template(request)
        continues = request.continue_final_message
        given = template_messages(
            messages,
            continue_final_message=continues,
            untrusted=self._mark,
            max_json_depth=self._limits.max_json_depth,
        )
        asked = request.add_generation_prompt
        per_token = self._limits.max_chars_per_token

        def rendered(given: list[dict[str, Any]], tools: Any, kwargs: dict[str, Any]) -> str:
            try:
                text = template.render(
                    given,
                    tools,
                    add_generation_prompt=not continues if asked is None else asked,
                    continue_final_message=continues,
                    kwargs=kwargs,
                    max_chars=per_token * window,
                )
            except TooLong:
                raise _too_long("messages", window, per_token) from None
            check_chars(text, "messages", window, per_token)
            return text

        kwargs = _template_kwargs(request)
        loaded = [media[key_of(ref)] for ref in media_refs(messages)] if media else []
        if not loaded:
            text = rendered(given, request.tools, kwargs)
            return ChatPrompt(self._unmarked(text), self._encode(text, add_special_tokens), ())
        assert self._media_prompt is not None, "media of a model without a tower"
        guard = self._media_prompt.guard()
        text = rendered(guard.hide(given), guard.hide(request.tools), guard.hide(kwargs))
        ids, placed = self._media_prompt.encode(
            text, loaded, guard, add_special_tokens=add_special_tokens
        )
        return ChatPrompt(self._unmarked(guard.restore(text)), ids, placed)

    def _unmarked(self, text: str) -> str:
        return text if self._mark is None else text.replace(LITERAL, "")

    def _checked_template(self, request: ChatPromptFields) -> ChatTemplate:
        if request.chat_template is not None:
            raise BadRequest(
                "chat_template of a request is not used: the model's own is", param="chat_template"
            )
        if self._template is None:
            raise BadRequest("messages: this model has no chat template", param="messages")
        if request.continue_final_message and request.add_generation_prompt:
            raise BadRequest(
                "continue_final_message and add_generation_prompt exclude each other",
                param="continue_final_message",
            )
        return self._template


def check_chars(text: str, param: str, window: int, chars_per_token: int) -> None:
    """Refuse text that is longer than a prompt could be, before it is tokenised."""
    if len(text) > chars_per_token * window:
        raise _too_long(param, window, chars_per_token)


def _too_long(param: str, window: int, chars_per_token: int) -> BadRequest:
    return BadRequest(
        f"{param} has more than {chars_per_token * window} characters, which is past "
        f"this model's maximum context length of {window} tokens",
        param=param,
        code="context_length_exceeded",
    )


def _template_kwargs(request: ChatPromptFields) -> dict[str, Any]:
    """Client arguments for the template; explicit ones go before what `reasoning_effort` means."""
    given = {k: v for k, v in request.chat_template_kwargs.items() if v is not None}
    if not isinstance(given.get("enable_thinking", True), bool):
        raise BadRequest(
            "chat_template_kwargs.enable_thinking must be true or false",
            param="chat_template_kwargs.enable_thinking",
        )
    effort = request.reasoning_effort
    if effort is None:
        return given
    if effort == "none":
        return {"enable_thinking": False, **given}
    return {"reasoning_effort": effort, **given}
