"""Bans on (row, id) pairs: banned logits become -inf, in place.

Constraints of one request can contradict each other (only EOS allowed, but not yet). A constraint
that would leave a row with nothing to draw is not applied to that row: what was applied before it
wins, and no row ever consists of -inf alone.
"""

import torch

from kernels.backend import uses_triton


def ban(logits_RV: torch.Tensor, row_N: torch.Tensor, id_N: torch.Tensor) -> None:
    """Ban the pairs, which may repeat."""
    if uses_triton(logits_RV):
        from kernels.sampling import gpu

        return gpu.ban(logits_RV, row_N, id_N)
    before_N = logits_RV[row_N, id_N]
    logits_RV[row_N, id_N] = -torch.inf
    emptied_R = logits_RV.amax(dim=-1) == -torch.inf
    logits_RV[row_N, id_N] = before_N.masked_fill(~emptied_R[row_N], -torch.inf)


def keep_only(logits_RV: torch.Tensor, row_N: torch.Tensor, id_N: torch.Tensor) -> None:
    """In each row that occurs in the pairs, ban every id that does not."""
    if uses_triton(logits_RV):
        from kernels.sampling import gpu

        return gpu.keep_only(logits_RV, row_N, id_N)
    row_Q, place_N = row_N.unique(return_inverse=True)
    before_QV = logits_RV[row_Q]
    banned_QV = torch.ones_like(before_QV, dtype=torch.bool)
    banned_QV[place_N, id_N] = False
    kept_QV = before_QV.masked_fill(banned_QV, -torch.inf)
    emptied_Q1 = kept_QV.amax(dim=-1, keepdim=True) == -torch.inf
    logits_RV[row_Q] = torch.where(emptied_Q1, before_QV, kept_QV)
