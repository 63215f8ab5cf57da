"""The OpenAI-compatible routes, and the facts: probes, models, version, metrics."""

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI

from server.answer import Answer, Draft
from server.chat import draft_chat
from server.completions import draft_completion
from server.errors import BadRequest
from server.exchange import Exchange
from server.media_parts import LoadedByKey
from server.media_wait import AwaitsMedia, with_media
from server.metrics import CONTENT_TYPE
from server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    parse_body,
)
from server.site import Site, add_route

MODEL_PREFIX = "/v1/models/"
_OK = b'{"status":"ok"}'


def add_model_routes(api: FastAPI, site: Site) -> None:
    """Routes that read a JSON body and work on it."""

    def chat(body: bytes) -> Draft | AwaitsMedia[Draft]:
        request = parse_body(ChatCompletionRequest, body, site.limits)

        def draft(media: LoadedByKey) -> Draft:
            return draft_chat(
                site.validator.chat(request, media),
                site.tokenizer,
                model=request.model or site.served_names[0],
                system_fingerprint=site.fingerprint,
            )

        return with_media(site.validator.media_of(request.messages), draft)

    def completions(body: bytes) -> Draft:
        request = parse_body(CompletionRequest, body, site.limits)
        return draft_completion(
            site.validator.completion(request),
            site.tokenizer,
            model=request.model or site.served_names[0],
            system_fingerprint=site.fingerprint,
        )

    def render(body: bytes) -> bytes | AwaitsMedia[bytes]:
        request = parse_body(ChatCompletionRequest, body, site.limits)
        return with_media(
            site.validator.media_of(request.messages),
            lambda media: msgspec.json.encode(site.validator.render(request, media)),
        )

    def tokenize(body: bytes) -> bytes | AwaitsMedia[bytes]:
        request = parse_body(TokenizeRequest, body, site.limits)
        return with_media(
            site.validator.media_of(request.messages or ()),
            lambda media: msgspec.json.encode(site.validator.tokenize(request, media)),
        )

    def detokenize(body: bytes) -> bytes:
        request = parse_body(DetokenizeRequest, body, site.limits)
        return msgspec.json.encode(site.validator.detokenize(request))

    def generate(path: str, read: Callable[[bytes], Draft | AwaitsMedia[Draft]]) -> None:
        async def handler(exchange: Exchange) -> None:
            await site.generate(exchange, read, Answer)

        add_route(api, path, handler, "POST")

    def reply(path: str, read: Callable[[bytes], bytes | AwaitsMedia[bytes]]) -> None:
        async def handler(exchange: Exchange) -> None:
            await site.reply(exchange, read)

        add_route(api, path, handler, "POST")

    generate("/v1/chat/completions", chat)
    generate("/v1/completions", completions)
    reply("/v1/chat/completions/render", render)
    reply("/tokenize", tokenize)
    reply("/detokenize", detokenize)


def add_fact_routes(api: FastAPI, site: Site) -> None:
    """Routes that only tell how things are."""

    async def live(exchange: Exchange) -> None:
        await exchange.reply(_OK)

    async def health(exchange: Exchange) -> None:
        site.lifecycle.check_all_ready()
        await exchange.reply(_OK)

    async def version(exchange: Exchange) -> None:
        await exchange.reply(msgspec.json.encode({"version": site.version}))

    async def models(exchange: Exchange) -> None:
        cards = [_card(site, name) for name in site.served_names]
        await exchange.reply(msgspec.json.encode({"object": "list", "data": cards}))

    async def model(exchange: Exchange) -> None:
        name = exchange.path.removeprefix(MODEL_PREFIX)
        if name not in site.served_names:
            raise BadRequest(
                "There is no such model; GET /v1/models lists the names.",
                param="model",
                status=404,
                code="model_not_found",
            )
        await exchange.reply(msgspec.json.encode(_card(site, name)))

    async def metrics(exchange: Exchange) -> None:
        text = site.metrics.render() if site.scrape is None else await site.scrape()
        await exchange.reply(text, content_type=CONTENT_TYPE)

    async def openapi(exchange: Exchange) -> None:
        await exchange.reply(msgspec.json.encode(api.openapi()))

    add_route(api, "/live", live, "GET", "HEAD")
    for path in ("/ready", "/health", "/ping"):
        add_route(api, path, health, "GET", "HEAD")
    add_route(api, "/version", version, "GET")
    add_route(api, "/v1/models", models, "GET")
    add_route(api, MODEL_PREFIX + "{name:path}", model, "GET")
    add_route(api, "/metrics", metrics, "GET")
    add_route(api, "/openapi.json", openapi, "GET")


def _card(site: Site, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": site.created,
        "owned_by": "deltaserve",
        "root": site.model_root,
        "max_model_len": site.validator.max_model_len,
    }
