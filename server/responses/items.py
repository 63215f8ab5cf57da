"""The items of a response's output, as they grow and as they stand in the response.

An item's id is drawn when it starts, so events and the final object name it alike. `status` is
`in_progress` until the item ends: `completed`, or `incomplete` where the answer was cut in it.
"""

import uuid
from typing import Any, Literal

Status = Literal["in_progress", "completed", "incomplete"]


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


class OutputItem:
    """What the three kinds share: text that comes in pieces."""

    prefix: str

    def __init__(self, index: int) -> None:
        self.id = new_id(self.prefix)
        self.index = index  # in the output
        self.status: Status = "in_progress"
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def place(self) -> dict[str, Any]:
        """How the item's own events name it."""
        return {"item_id": self.id, "output_index": self.index}

    def add(self, text: str) -> None:
        self._pieces.append(text)

    def as_json(self) -> dict[str, Any]:
        raise NotImplementedError


class ReasoningOutput(OutputItem):
    prefix = "rs"

    def as_json(self) -> dict[str, Any]:
        text = self.text
        return {
            "id": self.id,
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": text}] if text else [],
            "status": self.status,
        }


class MessageOutput(OutputItem):
    """A message of one text part, which it has once its first text came."""

    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.logprobs: list[dict[str, Any]] = []  # empty unless they were asked for

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": self.status,
            "content": [self.part()] if self._pieces else [],
        }

    def part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": self.logprobs,
        }


class CallOutput(OutputItem):
    prefix = "fc"

    def __init__(self, index: int, call_id: str, name: str) -> None:
        super().__init__(index)
        self.call_id = call_id
        self.name = name

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.text,
        }
