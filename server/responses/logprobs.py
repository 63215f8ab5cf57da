"""Logprobs of a response: those of its messages' text, and nothing else.

Reasoning, markup and blanks that are no part of a message have none. A token whose text the parser
holds back waits until it is known what it was.
"""

from collections.abc import Sequence
from typing import Any

from server.chat import ChatChoice
from server.generate import TokenInText
from server.parse import Content
from server.tokenizer import Tokenizer
from server.valid import ValidChat


class MessageLogprobs(ChatChoice):
    """A chat choice whose `content` deltas come with the `logprobs` of their tokens."""

    def __init__(self, valid: ValidChat, tokenizer: Tokenizer) -> None:
        super().__init__(0, valid, tokenizer)
        self._held: list[TokenInText] = []

    def _note_tokens(self, tokens: Sequence[TokenInText], was_reasoning: bool) -> None:
        if not was_reasoning:
            self._held += tokens

    def _merge(self, events: Sequence[Any], steps: list[dict[str, Any]]) -> None:
        super()._merge(events, steps)
        text = "".join(event.text for event in events if isinstance(event, Content)).encode()
        if text:
            step = next(step for step in reversed(steps) if "content" in step)
            logprobs = self._logprobs_json(self._held[self._start_of(text) :])
            step["logprobs"] = [*step.get("logprobs", ()), *logprobs]
        if events:
            self._held = []

    def _start_of(self, text: bytes) -> int:
        """The first of the held tokens that `text` was read from.

        Before it are tokens that the parser dropped, behind it some whose text it may still hold.
        Where no token begins with the text (half of one was dropped, or the bytes were no
        characters), the last tokens that are as long.
        """
        pieces = [self._tokenizer.token_bytes(token.id) for token in self._held]
        for start in range(len(pieces)):
            if b"".join(pieces[start:]).startswith(text):
                return start
        start, num_bytes = len(pieces), 0
        while start and num_bytes < len(text):
            start -= 1
            num_bytes += len(pieces[start])
        return start
