"""One conversation to learn from, or to be asked about."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation in the messages of the chat API; the last one is the assistant's.

    What the assistant says is learnt, in every turn; all else is context. Whatever is thought, is
    thought after the last question.
    """

    task: str
    key: str  # two samples with the same key ask the same thing
    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    thinking: bool = False
    kinds: dict[str, int] = field(
        default_factory=dict[str, int]
    )  # by tool: the number of its domain

    @property
    def is_held_out(self) -> bool:
        """Never trained on: one key in twenty."""
        digest = hashlib.sha256(f"{self.task}:{self.key}".encode()).digest()
        return digest[0] < 13


Task = Callable[[random.Random], Sample]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, *, reasoning: str = "", calls: list[Message] | None = None) -> Message:
    message: Message = {"role": "assistant", "content": text, "reasoning_content": reasoning}
    return {**message, "tool_calls": calls} if calls else message


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def tool(text: str) -> Message:
    return {"role": "tool", "content": text}
