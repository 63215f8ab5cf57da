"""Draw one token per row: temperature, top_k, top_p, min_p and XTC, then the inverse CDF.

With x the row's logits, and the order that of `order.py`:

    w = exp((x - max x) / temperature)       weights; the greatest is exactly 1
    top_k  keeps the first k in order
    top_p  keeps a token while the weights before it are < top_p of what top_k kept: the smallest
           set with that mass, never empty
    min_p  keeps w >= min_p
    XTC    drops the top choices of what is left: see `xtc.py`
    the token is the first, by id, whose running sum of kept weights exceeds uniform * their total

Rows differ in what they need, and the vocabulary is wide, so there is one function per need, and
each row belongs to one of them by its own parameters alone:

    draw_greedy   temperature 0: the argmax, ties to the lowest id
    draw_top      top_k: only the first k are looked at
    draw_nucleus  no top_k, top_p < 1: candidates first, and rows they do not settle one by one
    draw_whole    neither: one pass

Logits are fp32, -inf where banned, with at least one finite value per row. Sums run in float64.
"""

from dataclasses import dataclass

import torch

from kernels.backend import uses_triton
from kernels.sampling.order import top
from kernels.sampling.xtc import exclude_top

MAX_CANDIDATES = 1024  # of 248,320: three times as slow as 20, a thirtieth of a full sort


@dataclass(frozen=True, slots=True)
class DrawParams:
    """One number per row; float64 but for top_k."""

    temperature_R: torch.Tensor  # in [1e-30, 1e30]: fp32 divides by it
    top_k_R: torch.Tensor  # int64, at least 1; V or more keeps everything
    top_p_R: torch.Tensor  # in (0, 1]
    min_p_R: torch.Tensor  # in [0, 1]
    uniform_R: torch.Tensor  # in (0, 1)
    xtc_threshold_R: torch.Tensor | None = None  # `xtc.OFF` for rows without; None: no row has XTC

    def __getitem__(self, index_Q: torch.Tensor | slice) -> "DrawParams":
        threshold_R = self.xtc_threshold_R
        return DrawParams(
            temperature_R=self.temperature_R[index_Q],
            top_k_R=self.top_k_R[index_Q],
            top_p_R=self.top_p_R[index_Q],
            min_p_R=self.min_p_R[index_Q],
            uniform_R=self.uniform_R[index_Q],
            xtc_threshold_R=None if threshold_R is None else threshold_R[index_Q],
        )


def draw_greedy(logits_RV: torch.Tensor) -> torch.Tensor:
    if uses_triton(logits_RV):
        from kernels.sampling import gpu

        return gpu.draw_greedy(logits_RV)
    return logits_RV.argmax(dim=-1)


def draw_top(logits_RV: torch.Tensor, params: DrawParams, num_candidates: int) -> torch.Tensor:
    """No row's `top_k` is above `num_candidates`, or that is V."""
    if uses_triton(logits_RV):
        from kernels.sampling import gpu

        return gpu.draw_top(logits_RV, params, num_candidates)
    logits_RK, id_RK = top(logits_RV, num_candidates)
    weight_RK = _weights(logits_RK, params).double()
    index_K = torch.arange(weight_RK.shape[-1], device=weight_RK.device)
    weight_RK.masked_fill_(index_K >= params.top_k_R[:, None], 0)
    _keep_nucleus(weight_RK, weight_RK.cumsum(dim=-1)[:, -1], params)
    _exclude_top(weight_RK, id_RK, params)
    return _draw_by_id(weight_RK, id_RK, params)


def draw_nucleus(
    logits_RV: torch.Tensor, params: DrawParams, num_candidates: int = MAX_CANDIDATES
) -> torch.Tensor:
    """No row has a `top_k`: it is not read."""
    if uses_triton(logits_RV):
        from kernels.sampling import gpu

        return gpu.draw_nucleus(logits_RV, params)
    weight_RV = _weights(logits_RV, params)
    mass_R = weight_RV.cumsum(dim=-1, dtype=torch.float64)[:, -1]
    _, id_RK = top(logits_RV, num_candidates)
    weight_RK = weight_RV.gather(-1, id_RK).double()
    seen_R = weight_RK.cumsum(dim=-1)[:, -1]
    settled_R = (seen_R >= params.top_p_R * mass_R) | (weight_RK[:, -1] < params.min_p_R)
    _keep_nucleus(weight_RK, mass_R, params)
    _exclude_top(weight_RK, id_RK, params)
    token_R = _draw_by_id(weight_RK, id_RK, params)
    for r in (~settled_R).nonzero()[:, 0].tolist():
        _keep_wide_nucleus(weight_RV[r], params.top_p_R[r] * mass_R[r])
        row = slice(r, r + 1)
        token_R[row] = _draw_weighted(weight_RV[row], params[row])
    return token_R


def draw_whole(logits_RV: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """No row has a `top_k` or a `top_p`: they are not read."""
    if uses_triton(logits_RV):
        from kernels.sampling import gpu

        return gpu.draw_whole(logits_RV, params)
    return _draw_weighted(_weights(logits_RV, params), params)


def _draw_weighted(weight_RV: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """Apply min_p and XTC, and draw. Overwrites the weights."""
    weight_RV.masked_fill_(weight_RV < params.min_p_R.to(weight_RV.dtype)[:, None], 0)
    _exclude_top(weight_RV, torch.arange(weight_RV.shape[-1], device=weight_RV.device), params)
    return _invert_cdf(weight_RV.cumsum(dim=-1, dtype=torch.float64), params.uniform_R)


def _exclude_top(weight_RK: torch.Tensor, id_RK: torch.Tensor, params: DrawParams) -> None:
    if params.xtc_threshold_R is not None:
        exclude_top(weight_RK, id_RK, params.xtc_threshold_R)


def _weights(logits_RV: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """exp((x - max) / temperature) in fp32; no exponent is above 0."""
    shifted_RV = logits_RV - logits_RV.amax(dim=-1, keepdim=True)
    return shifted_RV.div_(params.temperature_R.to(logits_RV.dtype)[:, None]).exp_()


def _keep_nucleus(weight_RK: torch.Tensor, mass_R: torch.Tensor, params: DrawParams) -> None:
    """Apply top_p, of `mass_R`, and min_p to weights that are in order."""
    before_RK = weight_RK.cumsum(dim=-1) - weight_RK
    past_nucleus_RK = before_RK >= (params.top_p_R * mass_R)[:, None]
    weight_RK.masked_fill_(past_nucleus_RK | (weight_RK < params.min_p_R[:, None]), 0)


def _keep_wide_nucleus(weight_V: torch.Tensor, wanted: torch.Tensor) -> None:
    """Apply top_p, as a mass, to a row of fp32 weights in no order, without sorting the row.

    The upper half of a positive float's bits falls with its value, so weights fall into buckets
    that are in order. Whole buckets are kept while they fit, and only the one that holds the cut is
    sorted.
    """
    bucket_V = weight_V.view(torch.int32).clamp(min=0) >> 16  # NaN may have a sign
    mass_Z = torch.bincount(bucket_V, weights=weight_V.double())
    reached_Z = mass_Z.flip(0).cumsum(dim=0)  # the mass from the greatest bucket down
    place = torch.searchsorted(reached_Z, wanted).clamp(max=len(mass_Z) - 1)
    cut = len(mass_Z) - 1 - place
    id_N = (bucket_V == cut).nonzero()[:, 0]
    inside_N, order_N = weight_V[id_N].double().sort(descending=True, stable=True)
    before_N = inside_N.cumsum(dim=0) - inside_N + (reached_Z[place] - mass_Z[cut])
    weight_V.masked_fill_(bucket_V < cut, 0)
    weight_V[id_N[order_N[before_N >= wanted]]] = 0


def _draw_by_id(weight_RK: torch.Tensor, id_RK: torch.Tensor, params: DrawParams) -> torch.Tensor:
    id_RK, order_RK = id_RK.sort(dim=-1)
    cdf_RK = weight_RK.gather(-1, order_RK).cumsum(dim=-1)
    index_R = _invert_cdf(cdf_RK, params.uniform_R)
    return id_RK.gather(-1, index_R[:, None])[:, 0]


def _invert_cdf(cdf_RK: torch.Tensor, uniform_R: torch.Tensor) -> torch.Tensor:
    """First index whose running sum exceeds uniform * total: never one of zero weight."""
    total_R = cdf_RK[:, -1]
    just_below_R = torch.nextafter(total_R, torch.zeros_like(total_R))
    target_R = torch.minimum(uniform_R * total_R, just_below_R)
    index_R1 = torch.searchsorted(cdf_RK, target_R[:, None], right=True)
    # NaN logits (an overflow inside the model) compare with nothing: stay in range all the same.
    return index_R1[:, 0].clamp_(max=cdf_RK.shape[-1] - 1)
