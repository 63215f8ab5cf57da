"""Runs one response: chat's way from the engine to chunks, with this API's way of writing them."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from engine import EngineClient
from server.answer import Answer
from server.exchange import Exchange
from server.metrics import Metrics
from server.responses.read import ResponseDraft
from server.responses.store import StoredItem, StoredResponse, off_loop
from server.responses.stream import Event, ResponseEvents, encoded
from server.valid import StreamOptions

_encode = msgspec.json.Encoder().encode


class ResponseAnswer(Answer):
    """Answers a draft; what ended is stored before the client is told, so that it can go on."""

    def __init__(
        self,
        draft: ResponseDraft,
        exchange: Exchange,
        engine: EngineClient,
        metrics: Metrics,
        *,
        arrived: float,
    ) -> None:
        super().__init__(draft.draft, exchange, engine, metrics, arrived=arrived)
        self._response_draft = draft
        self._events = ResponseEvents(self._head["id"], self._head["created"], draft.fields)
        exchange.error_events = lambda error: encoded(self._events.fail(error))

    async def _send_whole(self, chunks: AsyncGenerator[list[dict[str, Any]], None]) -> None:
        async for step in chunks:
            for chunk in step:
                self._events.push(chunk)
        self._events.close(self._usage_json(), self._timing_fields())
        body = _encode(self._events.response())
        await self._keep(body)
        await self._exchange.reply(body)

    async def _send_stream(
        self, chunks: AsyncGenerator[list[dict[str, Any]], None], options: StreamOptions
    ) -> None:
        exchange = self._exchange
        async for step in chunks:
            events: list[Event] = []
            if not exchange.streaming:
                await exchange.start_stream()
                events += self._events.open()
            for chunk in step:
                events += self._events.push(chunk)
            if events:
                await exchange.send_events(encoded(events))
        events = self._events.close(self._usage_json(), self._timing_fields())
        await self._keep(_encode(self._events.response()))
        await exchange.send_events(encoded(events), last=True)

    def _usage_json(self) -> dict[str, Any]:
        usage = self._usage.as_json()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        }

    async def _keep(self, body: bytes) -> None:
        draft = self._response_draft
        if draft.store is None:
            return
        items = (StoredItem(item.id, _encode(item.as_json())) for item in self._events.items)
        response = StoredResponse(
            self._head["id"],
            draft.owner,
            body=body,
            input_items=draft.input_items,
            output_items=tuple(items),
            previous=draft.previous,
        )
        await off_loop(draft.store, draft.store.add, response)
