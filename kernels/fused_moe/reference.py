"""What the mixture of experts means, one expert after the other.

A row's sum runs over its experts in ascending order, in fp32, and the shared expert comes last:
so its bits depend on its own experts only.
"""

import torch

from kernels.elementwise import sigmoid
from kernels.fused_moe.weights import MoeWeights
from kernels.linear.reference import linear, swiglu_mlp


def fused_moe(x_TD: torch.Tensor, weights: MoeWeights) -> torch.Tensor:
    x_fp32_TD = x_TD.float()
    probability_TJ = linear(x_fp32_TD, weights.router_JD.float()).softmax(-1)
    weight_TK, expert_TK = probability_TJ.topk(weights.top_k, dim=-1)
    weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)

    y_TD = torch.zeros_like(x_fp32_TD)
    for expert in expert_TK.unique(sorted=True).tolist():
        row, choice = (expert_TK == expert).nonzero(as_tuple=True)
        out = swiglu_mlp(x_TD[row], weights.gate_up_JFD[expert], weights.down_JDF[expert])
        y_TD[row] += weight_TK[row, choice, None] * out.float()
    shared_TD = swiglu_mlp(x_TD, weights.shared_gate_up_FD, weights.shared_down_DF)
    shared_gate_T1 = sigmoid(linear(x_fp32_TD, weights.shared_gate_1D.float()))
    return (y_TD + shared_gate_T1 * shared_TD.float()).to(x_TD.dtype)
