"""The events of one message, folded into the message that is answered whole."""

import json
from typing import Any

import msgspec
from pydantic_core import from_json

from server.messages.stream import Event


class WholeMessage:
    """Takes every event of a message, in order; then `as_json` is the message."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: list[dict[str, Any]] = []
        self._pieces: list[str] = []  # of the block that is not stopped yet
        self._signature = ""

    def fold(self, event: Event) -> None:
        match event["type"]:
            case "message_start":
                self._message = dict(event["message"])
            case "content_block_start":
                self._blocks.append(dict(event["content_block"]))
                self._pieces = []
            case "content_block_delta":
                self._fold_delta(event["delta"])
            case "content_block_stop":
                self._stop_block()
            case "message_delta":
                self._message |= event["delta"]
                self._message["usage"] = event["usage"]
            case _:
                pass

    def as_json(self) -> dict[str, Any]:
        return {**self._message, "content": self._blocks}

    def _fold_delta(self, delta: dict[str, Any]) -> None:
        match delta["type"]:
            case "text_delta":
                self._pieces.append(delta["text"])
            case "thinking_delta":
                self._pieces.append(delta["thinking"])
            case "input_json_delta":
                self._pieces.append(delta["partial_json"])
            case _:
                self._signature = delta["signature"]

    def _stop_block(self) -> None:
        block = self._blocks[-1]
        text = "".join(self._pieces)
        match block["type"]:
            case "text":
                block["text"] = text
            case "thinking":
                block["thinking"] = text
                block["signature"] = self._signature
            case _:
                block["input"] = input_json(text)


def input_json(arguments: str) -> msgspec.Raw:
    """The `input` of a call as JSON, digit by digit as it was streamed.

    Of arguments that the token limit cut, the pairs that are complete: what Anthropic's SDK makes
    of the same stream. Half a value is dropped, for it would look like a whole one.
    """
    text = arguments.encode()
    try:
        return msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        pass
    try:
        return msgspec.Raw(json.dumps(from_json(text, allow_partial=True)).encode())
    except ValueError:  # nothing yet, or an integer of more than 4300 digits
        return msgspec.Raw(b"{}")
