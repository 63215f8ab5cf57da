"""What DRY remembers of one sequence: its last tokens, their matches, and the last breaker.

The rule is `kernels.sampling.dry`'s. Tokens are read where they are, on the device; the host only
counts them. A breaker is a token sequence: of one token (most are), or of a few.

llama.cpp looks for the last breaker from the end of the window: the latest token that begins one
counts, with its longest tail that is there by now. So of two breakers that end together the one
that begins later wins, and one that begins where the last one did replaces it.

Letters: C capacity, B breakers of several tokens, L tokens of the longest of those, V vocabulary.
"""

import numpy as np
import torch

from engine.request import SamplingParams
from engine.runner.device import Device
from kernels.sampling import advance_matches, penalise_repeats, suffix_matches

_ANY = -1  # before the start of a shorter breaker
_NOTHING = -2  # before the start of a shorter sequence
_NOWHERE = -(1 << 40)  # where the last breaker begins when there was none
_SPARE = 256


class Dry:
    def __init__(
        self,
        sampling: SamplingParams,
        ids: tuple[int, ...],
        *,
        num_real_tokens: int,
        device: Device,
    ) -> None:
        """`sampling.dry_last_n` is not 0; `ids`: the sequence so far."""
        self._multiplier = sampling.dry_multiplier
        self._base = sampling.dry_base
        self._allowed_length = sampling.dry_allowed_length
        self._window = sampling.dry_last_n if sampling.dry_last_n > 0 else None
        self._num = len(ids)  # tokens of the sequence
        tail = ids if self._window is None else ids[-self._window :]
        self._begin, self._end = 0, len(tail)  # of the window in the tensors
        at = device.torch_device
        self._id_C = torch.empty(len(tail) + _SPARE, dtype=torch.int32, device=at)
        self._match_C = torch.empty_like(self._id_C)
        self._id_C[: self._end] = device.upload(np.array(tail, dtype=np.int32))
        self._match_C[: self._end] = device.upload(np.array(suffix_matches(tail), dtype=np.int32))
        self._breaks_V: torch.Tensor | None = None
        self._breaker_BL: torch.Tensor | None = None
        single = [i for i in sampling.dry_breaker_ids if i < num_real_tokens]
        several = [
            b for b in sampling.dry_breakers if self._window is None or len(b) <= self._window
        ]
        if single or several:
            breaks_V = np.zeros(num_real_tokens, dtype=np.bool_)
            breaks_V[single] = True
            self._breaks_V = device.upload(breaks_V)
        if several:
            length = max(map(len, several))
            padded = [(_ANY,) * (length - len(b)) + b for b in several]
            self._breaker_BL = device.upload(np.array(padded, dtype=np.int32))
            begins_at = np.array([len(b) for b in several], dtype=np.int64)
            self._begins_at_B = device.upload(begins_at)
        begin, end = _last_break(tail, frozenset(single), several)
        offset = self._num - len(tail)
        self._break_begin = torch.full((), begin + offset, device=at)
        self._break_end = torch.full((), end + offset, device=at)

    def append(self, token_1: torch.Tensor) -> None:
        if self._end == len(self._id_C):
            self._make_room()
        self._id_C[self._end : self._end + 1] = token_1
        self._end += 1
        self._num += 1
        window = slice(self._begin, self._end)
        advance_matches(self._match_C[window], self._id_C[window])
        if self._window is not None and self._end - self._begin > self._window:
            self._begin += 1
        if self._breaks_V is not None:
            self._note_break(self._breaks_V, token_1)

    def penalise(self, logits_V: torch.Tensor) -> None:
        window = slice(self._begin, self._end)
        num = self._end - self._begin
        since_break = torch.full_like(self._break_end, num)
        if self._breaks_V is not None:
            inside = self._break_begin >= self._num - num
            since_break = torch.where(inside, self._num - self._break_end, num)
        penalise_repeats(
            logits_V,
            self._id_C[window],
            self._match_C[window],
            since_break,
            multiplier=self._multiplier,
            base=self._base,
            allowed_length=self._allowed_length,
            breaks_V=self._breaks_V,
        )

    def _make_room(self) -> None:
        """Move the window to the front of tensors with room for as much again."""
        window = slice(self._begin, self._end)
        self._id_C = _with_room(self._id_C[window])
        self._match_C = _with_room(self._match_C[window])
        self._begin, self._end = 0, self._end - self._begin

    def _note_break(self, breaks_V: torch.Tensor, token_1: torch.Tensor) -> None:
        begin = torch.where(breaks_V[token_1][0], self._num - 1, _NOWHERE)
        if self._breaker_BL is not None:
            length = self._breaker_BL.shape[1]
            tail_L = self._id_C[max(self._begin, self._end - length) : self._end]
            missing = length - len(tail_L)
            tail_L = torch.nn.functional.pad(tail_L, (missing, 0), value=_NOTHING)
            fits_BL = (self._breaker_BL == tail_L) | (self._breaker_BL == _ANY)
            begin_B = torch.where(fits_BL.all(-1), self._num - self._begins_at_B, _NOWHERE)
            begin = torch.maximum(begin, begin_B.amax())
        newer = (begin >= self._break_begin) & (begin > _NOWHERE)
        self._break_begin = torch.where(newer, begin, self._break_begin)
        self._break_end = torch.where(newer, self._num, self._break_end)


def _with_room(value_T: torch.Tensor) -> torch.Tensor:
    value_C = value_T.new_empty(2 * len(value_T) + _SPARE)
    value_C[: len(value_T)] = value_T
    return value_C


def _last_break(
    ids: tuple[int, ...], single: frozenset[int], several: list[tuple[int, ...]]
) -> tuple[int, int]:
    """Where the last breaker in `ids` begins and ends."""
    by_head: dict[int, list[tuple[int, ...]]] = {}
    for breaker in several:
        by_head.setdefault(breaker[0], []).append(breaker)
    for begin in range(len(ids) - 1, -1, -1):
        lengths = [len(b) for b in by_head.get(ids[begin], ()) if ids[begin : begin + len(b)] == b]
        if ids[begin] in single:
            lengths.append(1)
        if lengths:
            return begin, begin + max(lengths)
    return _NOWHERE, _NOWHERE
