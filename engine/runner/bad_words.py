"""The bad words of one sequence, matched against its last tokens where these are: on the device.

Letters: W words, L = tokens of the longest word, less its last one.
"""

import torch


class BadWords:
    """Knows which tokens would complete a word now. A word may begin in the prompt."""

    def __init__(
        self, words: tuple[tuple[int, ...], ...], ids: tuple[int, ...], device: torch.device
    ) -> None:
        """`words`: not empty, nor is any of them. `ids`: the sequence so far."""
        length = max(len(word) for word in words) - 1
        prefixes = [(_ANY,) * (length + 1 - len(word)) + word[:-1] for word in words]
        tail = ids[len(ids) - min(length, len(ids)) :]
        self._prefix_WL = torch.tensor(prefixes, dtype=torch.int64, device=device)
        self._final_W = torch.tensor([word[-1] for word in words], device=device)
        self._tail_L = torch.tensor(
            (_NOTHING,) * (length - len(tail)) + tail, dtype=torch.int64, device=device
        )

    def append(self, token_1: torch.Tensor) -> None:
        if len(self._tail_L):
            self._tail_L = torch.cat((self._tail_L[1:], token_1))

    def completions(self) -> torch.Tensor:
        """The ids that must not come next; may be empty, may repeat."""
        fits_WL = (self._prefix_WL == self._tail_L) | (self._prefix_WL == _ANY)
        return self._final_W[fits_WL.all(dim=-1)]


_ANY = -1  # before the start of a shorter word
_NOTHING = -2  # before the start of a shorter sequence
