"""The mixture of experts in Triton: norm and choice of experts, then one of two forms for them.

Up to 8 rows: three launches in all. More: five. The two forms add in different orders, and the
second rounds what each expert says, so a row's bits may differ between 8 and 9 rows; so they may
where tiles grow (see `_tile_rows` and `route`), never within a case. In `fixed_shapes()` there is
one case, the second form with the smallest tiles.
"""

import torch

from kernels.backend import shape_rows
from kernels.dense_rows import with_dense_rows
from kernels.fused_moe.gpu_few import experts_of_few
from kernels.fused_moe.gpu_grouped import experts_of_many
from kernels.fused_moe.gpu_route import route
from kernels.fused_moe.weights import MoeWeights, check_operands

FEW_ROWS = 8


def fused_moe_add(
    residual_TD: torch.Tensor,
    norm_D: torch.Tensor,
    eps: float,
    weights: MoeWeights,
    *,
    adds_residual: bool = True,
) -> torch.Tensor:
    check_operands(residual_TD, norm_D, weights)
    residual_TD = with_dense_rows(residual_TD)
    routes = route(residual_TD, norm_D.contiguous(), eps, weights)
    few = shape_rows(len(residual_TD)) <= FEW_ROWS
    run = experts_of_few if few else experts_of_many
    return run(residual_TD, routes, weights, adds_residual=adds_residual)
