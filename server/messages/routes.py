"""`POST /v1/messages` and `POST /v1/messages/count_tokens`.

They are run as a chat is: readiness, body, flight, engine, metrics and log are the site's.
"""

import dataclasses

import msgspec
from fastapi import FastAPI

from server.answer import Draft
from server.chat import draft_chat
from server.exchange import Exchange
from server.json_body import decode_json, in_turn
from server.media_wait import AwaitsMedia, then
from server.messages.answer import MessageAnswer
from server.messages.cache_marks import marks_cache
from server.messages.convert import num_prompt_tokens, valid_chat
from server.messages.fault import MESSAGES_PATH
from server.messages.protocol import CountTokensRequest, MessagesRequest
from server.protocol import parse_body, parse_wire
from server.site import Site, add_route
from server.valid import ValidChat

COUNT_PATH = f"{MESSAGES_PATH}/count_tokens"


def add_message_routes(api: FastAPI, site: Site) -> None:
    """The two routes; their exchanges have to come from `fault.exchange_for`."""

    def read_message(body: bytes) -> Draft | AwaitsMedia[Draft]:
        with in_turn(body):
            given = decode_json(body, site.limits.max_json_depth)
            request = parse_wire(MessagesRequest, given, site.limits)
        tells_cache_writes = marks_cache(given)

        def draft(valid: ValidChat) -> Draft:
            drafted = draft_chat(
                valid,
                site.tokenizer,
                model=request.model or site.served_names[0],
                system_fingerprint=site.fingerprint,
            )
            return dataclasses.replace(
                drafted, id_prefix="msg_", tells_cache_writes=tells_cache_writes
            )

        return then(valid_chat(request, site.validator), draft)

    def read_count(body: bytes) -> bytes | AwaitsMedia[bytes]:
        request = parse_body(CountTokensRequest, body, site.limits)
        return then(
            num_prompt_tokens(request, site.validator),
            lambda count: msgspec.json.encode({"input_tokens": count}),
        )

    async def create(exchange: Exchange) -> None:
        await site.generate(exchange, read_message, MessageAnswer)

    async def count_tokens(exchange: Exchange) -> None:
        await site.reply(exchange, read_count)

    add_route(api, MESSAGES_PATH, create, "POST")
    add_route(api, COUNT_PATH, count_tokens, "POST")
