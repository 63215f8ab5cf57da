"""`sample` and `score` on the CPU, from lists to lists, where copies are not the subject."""

from collections.abc import Iterator

import torch

from engine.request import TokenLogprobs
from engine.runner import sampler
from engine.runner.batch import SampledRows
from engine.runner.rows import Rows
from engine.runner.sampler import Masks


def sample(
    rows: Rows,
    logits_RV: torch.Tensor,
    slots: list[int],
    positions: list[int],
    masks: Masks | None = None,
) -> tuple[list[int], list[TokenLogprobs | None]]:
    slot_R, position_R = torch.tensor(slots), torch.tensor(positions)
    sampled = SampledRows(slots, positions, slot_R, position_R, torch.arange(len(slots)))
    drawn = sampler.sample(rows, logits_RV, sampled, masks)
    return drawn.read(iter(drawn.tensors))


def score(
    rows: Rows, logits_RV: torch.Tensor, token_R: torch.Tensor, num_top: list[int]
) -> list[TokenLogprobs]:
    pieces = sampler.score(rows, logits_RV, token_R, num_top)
    host: Iterator[torch.Tensor] = iter([t for piece in pieces for t in piece.tensors])
    return [entry for piece in pieces for entry in piece.read(host)]
