"""The one order of a row's tokens: value falling, then id rising.

`torch.topk` leaves it open which of several equal values it returns, and what it picks depends on
k, which depends on the batch. Logits that were bf16 once tie often, so both functions here settle
ties by id.
"""

import torch

from kernels.backend import uses_triton


def top(value_RV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first min(k, V) values and ids of every row, in order."""
    if uses_triton(value_RV):
        from kernels.sampling import gpu

        return gpu.top(value_RV, k)
    if k >= value_RV.shape[-1]:
        value_RK, id_RK = value_RV.sort(dim=-1, descending=True, stable=True)
        return value_RK, id_RK
    value_RK, id_RK = value_RV.topk(k + 1)  # one more, to see whether the last one ties with it
    cut_ties_R = value_RK[:, k - 1] == value_RK[:, k]
    value_RK, id_RK = value_RK[:, :k], id_RK[:, :k].clone()
    for r in cut_ties_R.nonzero().flatten().tolist():
        last = value_RK[r, -1]
        tied_K = value_RK[r] == last
        lowest_ids = (value_RV[r] == last).nonzero().flatten()[: int(tied_K.sum())]
        id_RK[r, tied_K] = lowest_ids
    id_RK, order_RK = id_RK.sort(dim=-1)
    value_RK, by_value_RK = value_RK.gather(-1, order_RK).sort(dim=-1, descending=True, stable=True)
    return value_RK, id_RK.gather(-1, by_value_RK)


def rank(value_RV: torch.Tensor, token_R: torch.Tensor) -> torch.Tensor:
    """The place of each row's token in the order; the first is 1."""
    token_R1 = token_R[:, None]
    value_R1 = value_RV.gather(-1, token_R1)
    id_V = torch.arange(value_RV.shape[-1], device=value_RV.device)
    greater_R = (value_RV > value_R1).sum(dim=-1)
    tied_before_R = ((value_RV == value_R1) & (id_V < token_R1)).sum(dim=-1)
    return 1 + greater_R + tied_before_R
