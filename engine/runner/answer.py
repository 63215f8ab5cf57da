"""What a step has computed, and how it becomes a `StepResult`.

Tokens and log-probabilities stay on the device while the step is queued: the next one needs the
tokens there, and reading any of them would hold the host until the model is done. When all of the
step is queued, what the host asked for is copied out in one go, and read when it has arrived.

Letters: R rows, K the most likely tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from engine.plan import StepResult
from engine.request import TokenLogprobs
from engine.runner.device import CopyOut, Device


@dataclass(frozen=True, slots=True)
class Scores:
    """What each row says of one token, and its most likely ones. Each has its own K, or none."""

    logprob_R: torch.Tensor
    rank_R: torch.Tensor
    top: tuple[torch.Tensor, torch.Tensor] | None  # values and ids, as wide as the widest K
    num_top: list[int]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.logprob_R, self.rank_R, *(self.top or ()))

    def read(self, host: Iterator[torch.Tensor]) -> list[TokenLogprobs]:
        """`host` yields the tensors as they came out of the device."""
        own_R: list[float] = next(host).tolist()
        rank_R: list[int] = next(host).tolist()
        tops: list[tuple[tuple[int, float], ...]] = [()] * len(self.num_top)
        if self.top is not None:
            values_RK: list[list[float]] = next(host).tolist()
            ids_RK: list[list[int]] = next(host).tolist()
            tops = [
                tuple(zip(ids[:k], values[:k], strict=True))
                for ids, values, k in zip(ids_RK, values_RK, self.num_top, strict=True)
            ]
        return [TokenLogprobs(*parts) for parts in zip(own_R, rank_R, tops, strict=True)]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token for each of some rows, and scores of the rows that report them."""

    token_R: torch.Tensor
    scores: tuple[tuple[list[int], Scores], ...]  # with the rows they are of

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.token_R, *(tensor for _, scores in self.scores for tensor in scores.tensors))

    def read(self, host: Iterator[torch.Tensor]) -> tuple[list[int], list[TokenLogprobs | None]]:
        tokens: list[int] = next(host).tolist()
        entries: list[TokenLogprobs | None] = [None] * len(tokens)
        for rows, scores in self.scores:
            for row, entry in zip(rows, scores.read(host), strict=True):
                entries[row] = entry
        return tokens, entries


class Answer:
    """A step's results on their way to the host."""

    def __init__(
        self,
        device: Device,
        drawn: Sequence[Drawn],
        prompt_scores: Sequence[Sequence[Scores]],
        failed: Sequence[str],
        unencoded: Sequence[str],
    ) -> None:
        """`prompt_scores`: the pieces of each slice that scores its prompt."""
        self._drawn = drawn
        self._prompt_scores = prompt_scores
        self._failed = tuple(failed)
        self._unencoded = tuple(unencoded)
        parts: list[Drawn | Scores] = [
            *drawn,
            *(piece for pieces in prompt_scores for piece in pieces),
        ]
        self._copy: CopyOut = device.copy_out([t for part in parts for t in part.tensors])

        self._result: StepResult | None = None

    @property
    def has_arrived(self) -> bool:
        return self._copy.done.is_done()

    def result(self, timeout_s: float | None = None) -> StepResult:
        """Wait for the device and read. Raises TimeoutError after `timeout_s`."""
        if self._result is None:
            self._copy.done.wait(timeout_s)
            self._result = self._read(iter(self._copy.tensors))
        return self._result

    def _read(self, host: Iterator[torch.Tensor]) -> StepResult:
        tokens: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        for drawn in self._drawn:
            drawn_tokens, entries = drawn.read(host)
            tokens += drawn_tokens
            logprobs += entries
        prompt = tuple(
            tuple(entry for piece in pieces for entry in piece.read(host))
            for pieces in self._prompt_scores
        )
        return StepResult(tuple(tokens), tuple(logprobs), prompt, self._failed, self._unencoded)
