"""Grammar masks: int32 words in which id i is bit i % 32 of word i // 32, applied to logits.

A grammar always leaves an id to draw, and comes before every other constraint of its row. Those are
not applied where they would leave nothing, so what a grammar bans stays banned.

Q rows that have a mask, W words of a mask, at least V / 32 of them. The bits of a byte are looked
up eight at a time, as 0 or -inf to add: 0.09 ms for a row of 248,077 fp32 logits on one core of a
2-core cloud CPU, against 1.0 ms for unpacking the bits and `masked_fill_`.
"""

import torch

_ADDEND_256x8 = torch.where(
    (torch.arange(256)[:, None] >> torch.arange(8) & 1).bool(), 0, -torch.inf
)


def keep_only_set_bits(logits_RV: torch.Tensor, row_Q: torch.Tensor, mask_QW: torch.Tensor) -> None:
    """In the rows `row_Q`, which are distinct, ban every id whose bit is 0. In place."""
    V = logits_RV.shape[-1]
    if mask_QW.dtype != torch.int32 or mask_QW.shape[0] != len(row_Q) or 32 * mask_QW.shape[1] < V:
        raise ValueError(f"{mask_QW.shape=} {mask_QW.dtype=} does not fit {logits_RV.shape=}")
    table = _ADDEND_256x8.to(device=logits_RV.device, dtype=logits_RV.dtype)
    byte_N = mask_QW.contiguous().view(torch.uint8).flatten().int()
    addend_QV = table.index_select(0, byte_N).view(len(row_Q), -1)[:, :V]
    if len(row_Q) == len(logits_RV) == 1:
        logits_RV += addend_QV
    else:
        logits_RV.index_add_(0, row_Q, addend_QV)
