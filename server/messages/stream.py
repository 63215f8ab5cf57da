"""The chunks of one chat choice -> the events of one message.

    message_start  (content_block_start  content_block_delta*  content_block_stop)*
    message_delta  message_stop

A block ends when another begins or the message ends, so blocks never overlap and their indexes
count from 0. A thinking block ends with its signature: a digest of the text. It is there because
clients keep only signed blocks; nothing here is decided by it when it comes back.
"""

import base64
import hashlib
from typing import Any

import msgspec

CALL_PREFIX = "call_"
TOOL_USE_PREFIX = "toolu_"

Event = dict[str, Any]

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}
_encode = msgspec.json.Encoder().encode


def named(name: str, payload: bytes) -> bytes:
    """One server-sent event with a name; `payload` is JSON without line breaks."""
    return b"event: %s\ndata: %s\n\n" % (name.encode("ascii"), payload)


def encoded(event: Event) -> bytes:
    return named(event["type"], _encode(event))


class MessageEvents:
    """Makes the events; owns what is open. `usage` is that of a chat answer."""

    def __init__(self, message_id: str, model: str) -> None:
        self._message_id = message_id
        self._model = model
        self._num_blocks = 0
        self._open: str | None = None  # the type of the block that is not stopped yet
        self._digest = hashlib.sha256()  # of its thinking
        self._finish_reason: str | None = None
        self._matched: str | int | None = None

    def start(self, usage: dict[str, Any]) -> Event:
        message: dict[str, Any] = {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_json(usage),
        }
        return {"type": "message_start", "message": message}

    def push(self, chunk: dict[str, Any]) -> list[Event]:
        """The events of one `choices` entry of a chat chunk."""
        delta = chunk["delta"]
        events: list[Event] = []
        if "reasoning" in delta:
            text = delta["reasoning"]
            self._enter("thinking", {"thinking": "", "signature": ""}, events)
            self._digest.update(text.encode())
            events.append(self._delta({"type": "thinking_delta", "thinking": text}))
        if "content" in delta:
            self._enter("text", {"text": ""}, events)
            events.append(self._delta({"type": "text_delta", "text": delta["content"]}))
        for fragment in delta.get("tool_calls", ()):
            function = fragment["function"]
            if "id" in fragment:
                call_id = TOOL_USE_PREFIX + fragment["id"].removeprefix(CALL_PREFIX)
                self._start(
                    "tool_use", {"id": call_id, "name": function["name"], "input": {}}, events
                )
            if function["arguments"]:
                partial = {"type": "input_json_delta", "partial_json": function["arguments"]}
                events.append(self._delta(partial))
        self._finish_reason = chunk["finish_reason"]
        self._matched = chunk["stop_reason"]
        return events

    def end(self, usage: dict[str, Any]) -> list[Event]:
        """The closing events, once the chunk with the finish reason was pushed."""
        assert self._finish_reason is not None
        events: list[Event] = []
        self._stop(events)
        reason, matched = _STOP_REASONS[self._finish_reason], None
        if reason == "end_turn" and isinstance(self._matched, str):
            reason, matched = "stop_sequence", self._matched
        events.append(
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": matched},
                "usage": usage_json(usage),
            }
        )
        events.append({"type": "message_stop"})
        return events

    def _enter(self, kind: str, fields: dict[str, Any], events: list[Event]) -> None:
        if self._open != kind:
            self._start(kind, fields, events)

    def _start(self, kind: str, fields: dict[str, Any], events: list[Event]) -> None:
        self._stop(events)
        self._open = kind
        index = self._num_blocks
        self._num_blocks += 1
        block = {"type": kind, **fields}
        events.append({"type": "content_block_start", "index": index, "content_block": block})

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}

    def _stop(self, events: list[Event]) -> None:
        if self._open is None:
            return
        if self._open == "thinking":
            signature = base64.b64encode(self._digest.digest()).decode("ascii")
            self._digest = hashlib.sha256()
            events.append(self._delta({"type": "signature_delta", "signature": signature}))
        events.append({"type": "content_block_stop", "index": self._num_blocks - 1})
        self._open = None


def usage_json(usage: dict[str, Any]) -> dict[str, int]:
    """Usage as Anthropic counts it: what came out of the cache, or went into it, is not input.

    What went into it is told where the request has marks, and is input elsewhere.
    """
    num_cached = usage["prompt_tokens_details"]["cached_tokens"]
    num_saved = usage["prompt_tokens_details"].get("cache_write_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"] - num_cached - num_saved,
        "cache_creation_input_tokens": num_saved,
        "cache_read_input_tokens": num_cached,
        "output_tokens": usage["completion_tokens"],
    }
