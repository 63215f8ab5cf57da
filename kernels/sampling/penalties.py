"""Penalties on tokens that are there already, with the sign conventions of transformers and vLLM.

    repetition:          x > 0: x / penalty, else x * penalty, for every token seen
    presence, frequency: x - presence * (count > 0) - frequency * count

All logits are fp32 and changed in place.
"""

import torch


def penalise_repetition(
    logits_RV: torch.Tensor, seen_RV: torch.Tensor, penalty_R: torch.Tensor
) -> None:
    """`seen_RV` is boolean; a penalty of 1 leaves its row as it is."""
    penalty_R1 = penalty_R[:, None]
    penalised_RV = torch.where(logits_RV > 0, logits_RV / penalty_R1, logits_RV * penalty_R1)
    logits_RV.copy_(torch.where(seen_RV, penalised_RV, logits_RV))


def penalise_presence_frequency(
    logits_RV: torch.Tensor,
    count_RV: torch.Tensor,
    presence_R: torch.Tensor,
    frequency_R: torch.Tensor,
) -> None:
    """`count_RV` says how often each token was generated; penalties of 0 change nothing."""
    logits_RV -= frequency_R[:, None] * count_RV
    logits_RV -= presence_R[:, None] * (count_RV > 0)
