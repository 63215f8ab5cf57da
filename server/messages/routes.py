"""`POST /v1/messages` and `POST /v1/messages/count_tokens`, for the application's table.

The application runs them as it runs a chat: readiness, body, flight, engine, metrics and log are
its own. What it is told is how to read a body and which kind of `Answer` sends the draft.
"""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from server.answer import Answer, Draft
from server.chat import draft_chat
from server.exchange import Exchange
from server.json_body import decode_json
from server.messages.answer import MessageAnswer
from server.messages.convert import num_prompt_tokens, valid_chat
from server.messages.fault import MESSAGES_PATH
from server.messages.protocol import CountTokensRequest, MessagesRequest
from server.protocol import parse_wire
from server.tokenizer import Tokenizer
from server.validate import Validator

COUNT_PATH = f"{MESSAGES_PATH}/count_tokens"

Read = Callable[[bytes], Draft | bytes]
Handler = Callable[[Exchange], Awaitable[None]]


class Work(Protocol):
    def __call__(
        self, exchange: Exchange, read: Read, answer_type: type[Answer]
    ) -> Awaitable[None]:
        """Take a request from its headers to the end of its answer; `read` runs in a thread."""
        ...


def message_routes(
    validator: Validator, tokenizer: Tokenizer, *, default_model: str, work: Work
) -> dict[str, dict[str, Handler]]:
    """The routes as path -> method -> handler; `work` is what the application does with a POST."""

    def read_message(body: bytes) -> Draft:
        request = parse_wire(MessagesRequest, decode_json(body))
        draft = draft_chat(
            valid_chat(request, validator),
            tokenizer,
            model=request.model or default_model,
            system_fingerprint="",
        )
        return dataclasses.replace(draft, id_prefix="msg_")

    def read_count(body: bytes) -> bytes:
        request = parse_wire(CountTokensRequest, decode_json(body))
        return msgspec.json.encode({"input_tokens": num_prompt_tokens(request, validator)})

    async def create(exchange: Exchange) -> None:
        await work(exchange, read_message, MessageAnswer)

    async def count_tokens(exchange: Exchange) -> None:
        await work(exchange, read_count, MessageAnswer)

    return {MESSAGES_PATH: {"POST": create}, COUNT_PATH: {"POST": count_tokens}}
