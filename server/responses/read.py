"""The body of a Responses request -> what is to be generated, answered and kept. Runs in a thread.

With `truncation: "auto"` a conversation that is too long for the model loses its oldest turns, as
few as possible, until its prompt fits; system messages stay. A turn begins at a user message.
Images of earlier turns are kept as the addresses they came from, and loaded again.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec

from server.answer import Draft
from server.chat import draft_chat
from server.errors import BadRequest
from server.json_body import decode_json, in_turn
from server.media_parts import LoadedByKey
from server.media_wait import AwaitsMedia, with_media
from server.protocol import ChatCompletionRequest, parse_wire
from server.responses.convert import convert
from server.responses.items import new_id
from server.responses.logprobs import MessageLogprobs
from server.responses.protocol import Items, ResponsesRequest
from server.responses.store import ResponseKeeper, StoredItem, StoredResponse
from server.tokenizer import Tokenizer
from server.valid import ValidChat
from server.validate import Validator
from server.validate_messages import SYSTEM_ROLES

_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}
MAX_ITEM_ID_CHARS = 128

_encode = msgspec.json.Encoder().encode


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResponseDraft:
    """A response to be."""

    draft: Draft
    fields: dict[str, Any]  # of the response object, as far as the request decides them
    owner: bytes
    input_items: tuple[StoredItem, ...]
    previous: StoredResponse | None
    store: ResponseKeeper | None  # None: it is not kept
    background: bool


class ResponseReader:
    """Reads requests. `store` None: nothing is ever kept."""

    def __init__(
        self,
        validator: Validator,
        tokenizer: Tokenizer,
        store: ResponseKeeper | None,
        *,
        default_model: str,
    ) -> None:
        self._validator = validator
        self._tokenizer = tokenizer
        self._store = store
        self._default_model = default_model

    def read(self, body: bytes, owner: bytes) -> ResponseDraft | AwaitsMedia[ResponseDraft]:
        """Raise BadRequest for what cannot be answered."""
        limits = self._validator.limits
        with in_turn(body):
            wire = decode_json(body, limits.max_json_depth)
            request = parse_wire(ResponsesRequest, wire, limits)
        previous = self._previous(request, owner)
        earlier = _decoded(previous.context() + list(previous.output_items)) if previous else []
        conversion = convert(
            request,
            wire,
            earlier,
            lambda item_id: self._item(owner, item_id),
            limits.max_json_depth,
        )
        try:
            chat = parse_wire(ChatCompletionRequest, conversion.fields, limits)
            refs = self._validator.media_of(chat.messages)
        except BadRequest as error:
            raise conversion.refusal(error) from None

        def drafted(media: LoadedByKey) -> ResponseDraft:
            truncates = request.truncation == "auto"
            try:
                valid = self._validated(chat, media, conversion.fields, truncates=truncates)
            except BadRequest as error:
                raise conversion.refusal(error) from None
            return self._drafted(request, wire, conversion.items, valid, previous, owner)

        return with_media(conversion.refs(refs), drafted)

    def _drafted(
        self,
        request: ResponsesRequest,
        wire: dict[str, Any],
        items: Items,
        valid: ValidChat,
        previous: StoredResponse | None,
        owner: bytes,
    ) -> ResponseDraft:
        draft = draft_chat(
            valid,
            self._tokenizer,
            model=request.model or self._default_model,
            system_fingerprint="",
        )
        if valid.logprobs:
            draft = dataclasses.replace(draft, choices=[MessageLogprobs(valid, self._tokenizer)])
        is_kept = request.store and self._store is not None
        if request.background and not is_kept:
            raise BadRequest("background needs a response that is stored", param="background")
        return ResponseDraft(
            draft=dataclasses.replace(draft, id_prefix="resp_", tells_cache_writes=True),
            fields=_response_fields(request, wire, draft.model, valid, is_kept),
            owner=owner,
            input_items=_stored_items(items) if is_kept else (),
            previous=previous,
            store=self._store if is_kept else None,
            background=request.background,
        )

    def _previous(self, request: ResponsesRequest, owner: bytes) -> StoredResponse | None:
        if request.previous_response_id is None:
            return None
        if self._store is None:
            raise BadRequest(
                "previous_response_id cannot be used: this server stores no responses",
                param="previous_response_id",
            )
        previous = self._store.get(owner, request.previous_response_id)
        if previous is None:
            raise BadRequest(
                "previous_response_id: no such response is stored",
                param="previous_response_id",
                status=404,
                code="previous_response_not_found",
            )
        return previous

    def _item(self, owner: bytes, item_id: str) -> dict[str, Any] | None:
        json = self._store.item(owner, item_id) if self._store is not None else None
        return None if json is None else msgspec.json.decode(json)

    def _validated(
        self,
        chat: ChatCompletionRequest,
        media: LoadedByKey,
        fields: dict[str, Any],
        *,
        truncates: bool,
    ) -> ValidChat:
        """`fields` are those of `chat` as JSON."""
        try:
            return self._validator.chat(chat, media)
        except BadRequest as error:
            if not truncates or error.code != "context_length_exceeded":
                raise
            fitting = _fewest_dropped(
                fields["messages"],
                lambda messages: self._validator.chat(
                    parse_wire(
                        ChatCompletionRequest,
                        {**fields, "messages": messages},
                        self._validator.limits,
                    ),
                    media,
                ),
            )
            if fitting is None:
                raise
            return fitting


def _fewest_dropped(
    messages: list[dict[str, Any]], validate: Callable[[list[dict[str, Any]]], ValidChat]
) -> ValidChat | None:
    """Drop as few of the oldest turns as needed; None: the newest turn alone is too long."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    low, high = 1, len(starts)  # the first turn kept is in [low, high); high fits or there is none
    fitting: ValidChat | None = None
    while low < high:
        middle = (low + high) // 2
        start = starts[middle]
        kept = [m for m in messages[:start] if m["role"] in SYSTEM_ROLES] + messages[start:]
        try:
            fitting = validate(kept)
            high = middle
        except BadRequest as error:
            if error.code != "context_length_exceeded":
                raise
            low = middle + 1
    return fitting


def _decoded(items: list[StoredItem]) -> Items:
    return [msgspec.json.decode(item.json) for item in items]


def _stored_items(items: Items) -> tuple[StoredItem, ...]:
    return tuple(_stored_item(item) for item in items)


def _stored_item(item: dict[str, Any]) -> StoredItem:
    """An input item as it is kept and listed: with an id, and its content as parts."""
    kind: str = item["type"]
    item_id = item.get("id")
    if not isinstance(item_id, str) or not 0 < len(item_id) <= MAX_ITEM_ID_CHARS:
        item_id = new_id(_PREFIXES[kind])
    given = {name: value for name, value in item.items() if value is not None}
    kept = {"status": "completed", **given, "id": item_id}
    if kind == "message" and isinstance(item["content"], str):
        is_answer = item["role"] == "assistant"
        part: dict[str, Any] = {"type": "input_text", "text": item["content"]}
        if is_answer:
            part = {"type": "output_text", "text": item["content"], "annotations": []}
        kept["content"] = [part]
    return StoredItem(item_id, _encode(kept))


def _response_fields(
    request: ResponsesRequest,
    wire: dict[str, Any],
    model: str,
    valid: ValidChat,
    is_kept: bool,
) -> dict[str, Any]:
    """What the response object repeats of the request, defaults filled in."""
    sampling = valid.generation.sampling
    temperature = request.temperature
    reasoning = request.reasoning
    return {
        "background": request.background,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata,
        "model": model,
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning else request.reasoning_effort,
            "summary": None,
        },
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": is_kept,
        "temperature": sampling.temperature if temperature is None else temperature,
        "text": {"format": {"type": "text"}, **_given(wire.get("text"))},
        "tool_choice": "auto" if request.tool_choice is None else request.tool_choice,
        "tools": request.tools or [],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": request.truncation,
        "user": request.user,
    }


def _given(fields: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (fields or {}).items() if value is not None}
