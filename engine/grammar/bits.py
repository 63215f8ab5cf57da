"""Masks: rows of int32 words in which id i is bit i % 32 of word i // 32."""

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.int32]


def packed(allowed: npt.NDArray[np.bool_], *, num_words: int) -> Mask:
    """The mask of the ids whose entry is true."""
    bits = np.zeros(32 * num_words, dtype=np.bool_)
    bits[: len(allowed)] = allowed
    return np.packbits(bits, bitorder="little").view(np.int32)


def is_allowed(mask_row: npt.NDArray[np.int32], token_id: int) -> bool:
    return bool(mask_row[token_id // 32] >> (token_id % 32) & 1)


def allow(mask_row: npt.NDArray[np.int32], token_id: int) -> None:
    mask_row.view(np.uint32)[token_id // 32] |= np.uint32(1 << token_id % 32)


def forbid(mask_row: npt.NDArray[np.int32], token_id: int) -> None:
    mask_row.view(np.uint32)[token_id // 32] &= np.uint32(~(1 << token_id % 32) & 0xFFFFFFFF)
