"""Muon for the matrices, AdamW for the rest.

Muon (K. Jordan et al., 2024) steps along the orthogonalised momentum, by five Newton-Schulz
iterations: on a model of this size it needs about half the tokens that AdamW does. A stack of
matrices, as experts have, is orthogonalised matrix by matrix.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

_ADAM_NAMES = (
    "embed_tokens", "norm", "A_log", "dt_bias", "conv1d", "mlp.gate.", "in_proj_a", "in_proj_b",
    "shared_expert_gate",
)  # fmt: skip
Parameters = list[nn.Parameter]


def split_parameters(named: Iterable[tuple[str, nn.Parameter]]) -> tuple[Parameters, Parameters]:
    """(for Muon, for AdamW)"""
    matrices: Parameters = []
    rest: Parameters = []
    for name, parameter in named:
        (rest if any(part in name for part in _ADAM_NAMES) else matrices).append(parameter)
    return matrices, rest


class Muon(torch.optim.Optimizer):
    def __init__(
        self, parameters: Parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, torch.Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                by_shape.setdefault(parameter.shape[-2:], []).append((parameter, update))
            for shape, members in by_shape.items():
                stacked = torch.cat([update.reshape(-1, *shape) for _, update in members])
                stacked = _shared(stacked.bfloat16()) * max(1.0, shape[0] / shape[1]) ** 0.5
                sizes = [parameter.numel() // (shape[0] * shape[1]) for parameter, _ in members]
                for (parameter, _), update in zip(members, stacked.split(sizes), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape).float(), alpha=-group["lr"])


def _shared(x_MAB: torch.Tensor) -> torch.Tensor:
    """Each rank orthogonalises its part of the stack, and hears the rest from the others."""
    if not dist.is_initialized():
        return _orthogonalised(x_MAB)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    padded = functional.pad(x_MAB, (0, 0, 0, 0, 0, -len(x_MAB) % ranks))
    own = _orthogonalised(padded.chunk(ranks)[rank]).contiguous()
    parts = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(parts, own)
    return torch.cat(parts)[: len(x_MAB)]


def _orthogonalised(x_MAB: torch.Tensor) -> torch.Tensor:
    """Each matrix with its singular values brought near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x_MAB.shape[1] > x_MAB.shape[2]
    x = (x_MAB.mT if tall else x_MAB).bfloat16()
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
