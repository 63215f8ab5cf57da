"""The weights of one Gated DeltaNet mixer that are not linear layers."""

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
