"""XTC ("exclude top choices"): now and then, drop the likeliest tokens but one.

By p-e-w (text-generation-webui, 2024), with the definition of llama.cpp's `llama_sampler_xtc`. With
the chance `probability`, decided once per token: of all tokens whose probability, among what is
left, is at least `threshold`, only the least likely stays. Tokens below the threshold stay too. So
nothing changes unless two tokens reach the threshold, and a threshold above a half turns it off.

Ties are settled by the order of `order.py`: the last one in it is the least likely.
"""

import torch

OFF = torch.inf  # a threshold that no token reaches
MAX_THRESHOLD = 0.5


def exclude_top(weight_RK: torch.Tensor, id_RK: torch.Tensor, threshold_R: torch.Tensor) -> None:
    """Drop the top choices of each row in place: their weights, not normalised, become 0.

    Weights of 0 are of tokens that are not left. `id_RK` may be one row for all.
    """
    total_R1 = weight_RK.cumsum(dim=-1, dtype=torch.float64)[:, -1:]
    tops_RK = (weight_RK >= threshold_R[:, None] * total_R1) & (weight_RK > 0)
    least_R1 = weight_RK.masked_fill(~tops_RK, torch.inf).amin(dim=-1, keepdim=True)
    tied_RK = tops_RK & (weight_RK == least_R1)
    stays_R1 = id_RK.expand_as(tied_RK).masked_fill(~tied_RK, -1).amax(dim=-1, keepdim=True)
    weight_RK.masked_fill_(tops_RK & (id_RK != stays_R1), 0)
