"""What a linear layer means, with the same bits for a row alone and in a crowd.

torch picks routines, and ways to share work among threads, by the sizes: on a CPU in fp32 below 8
rows, at 9 rows with two threads, for few columns and for odd lengths; in bf16 for few columns. So
every product here is one of exactly 8 rows, at least 16 columns and a length that is a multiple of
16, with zeros where there is less. Measured on an AVX-512 machine: then a row's place among the 8
makes no difference either.
"""

import torch
from torch.nn import functional

from kernels.elementwise import silu
from kernels.norm_rope.reference import rms_norm

_BLOCK_ROWS = 8
_MIN_COLUMNS = 16
_LENGTH_MULTIPLE = 16


def linear(x_TD: torch.Tensor, weight_FD: torch.Tensor) -> torch.Tensor:
    (T, D), F = x_TD.shape, weight_FD.shape[0]
    y_TF = x_TD.new_empty(T, F)
    missing = -D % _LENGTH_MULTIPLE
    if missing or F < _MIN_COLUMNS:
        weight_FD = functional.pad(weight_FD, (0, missing, 0, max(0, _MIN_COLUMNS - F)))
    for first in range(0, T, _BLOCK_ROWS):
        rows = slice(first, min(T, first + _BLOCK_ROWS))
        block_TD = x_TD.new_zeros(_BLOCK_ROWS, D + missing)
        block_TD[: rows.stop - first, :D] = x_TD[rows]
        y_TF[rows] = functional.linear(block_TD, weight_FD)[: rows.stop - first, :F]
    return y_TF


def linear_fp32(x_TD: torch.Tensor, weight_FD: torch.Tensor) -> torch.Tensor:
    return linear(x_TD.float(), weight_FD.float())


def norm_linear(
    residual_TD: torch.Tensor, norm_D: torch.Tensor, eps: float, weight_FD: torch.Tensor
) -> torch.Tensor:
    return linear(rms_norm(residual_TD, norm_D, eps), weight_FD)


def linear_add(
    x_TF: torch.Tensor, weight_DF: torch.Tensor, residual_TD: torch.Tensor
) -> torch.Tensor:
    return (residual_TD.float() + linear_fp32(x_TF, weight_DF)).to(x_TF.dtype)


def norm_swiglu_add(
    residual_TD: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    gate_up_FD: torch.Tensor,
    down_DF: torch.Tensor,
    *,
    adds_residual: bool = True,
) -> torch.Tensor:
    hidden_TF = swiglu(rms_norm(residual_TD, norm_D, eps), gate_up_FD)
    if adds_residual:
        return linear_add(hidden_TF, down_DF, residual_TD)
    return linear(hidden_TF, down_DF)


def swiglu(x_TD: torch.Tensor, gate_up_FD: torch.Tensor) -> torch.Tensor:
    """hidden_TF = silu(gate x) * (up x), rounded once."""
    gate_TF, up_TF = linear_fp32(x_TD, gate_up_FD).chunk(2, dim=-1)
    return (silu(gate_TF) * up_TF).to(x_TD.dtype)
