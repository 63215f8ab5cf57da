"""The thinking budget of one sequence: once it is spent, the end is forced.

`budget` tokens may be generated before the end. If none of them ended the thinking, the next token
does. Who parses the answer reads text, so what ends the thinking is read as text here as well: by
an automaton over the bytes of the tokens, whichever tokens spell a tag. Its table has a row for
each state and a column for each token, and lies on the device: no step waits to know the token that
the last one sampled.

A call inside the thinking ends it, too. The parser knows a call by its second tag, so nothing is
forced while that may be coming; where it does not come, the first tag was text.

A grammar that covers the thinking, too, may not allow the end there: in the midst of a call that
other tokens spell. Then the end comes at the first position where it is allowed.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from engine.runner.device import Device

_SPACES = b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"
_NO_NAME = _SPACES + b"<>"  # what ends a name: `>`, or it was none
_ENDS_NAME = re.compile(b"[%s]" % _NO_NAME).search
_PATIENCE = 1  # whitespace between the two tags of a call, until the end is forced all the same


class _State(NamedTuple):
    tag: bytes  # that has begun
    num_spaces: int | None = None  # since the first tag of a call; None: there was none


_THINKING = _State(b"")
_ENDED = _State(b"ended")  # no tag begins so


class ThinkingEnds:
    """The automaton that tells, token by token, whether thinking has ended.

    Letters: S states, V tokens.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        end_id: int,
        call_tags: tuple[str, str] | None,
        *,
        num_real_tokens: int,
        device: Device,
    ) -> None:
        """`token_bytes[i]` is what token i writes, nothing for control tokens and missing ones.

        Token `end_id` ends thinking. `call_tags` are the two that open a call, the second of which
        a name follows; None: calls are not read.
        """
        self.end_id = end_id
        self._end = token_bytes[end_id] if end_id < len(token_bytes) else b""
        self._call_tags = tuple(tag.encode() for tag in call_tags or ())
        self._named = _State(b"".join(self._call_tags[1:]) + b"x", 0)
        after = self._reachable()
        states = list(after)
        number = {state: s for s, state in enumerate(states)}
        self._next_SB = [[number[state] for state in after_B] for after_B in after.values()]
        self._thinking, self._ended = number[_THINKING], number[_ENDED]
        self._next_SV = self._table(states, [*token_bytes[:num_real_tokens]], num_real_tokens)
        self._next_SV[:, end_id] = self._ended
        self.num_tokens = num_real_tokens
        self.next_N = device.upload(self._next_SV.reshape(-1))
        self.may_end_S = device.upload(np.array([self._may_end(state) for state in states]))

    def has_ended(self, state: int) -> bool:
        return state == self._ended

    def state_after(self, token_ids: Sequence[int]) -> int:
        state = self._thinking
        for token_id in token_ids:
            state = int(self._next_SV[state, token_id])
        return state

    def _after(self, state: _State, byte: int) -> _State:
        if state == _ENDED:
            return state
        tags = (self._end, *self._call_tags[: 1 if state.num_spaces is None else 2])
        if self._call_tags and state.tag.startswith(self._call_tags[1]):
            if byte not in _NO_NAME:
                return self._named
            if state == self._named and byte == ord(">"):
                return _ENDED
            state = _THINKING
        text = state.tag + bytes([byte])
        if text == self._end:
            return _ENDED
        if text in self._call_tags[:1]:
            return _State(b"", 0 if state.num_spaces is None else _PATIENCE + 1)
        if any(tag.startswith(text) for tag in tags):
            return _State(text, self._num_spaces(state, text))
        if state.num_spaces is not None and not state.tag and byte in _SPACES:
            return _State(b"", min(state.num_spaces, _PATIENCE) + 1)
        return _THINKING if not state.tag else self._after(_THINKING, byte)

    def _num_spaces(self, state: _State, begun: bytes) -> int | None:
        """What is worth knowing of it once more of a tag than its `<` has `begun`."""
        if state.num_spaces is None or len(begun) == 1:
            return state.num_spaces
        first, second = self._call_tags
        return 0 if second.startswith(begun) else _PATIENCE + 1 if first.startswith(begun) else None

    def _may_end(self, state: _State) -> bool:
        """Whether to force the end here, rather than to wait for what may end it by itself."""
        if state in (_ENDED, self._named):
            return False
        if state.num_spaces is None or state.num_spaces > _PATIENCE:
            return True
        return not self._call_tags[1].startswith(state.tag)

    def _reachable(self) -> dict[_State, list[_State]]:
        """The states there are, and what each byte leads to from them."""
        telling = sorted({*self._end, *b"".join(self._call_tags), *_NO_NAME})
        other = next(byte for byte in range(256) if byte not in telling)  # stands for all of those
        reachable: dict[_State, list[_State]] = {}
        found = {_THINKING, _ENDED}
        while found:
            state = found.pop()
            after_B = [self._after(state, other)] * 256
            for byte in telling:
                after_B[byte] = self._after(state, byte)
            reachable[state] = after_B
            found |= set(after_B) - reachable.keys()
        return reachable

    def _table(
        self, states: list[_State], token_bytes: list[bytes], num_tokens: int
    ) -> npt.NDArray[np.int8]:
        """What each token leads to from each state, walking only where one byte does not tell."""
        token_bytes += [b""] * (num_tokens - len(token_bytes))
        next_SV = np.zeros((len(self._next_SB), num_tokens), dtype=np.int8)
        first_V = np.array([text[0] if text else 0 for text in token_bytes], dtype=np.int64)
        empty_V = np.array([not text for text in token_bytes], dtype=np.bool_)
        named_V = np.array([not _ENDS_NAME(text) for text in token_bytes], dtype=np.bool_)
        blank_V = np.array([not text.strip(_SPACES) for text in token_bytes], dtype=np.bool_)
        plain_V = np.array([b"<" not in text for text in token_bytes], dtype=np.bool_)
        for s, (state, next_B) in enumerate(zip(states, self._next_SB, strict=True)):
            next_SV[s] = np.array(next_B, dtype=np.int8)[first_V]
            next_SV[s, empty_V] = s
            if not state.tag:
                next_SV[s, plain_V & ~blank_V] = self._thinking
            told_V = (next_SV[s] == self._ended) | (plain_V & (next_SV[s] == self._thinking))
            if state.tag and self._named.tag.startswith(state.tag) and next_B[0] != self._thinking:
                next_SV[s, named_V & ~empty_V] = next_B[0]  # byte 0 stands for all of a name
                told_V |= named_V
            for v in np.flatnonzero(~told_V & ~empty_V).tolist():
                next_SV[s, v] = self._walk(s, token_bytes[v])
        return next_SV

    def _walk(self, state: int, text: bytes) -> int:
        for byte in text:
            state = self._next_SB[state][byte]
        return state


class ThinkingBudget:
    def __init__(
        self, budget: int, ends: ThinkingEnds, output_ids: Sequence[int], device: Device
    ) -> None:
        self._budget = budget
        self._ends = ends
        self._state_1 = device.upload(np.array([ends.state_after(output_ids)], dtype=np.int64))

    def append(self, token_1: torch.Tensor) -> None:
        cell_1 = self._state_1 * self._ends.num_tokens + token_1
        self._state_1 = self._ends.next_N[cell_1].long()

    def is_due(self, num_output_tokens: int) -> bool:
        """Whether the end may have to come now."""
        return num_output_tokens >= self._budget

    def comes(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Whether the end has to come [1, bool], of logits that only a grammar has masked."""
        return self._ends.may_end_S[self._state_1] & (logits_V[self._ends.end_id] > -torch.inf)

    def force(self, logits_V: torch.Tensor, comes: torch.Tensor) -> None:
        """Leave nothing but the end, if it comes."""
        forced_V = torch.full_like(logits_V, -torch.inf)
        forced_V[self._ends.end_id] = 0
        logits_V.copy_(torch.where(comes, forced_V, logits_V))
