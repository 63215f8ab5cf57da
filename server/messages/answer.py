"""A chat answer, run as any other, and sent as a message or as the events of one."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from server.answer import Answer
from server.messages.message import WholeMessage
from server.messages.stream import MessageEvents, encoded
from server.valid import StreamOptions


class MessageAnswer(Answer):
    """Runs a draft with one chat choice."""

    async def _send_whole(self, chunks: AsyncGenerator[list[dict[str, Any]], None]) -> None:
        events = self._events()
        whole = WholeMessage()
        whole.fold(events.start(self._usage.as_json()))
        async for step in chunks:
            for chunk in step:
                for event in events.push(chunk):
                    whole.fold(event)
        for event in events.end(self._usage.as_json()):
            whole.fold(event)
        await self._exchange.reply(msgspec.json.encode(whole.as_json()))

    async def _send_stream(
        self, chunks: AsyncGenerator[list[dict[str, Any]], None], options: StreamOptions
    ) -> None:
        exchange = self._exchange
        events = self._events()
        async for step in chunks:
            sent = b"".join(encoded(event) for chunk in step for event in events.push(chunk))
            if not exchange.streaming:
                await exchange.start_stream()
                sent = encoded(events.start(self._usage.as_json())) + sent
            if sent:
                await exchange.send_events(sent)
        closing = b"".join(map(encoded, events.end(self._usage.as_json())))
        await exchange.send_events(closing, last=True)

    def _events(self) -> MessageEvents:
        return MessageEvents(self._head["id"], self._head["model"])
