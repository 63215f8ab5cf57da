"""The mixture of experts of one layer, from normed hidden state to what the residual takes.

    p = softmax(router x) over all J experts, in fp32;  the top k;  w = p / sum of these p
    y = sum of w_e * down_e(silu(gate_e x) * (up_e x))  +  sigmoid(shared_gate x) * shared(x)

Only experts with rows are read. A row's experts are summed in ascending order and in fp32, so its
bits do not depend on its batch. Router logits stay fp32 whatever the dtype of the weights.
"""

import torch

from kernels.fused_moe import cpu, reference
from kernels.fused_moe.weights import MoeWeights

__all__ = ["MoeWeights", "fused_moe"]


def fused_moe(x_TD: torch.Tensor, weights: MoeWeights) -> torch.Tensor:
    """y_TD for any number of rows, none included."""
    call = cpu.functions().get(("fused_moe", x_TD.dtype))
    if call is None:
        return reference.fused_moe(x_TD, weights)
    return cpu.fused_moe(call, x_TD, weights)
