"""The bad words of one sequence, matched against its last tokens where these are: on the device.

How many words fit is known there only, so a step that has bad words waits for the device once for
each such row.

Letters: W words, L = tokens of the longest word, less its last one.
"""

import numpy as np
import torch

from engine.runner.device import Device


class BadWords:
    """Knows which tokens would complete a word now. A word may begin in the prompt."""

    def __init__(
        self, words: tuple[tuple[int, ...], ...], ids: tuple[int, ...], device: Device
    ) -> None:
        """`words`: not empty, nor is any of them. `ids`: the sequence so far."""
        length = max(len(word) for word in words) - 1
        prefixes = [(_ANY,) * (length + 1 - len(word)) + word[:-1] for word in words]
        tail = ids[len(ids) - min(length, len(ids)) :]
        padded_tail = (_NOTHING,) * (length - len(tail)) + tail
        self._prefix_WL = device.upload(np.array(prefixes, dtype=np.int64))
        self._final_W = device.upload(np.array([word[-1] for word in words], dtype=np.int64))
        self._tail_L = device.upload(np.array(padded_tail, dtype=np.int64))

    def append(self, token_1: torch.Tensor) -> None:
        if len(self._tail_L):
            self._tail_L = torch.cat((self._tail_L[1:], token_1))

    def completions(self) -> torch.Tensor:
        """The ids that must not come next; may be empty, may repeat."""
        fits_WL = (self._prefix_WL == self._tail_L) | (self._prefix_WL == _ANY)
        return self._final_W[fits_WL.all(dim=-1)]


_ANY = -1  # before the start of a shorter word
_NOTHING = -2  # before the start of a shorter sequence
