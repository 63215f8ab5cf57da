"""The weights of one mixture-of-experts layer."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class MoeWeights:
    """J experts of width F / 2, and one shared expert. Gate rows come first, then up rows.

    All contiguous and of one dtype: kernels take their addresses without asking again.
    """

    router_JD: torch.Tensor
    gate_up_JFD: torch.Tensor
    down_JDF: torch.Tensor
    shared_gate_up_FD: torch.Tensor
    shared_down_DF: torch.Tensor
    shared_gate_1D: torch.Tensor
    top_k: int

    def __post_init__(self) -> None:
        J, D = self.router_JD.shape
        width, shared_width = self.down_JDF.shape[2], self.shared_down_DF.shape[1]
        shapes = {
            "gate_up_JFD": (J, 2 * width, D),
            "down_JDF": (J, D, width),
            "shared_gate_up_FD": (2 * shared_width, D),
            "shared_down_DF": (D, shared_width),
            "shared_gate_1D": (1, D),
            "router_JD": (J, D),
        }
        for name, shape in shapes.items():
            tensor: torch.Tensor = getattr(self, name)
            if tensor.shape != shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)} where {shape} is needed")
            if tensor.dtype != self.router_JD.dtype or not tensor.is_contiguous():
                raise ValueError(f"{name} is not contiguous {self.router_JD.dtype}")
        if not 0 < self.top_k <= J:
            raise ValueError(f"top_k {self.top_k} of {J} experts")


def check_operands(residual_TD: torch.Tensor, norm_D: torch.Tensor, weights: MoeWeights) -> None:
    """What the weights could not check alone. Raises ValueError."""
    D = residual_TD.shape[1]
    for weight in (norm_D, weights.router_JD):
        if weight.shape[-1] != D or weight.dtype != residual_TD.dtype:
            raise ValueError(f"{residual_TD.shape=} {residual_TD.dtype=} do not fit {weight.shape}")
