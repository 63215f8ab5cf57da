"""What the mixture of experts means, one expert after the other.

A row's sum runs over its experts in ascending order, in fp32, then the shared expert, then the
residual: so its bits depend on its own experts only.
"""

import torch

from kernels.elementwise import sigmoid
from kernels.fused_moe.weights import MoeWeights
from kernels.linear.reference import linear_fp32, swiglu
from kernels.norm_rope.reference import rms_norm


def fused_moe_add(
    residual_TD: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    weights: MoeWeights,
    *,
    adds_residual: bool = True,
) -> torch.Tensor:
    x_TD = rms_norm(residual_TD, norm_D, eps)
    weight_TK, expert_TK = route(x_TD, weights)
    y_TD = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)
    for expert in expert_TK.unique(sorted=True).tolist():
        row, choice = (expert_TK == expert).nonzero(as_tuple=True)
        hidden_TF = swiglu(x_TD[row], weights.gate_up_JFD[expert])
        out_TD = linear_fp32(hidden_TF, weights.down_JDF[expert])
        y_TD[row] += weight_TK[row, choice, None] * out_TD
    hidden_TF = swiglu(x_TD, weights.shared_gate_up_FD)
    shared_gate_T1 = sigmoid(linear_fp32(x_TD, weights.shared_gate_1D))
    y_TD = y_TD + shared_gate_T1 * linear_fp32(hidden_TF, weights.shared_down_DF)
    if adds_residual:
        y_TD = y_TD + residual_TD.float()
    return y_TD.to(x_TD.dtype)


def route(x_TD: torch.Tensor, weights: MoeWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight_TK, expert_TK) of the chosen experts, in no particular order."""
    logit_TJ = linear_fp32(x_TD, weights.router_JD)
    order_TJ = logit_TJ.sort(dim=-1, descending=True, stable=True).indices  # ties: the lower one
    expert_TK = order_TJ[:, : weights.top_k]
    return logit_TJ.gather(1, expert_TK).softmax(-1), expert_TK
