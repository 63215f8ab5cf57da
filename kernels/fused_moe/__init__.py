"""The mixture of experts of one layer, from the residual stream to the residual stream.

    x = norm(residual)                    zero-centred RMSNorm, rounded to the dtype of the weights
    p = softmax(router x) over all J experts, in fp32;  the top k;  w = p / sum of these p
    y = sum of w_e * down_e(silu(gate_e x) * (up_e x))  +  sigmoid(shared_gate x) * shared(x)
    residual + y                          summed in fp32, cast once

Only experts with rows are read. Of equal logits the lower expert wins. A row's experts are summed
in ascending order and in fp32, so its bits do not depend on its batch. Router logits stay fp32
whatever the dtype of the weights.
"""

from functools import partial

import torch

from kernels.backend import uses_triton
from kernels.fused_moe import cpu, reference
from kernels.fused_moe.weights import MoeWeights

__all__ = ["MoeWeights", "fused_moe_add"]


def fused_moe_add(
    residual_TD: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    weights: MoeWeights,
    *,
    adds_residual: bool = True,
) -> torch.Tensor:
    """residual_TD after this layer, a new tensor, for any number of rows, none included.

    Without `adds_residual` only what the layer adds: where several ranks hold a share of every
    expert's width, one of them brings the residual into their sum.
    """
    if uses_triton(residual_TD):
        from kernels.fused_moe import gpu

        run = gpu.fused_moe_add
    else:
        call = cpu.functions().get(("fused_moe_add", residual_TD.dtype))
        run = reference.fused_moe_add if call is None else partial(cpu.fused_moe_add, call)
    return run(residual_TD, norm_D, eps, weights, adds_residual=adds_residual)
