"""The weights of one Gated DeltaNet mixer that are not linear layers, and what fits them."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class DeltaNetWeights:
    """All contiguous: kernels take their addresses without asking again."""

    conv_CW: torch.Tensor  # in the activation dtype; the last column meets the current token
    A_log_N: torch.Tensor  # fp32
    dt_bias_N: torch.Tensor  # fp32
    norm_V: torch.Tensor  # fp32; multiplies as it is, unlike the zero-centred norms
    eps: float
    num_key_heads: int

    def __post_init__(self) -> None:
        for name in ("conv_CW", "A_log_N", "dt_bias_N", "norm_V"):
            tensor: torch.Tensor = getattr(self, name)
            if not tensor.is_contiguous():
                raise ValueError(f"{name} is not contiguous")
            if name != "conv_CW" and tensor.dtype != torch.float32:
                raise ValueError(f"{name} is {tensor.dtype} where fp32 is needed")
        if self.dt_bias_N.shape != self.A_log_N.shape:
            raise ValueError(f"{self.dt_bias_N.shape=} does not fit {self.A_log_N.shape=}")
        if self.A_log_N.shape[0] % self.num_key_heads:
            raise ValueError(f"{self.num_key_heads} key heads do not divide {self.A_log_N.shape=}")


def check_operands(
    mixed_xC: torch.Tensor,
    z_xNV: torch.Tensor,
    b_xN: torch.Tensor,
    a_xN: torch.Tensor,
    weights: DeltaNetWeights,
    conv_PCX: torch.Tensor,
    state_PNKV: torch.Tensor,
) -> None:
    """Raise ValueError for what a raw pointer cannot say: shapes, dtypes and strides."""
    rows, N, V = z_xNV.shape
    P, _, K, _ = state_PNKV.shape
    C, W = weights.conv_CW.shape
    if mixed_xC.shape != (rows, C) or 2 * weights.num_key_heads * K + N * V != C:
        raise ValueError(f"{mixed_xC.shape=} does not fit {z_xNV.shape=} and {state_PNKV.shape=}")
    if b_xN.shape != (rows, N) or a_xN.shape != (rows, N) or weights.A_log_N.shape != (N,):
        raise ValueError(f"{b_xN.shape=} and {a_xN.shape=} do not fit {z_xNV.shape=}")
    if state_PNKV.shape != (P, N, K, V) or conv_PCX.shape != (P, C, W - 1):
        raise ValueError(f"{conv_PCX.shape=} and {state_PNKV.shape=} do not fit {z_xNV.shape=}")
    if not (state_PNKV.is_contiguous() and conv_PCX.is_contiguous()):
        raise ValueError("the pools must be contiguous: they are updated in place")
    if state_PNKV.dtype != torch.float32:
        raise ValueError(f"{state_PNKV.dtype=}: recurrent state is fp32")
    dtypes = {x.dtype for x in (mixed_xC, z_xNV, b_xN, a_xN, weights.conv_CW, conv_PCX)}
    if len(dtypes) != 1:
        raise ValueError(f"activations, convolution weights and columns differ: {dtypes}")
