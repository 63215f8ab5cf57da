"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A random number is a pure function of (key, counter): no state to keep, to seed or to reorder, so
a row draws the same number in any batch, and again after a preemption. Words are uint32 held in
int64 tensors. A product of two words may overflow int64, which wraps: its bits are still those of
the unsigned product, and the mask after the shift drops what the sign smeared.
"""

import torch

from kernels.backend import uses_triton

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox4x32(counter_R4: torch.Tensor, key_R2: torch.Tensor) -> torch.Tensor:
    """Ten rounds: four random words per row."""
    multiplier_2 = torch.tensor(_MULTIPLIERS, device=key_R2.device)
    weyl_2 = torch.tensor(_WEYL, device=key_R2.device)
    even_R2, odd_R2 = counter_R4[:, ::2], counter_R4[:, 1::2]
    for _ in range(10):
        product_R2 = even_R2 * multiplier_2
        even_R2 = ((product_R2 >> 32).flip(-1) ^ odd_R2 ^ key_R2) & _WORD
        odd_R2 = (product_R2 & _WORD).flip(-1)
        key_R2 = key_R2 + weyl_2  # its overflow into the high half falls to the mask above
    return torch.stack((even_R2, odd_R2), dim=-1).flatten(-2)


def uniform(key_R2: torch.Tensor, position_R: torch.Tensor, *, stream: int = 0) -> torch.Tensor:
    """One float64 per row in the open interval (0, 1), from 52 random bits.

    Streams are independent of each other: one for each use of a number per position.
    """
    if uses_triton(key_R2):
        from kernels.sampling import gpu

        return gpu.uniform(key_R2, position_R, stream=stream)
    counter_R4 = torch.zeros(len(position_R), 4, dtype=torch.int64, device=position_R.device)
    counter_R4[:, 0] = position_R
    counter_R4[:, 1] = stream
    word_R4 = philox4x32(counter_R4, key_R2)
    bits_R = (word_R4[:, 0] << 20) | (word_R4[:, 1] >> 12)
    return (bits_R.double() + 0.5) * 2.0**-52
