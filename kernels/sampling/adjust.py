"""What changes a row's logits before anything is banned or drawn, all in one pass over the batch.

In this order: repetition, then frequency and presence penalties by what was seen (`penalties.py`),
a grammar's mask (`bitmask.py`), a bias on single ids. A row that has none of them is left alone.

R rows, V vocabulary, K tallies, Q masks of W words, N biased ids.
"""

from dataclasses import dataclass

import torch

from kernels.backend import uses_triton
from kernels.sampling.bitmask import keep_only_set_bits
from kernels.sampling.penalties import penalise_presence_frequency, penalise_repetition

NOTHING = -1  # the place of a row that has no tally, or no mask


@dataclass(frozen=True, slots=True)
class Penalties:
    """A tally holds twice the times each token was generated, plus 1 if the prompt has it."""

    tally_KV: torch.Tensor  # int32
    place_R: torch.Tensor  # int64: which tally, or NOTHING
    repetition_R: torch.Tensor
    presence_R: torch.Tensor
    frequency_R: torch.Tensor


@dataclass(frozen=True, slots=True)
class Masks:
    mask_QW: torch.Tensor  # int32
    place_R: torch.Tensor  # int64: which mask, or NOTHING


@dataclass(frozen=True, slots=True)
class Bias:
    offset_R1: torch.Tensor  # int64: the ids of row r are offset[r] .. offset[r + 1]
    id_N: torch.Tensor  # int64, distinct within a row
    bias_N: torch.Tensor  # fp32


def adjust(
    logits_RV: torch.Tensor,
    *,
    penalties: Penalties | None = None,
    masks: Masks | None = None,
    bias: Bias | None = None,
) -> None:
    """Change fp32 logits in place. None: no row has any."""
    if uses_triton(logits_RV):
        from kernels.sampling import gpu

        return gpu.adjust(logits_RV, penalties=penalties, masks=masks, bias=bias)
    if penalties is not None:
        _penalise(logits_RV, penalties)
    if masks is not None:
        row_Q = (masks.place_R != NOTHING).nonzero()[:, 0]
        keep_only_set_bits(logits_RV, row_Q, masks.mask_QW[masks.place_R[row_Q]])
    if bias is not None:
        row_R = torch.arange(len(logits_RV), device=logits_RV.device)
        row_N = row_R.repeat_interleave(bias.offset_R1.diff())
        logits_RV[row_N, bias.id_N] += bias.bias_N


def _penalise(logits_RV: torch.Tensor, penalties: Penalties) -> None:
    row_Q = (penalties.place_R != NOTHING).nonzero()[:, 0]
    part_QV = logits_RV[row_Q]
    tally_QV = penalties.tally_KV[penalties.place_R[row_Q]]
    dtype = logits_RV.dtype
    penalise_repetition(part_QV, tally_QV != 0, penalties.repetition_R[row_Q].to(dtype))
    penalise_presence_frequency(
        part_QV,
        tally_QV >> 1,
        penalties.presence_R[row_Q].to(dtype),
        penalties.frequency_R[row_Q].to(dtype),
    )
    logits_RV[row_Q] = part_QV
