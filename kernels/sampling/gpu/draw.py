# pyright: basic, reportArgumentType=false, reportGeneralTypeIssues=false
"""One token per row, in two launches; a row with very many candidates takes a third one longer.

The first launch finds each part's first 32 keys (see `top.py`), the second draws from their union.
That settles every row with a `top_k` up to 32, and each other row whose candidates are all among
what the union has in full. Rows that it does not settle, and rows with neither `top_k` nor `top_p`,
are left to the third: one program per row, which does the same with the row itself. Its programs
return at once for rows that are settled; else one takes a pass over the row per step of a search,
some 30 of them per cut, at what one multiprocessor draws from the L2 cache.

Both kernels cut the order of tokens where the bisected count, or mass, of what reaches the cut is
as it should be. Differences to the CPU's tokens can only come from rounding: weights by the GPU's
`exp`, and sums in another order. That order is decided by the vocabulary alone, and every sum that
is searched is one tree over fixed places, so it never falls when a token joins.

Letters: R rows, V vocabulary, C parts, K keys of each.
"""

import torch
import triton
import triton.language as tl

from kernels.launch import Cost, launch
from kernels.sampling.draw import DrawParams
from kernels.sampling.gpu.order import ABOVE, LOWEST, NONE, cut_at, id_of, key_of, value_of
from kernels.sampling.gpu.top import MAX_TOP, parts_of

TILE = 4096  # of a row, at a time

# Columns of a table, and parts of them: whatever their addresses, there is one kernel.
_COLUMNS = ["temperature_R", "top_k_R", "top_p_R", "min_p_R", "uniform_R", "xtc_R"]
_STRIDES = ["s_temperature", "s_k", "s_p", "s_min_p", "s_uniform", "s_xtc"]


def draw_greedy(logits_RV: torch.Tensor) -> torch.Tensor:
    R = len(logits_RV)
    key_RC1 = parts_of(logits_RV, greatest_only=True).key_RCK
    C = key_RC1.shape[1]
    token_R = torch.empty(R, dtype=torch.int64, device=logits_RV.device)
    num_bytes = 8 * R * (C + 1)
    launch(
        _first_kernel,
        (R,),
        key_RC1,
        token_R,
        cost=lambda: Cost(num_bytes, num_bytes, flops=0),
        num_warps=1,
        C=C,
        C_PADDED=triton.next_power_of_2(C),
    )
    return token_R


def draw_top(logits_RV: torch.Tensor, params: DrawParams, num_candidates: int) -> torch.Tensor:
    token_R, settled_R = _draw_from_parts(logits_RV, params, has_top_k=True)
    if num_candidates > MAX_TOP:
        _draw_from_row(logits_RV, params, token_R, settled_R, has_top_k=True, has_top_p=True)
    return token_R


def draw_nucleus(logits_RV: torch.Tensor, params: DrawParams) -> torch.Tensor:
    token_R, settled_R = _draw_from_parts(logits_RV, params, has_top_k=False)
    _draw_from_row(logits_RV, params, token_R, settled_R, has_top_k=False, has_top_p=True)
    return token_R


def draw_whole(logits_RV: torch.Tensor, params: DrawParams) -> torch.Tensor:
    token_R = torch.empty(len(logits_RV), dtype=torch.int64, device=logits_RV.device)
    _draw_from_row(logits_RV, params, token_R, None, has_top_k=False, has_top_p=False)
    return token_R


def _draw_from_parts(
    logits_RV: torch.Tensor, params: DrawParams, *, has_top_k: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and which of them are settled."""
    R, V = logits_RV.shape
    parts = parts_of(logits_RV, None if has_top_k else params.temperature_R)
    C = parts.key_RCK.shape[1]
    token_R = torch.empty(R, dtype=torch.int64, device=logits_RV.device)
    settled_R = torch.empty(R, dtype=torch.int32, device=logits_RV.device)
    num_bytes = R * (C * (8 * MAX_TOP + 20) + 60)
    launch(
        _draw_from_parts_kernel,
        (R,),
        parts.key_RCK,
        parts.cut_RC,
        parts.greatest_RC,
        parts.mass_RC,
        params.temperature_R,
        params.top_k_R,
        params.top_p_R,
        params.min_p_R,
        params.uniform_R,
        params.xtc_threshold_R,
        token_R,
        settled_R,
        *_strides(params),
        cost=lambda: Cost(num_bytes, num_bytes, flops=0),
        num_warps=8,
        max_registers=168,
        V=V,
        C=C,
        C_PADDED=triton.next_power_of_2(C),
        K=MAX_TOP,
        PADDED=triton.next_power_of_2(C * MAX_TOP),
        HAS_TOP_K=has_top_k,
        HAS_XTC=params.xtc_threshold_R is not None,
    )
    return token_R, settled_R


def _draw_from_row(
    logits_RV: torch.Tensor,
    params: DrawParams,
    token_R: torch.Tensor,
    settled_R: torch.Tensor | None,
    *,
    has_top_k: bool,
    has_top_p: bool,
) -> None:
    """Draw the rows that are not settled; None: all."""
    R, V = logits_RV.shape
    num_bytes = R * 60 + (R * 4 * V if settled_R is None else 0)  # most rows are settled
    launch(
        _draw_from_row_kernel,
        (R,),
        logits_RV,
        params.temperature_R,
        params.top_k_R,
        params.top_p_R,
        params.min_p_R,
        params.uniform_R,
        params.xtc_threshold_R,
        token_R,
        settled_R,
        logits_RV.stride(0),
        *_strides(params),
        cost=lambda: Cost(num_bytes, num_bytes, flops=0),
        num_warps=8,
        max_registers=168,
        V=V,
        TILE=TILE,
        HAS_SETTLED=settled_R is not None,
        HAS_TOP_K=has_top_k,
        HAS_TOP_P=has_top_p,
        HAS_XTC=params.xtc_threshold_R is not None,
    )


def _strides(params: DrawParams) -> tuple[int, ...]:
    threshold_R = params.xtc_threshold_R
    return (
        params.temperature_R.stride(0),
        params.top_k_R.stride(0),
        params.top_p_R.stride(0),
        params.min_p_R.stride(0),
        params.uniform_R.stride(0),
        0 if threshold_R is None else threshold_R.stride(0),
    )


@triton.jit
def _first_kernel(key_RC, token_R, C: tl.constexpr, C_PADDED: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, C_PADDED)
    key = tl.max(tl.load(key_RC + r * C + c, mask=c < C, other=NONE), axis=0)
    tl.store(token_R + r, id_of(key).to(tl.int64))


@triton.jit(do_not_specialize=_STRIDES, do_not_specialize_on_alignment=_COLUMNS)
def _draw_from_parts_kernel(
    key_RCK, cut_RC, greatest_RC, mass_RC,
    temperature_R, top_k_R, top_p_R, min_p_R, uniform_R, xtc_R, token_R, settled_R,
    s_temperature, s_k, s_p, s_min_p, s_uniform, s_xtc,
    V: tl.constexpr, C: tl.constexpr, C_PADDED: tl.constexpr, K: tl.constexpr,
    PADDED: tl.constexpr, HAS_TOP_K: tl.constexpr, HAS_XTC: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, PADDED)
    c = tl.arange(0, C_PADDED)
    key = tl.load(key_RCK + r * C * K + n, mask=n < C * K, other=NONE)
    id = id_of(key)
    value = value_of(key)
    greatest = tl.max(value, axis=0)
    temperature = tl.load(temperature_R + r * s_temperature).to(tl.float32)
    weight = tl.exp(tl.div_rn(value - greatest, temperature)).to(tl.float64)

    # Every token of the row that reaches `complete` is here, and the first K of all.
    complete = tl.max(tl.load(cut_RC + r * C + c, mask=c < C, other=NONE), axis=0)
    num = tl.sum((key >= complete).to(tl.int32), axis=0)
    top_p = tl.load(top_p_R + r * s_p)
    min_p = tl.load(min_p_R + r * s_min_p)
    if HAS_TOP_K:
        top_k = tl.load(top_k_R + r * s_k)
        settled = top_k <= tl.maximum(num, K)
        cut = cut_at(key, top_k, tl.sum((key != NONE).to(tl.int32), axis=0))
        weight = tl.where(key >= cut, weight, 0.0)
        num = tl.sum((key >= cut).to(tl.int32), axis=0)
        wanted = top_p * tl.sum(weight, axis=0)
    else:
        part = tl.load(mass_RC + r * C + c, mask=c < C, other=0.0)
        part_greatest = tl.load(greatest_RC + r * C + c, mask=c < C, other=-float("inf"))
        scale = tl.exp(tl.div_rn(part_greatest - greatest, temperature)).to(tl.float64)
        wanted = top_p * tl.sum(part * scale, axis=0)
        cut = complete
        weight = tl.where(key >= cut, weight, 0.0)
        least = tl.min(tl.where(key >= cut, weight, float("inf")), axis=0)
        settled = (tl.sum(weight, axis=0) >= wanted) | (least < min_p)

    # The highest cut above which the wanted mass is reached.
    hi = tl.full([], ABOVE, tl.int64)
    num_above = tl.full([], 0, tl.int32)
    while (num - num_above > 1) & (hi - cut > 1):
        middle = cut + (hi - cut) // 2
        reaching = tl.sum((key >= middle).to(tl.int32), axis=0)
        enough = tl.sum(tl.where(key >= middle, weight, 0.0), axis=0) >= wanted
        num = tl.where(enough, reaching, num)
        num_above = tl.where(enough, num_above, reaching)
        cut = tl.where(enough, middle, cut)
        hi = tl.where(enough, hi, middle)
    weight = tl.where((key >= cut) & (weight >= min_p), weight, 0.0)

    if HAS_XTC:
        bar = tl.load(xtc_R + r * s_xtc) * tl.sum(weight, axis=0)
        is_top = (weight >= bar) & (weight > 0)
        least_top = tl.min(tl.where(is_top, weight, float("inf")), axis=0)
        stays = tl.max(tl.where(is_top & (weight == least_top), id, -1), axis=0)
        weight = tl.where(is_top & (id != stays), 0.0, weight)

    target = _target(tl.load(uniform_R + r * s_uniform), tl.sum(weight, axis=0))
    below = tl.full([], -1, tl.int32)  # the sum of weights up to this id does not exceed the target
    token = tl.full([], V - 1, tl.int32)  # and up to this one it does
    while token - below > 1:
        middle = below + (token - below) // 2
        exceeds = tl.sum(tl.where(id <= middle, weight, 0.0), axis=0) > target
        token = tl.where(exceeds, middle, token)
        below = tl.where(exceeds, below, middle)
    tl.store(token_R + r, token.to(tl.int64))
    tl.store(settled_R + r, settled.to(tl.int32))


@triton.jit(do_not_specialize=_STRIDES, do_not_specialize_on_alignment=_COLUMNS)
def _draw_from_row_kernel(
    x_RV, temperature_R, top_k_R, top_p_R, min_p_R, uniform_R, xtc_R, token_R, settled_R,
    stride, s_temperature, s_k, s_p, s_min_p, s_uniform, s_xtc,
    V: tl.constexpr, TILE: tl.constexpr, HAS_SETTLED: tl.constexpr,
    HAS_TOP_K: tl.constexpr, HAS_TOP_P: tl.constexpr, HAS_XTC: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    if HAS_SETTLED:
        is_settled = tl.load(settled_R + r) != 0
        if is_settled:
            return
    x_V = x_RV + r * stride
    temperature = tl.load(temperature_R + r * s_temperature).to(tl.float32)
    lanes = tl.arange(0, TILE)

    greatest_lanes = tl.full([TILE], -float("inf"), tl.float32)
    for start in range(0, V, TILE):
        x = tl.load(x_V + start + lanes, mask=start + lanes < V, other=-float("inf"))
        greatest_lanes = tl.maximum(greatest_lanes, x)
    greatest = tl.max(greatest_lanes, axis=0)

    cut = tl.full([], LOWEST, tl.int64)  # keys from here up stay
    num = tl.full([], V, tl.int32)  # of them
    if HAS_TOP_K:
        top_k = tl.minimum(tl.load(top_k_R + r * s_k), V).to(tl.int32)
        hi = tl.full([], ABOVE, tl.int64)
        while (num > top_k) & (hi - cut > 1):
            middle = cut + (hi - cut) // 2
            reaching, _mass = _above(x_V, middle, greatest, temperature, V, TILE)
            enough = reaching >= top_k
            num = tl.where(enough, reaching, num)
            cut = tl.where(enough, middle, cut)
            hi = tl.where(enough, hi, middle)
    if HAS_TOP_P:
        _num, mass = _above(x_V, cut, greatest, temperature, V, TILE)
        wanted = tl.load(top_p_R + r * s_p) * mass
        hi = tl.full([], ABOVE, tl.int64)
        num_above = tl.full([], 0, tl.int32)
        while (num - num_above > 1) & (hi - cut > 1):
            middle = cut + (hi - cut) // 2
            reaching, reached = _above(x_V, middle, greatest, temperature, V, TILE)
            enough = reached >= wanted
            num = tl.where(enough, reaching, num)
            num_above = tl.where(enough, num_above, reaching)
            cut = tl.where(enough, middle, cut)
            hi = tl.where(enough, hi, middle)
    least = _least_fp32(tl.load(min_p_R + r * s_min_p))

    bar = float("inf")
    stays = -1
    if HAS_XTC:
        top_mass, _place, _before = _walk(
            x_V, cut, least, bar, stays, 0.0, greatest, temperature, V, TILE
        )
        bar = _least_fp32(tl.load(xtc_R + r * s_xtc) * top_mass)
        least_lanes = tl.full([TILE], float("inf"), tl.float32)
        stays_lanes = tl.full([TILE], -1, tl.int32)
        for start in range(0, V, TILE):
            weight, id = _kept(x_V, start, cut, least, greatest, temperature, V, TILE)
            is_top = (weight >= bar) & (weight > 0)
            weight = tl.where(is_top, weight, float("inf"))
            stays_lanes = tl.where(is_top & (weight <= least_lanes), id, stays_lanes)
            least_lanes = tl.minimum(least_lanes, weight)
        least_top = tl.min(least_lanes, axis=0)
        stays = tl.max(tl.where(least_lanes == least_top, stays_lanes, -1), axis=0)

    total, _place, _before = _walk(x_V, cut, least, bar, stays, 0.0, greatest, temperature, V, TILE)
    target = _target(tl.load(uniform_R + r * s_uniform), total)
    total, place, before = _walk(
        x_V, cut, least, bar, stays, target, greatest, temperature, V, TILE
    )
    weight, id = _kept(x_V, place, cut, least, greatest, temperature, V, TILE)
    weight = tl.where((weight >= bar) & (weight > 0) & (id != stays), 0.0, weight)
    exceeds = (before + tl.cumsum(weight.to(tl.float64), axis=0) > target) & (weight > 0)
    # Rounding may leave the last sum at the target: then it is the last token.
    token = tl.min(tl.where(exceeds, id, V), axis=0)
    last = tl.max(tl.where(weight > 0, id, 0), axis=0)
    token = tl.where(token < V, token, last)
    tl.store(token_R + r, token.to(tl.int64))


@triton.jit
def _target(uniform, total):
    """What the running sum has to exceed: less than the total, however that was rounded."""
    just_below = (total.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True)
    return tl.minimum(uniform * total, tl.where(total > 0, just_below, total))


@triton.jit
def _least_fp32(bound):
    """The least fp32 that is at least a positive fp64, so that comparisons mean the same."""
    rounded = bound.to(tl.float32)
    next_up = (rounded.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
    return tl.where(rounded.to(tl.float64) < bound, next_up, rounded)


@triton.jit
def _weigh(x_V, start, greatest, temperature, V: tl.constexpr, TILE: tl.constexpr):
    """A tile's ids, keys and weights; beyond V keys are NONE and weights 0."""
    id = start + tl.arange(0, TILE)
    x = tl.load(x_V + id, mask=id < V, other=-float("inf"))
    weight = tl.exp(tl.div_rn(x - greatest, temperature))
    return id, tl.where(id < V, key_of(x, id), NONE), weight


@triton.jit
def _above(x_V, cut, greatest, temperature, V: tl.constexpr, TILE: tl.constexpr):
    """How many keys there are from `cut` up, and the sum of their weights."""
    num_lanes = tl.zeros([TILE], dtype=tl.int32)
    mass_lanes = tl.zeros([TILE], dtype=tl.float32)
    for start in range(0, V, TILE):
        _id, key, weight = _weigh(x_V, start, greatest, temperature, V, TILE)
        num_lanes += (key >= cut).to(tl.int32)
        mass_lanes += tl.where(key >= cut, weight, 0.0)
    return tl.sum(num_lanes, axis=0), tl.sum(mass_lanes.to(tl.float64), axis=0)


@triton.jit
def _kept(x_V, start, cut, least, greatest, temperature, V: tl.constexpr, TILE: tl.constexpr):
    """A tile's weights, 0 where a token is cut away, and its ids."""
    id, key, weight = _weigh(x_V, start, greatest, temperature, V, TILE)
    return tl.where((key >= cut) & (weight >= least), weight, 0.0), id


@triton.jit
def _walk(
    x_V, cut, least, bar, stays, target, greatest, temperature, V: tl.constexpr, TILE: tl.constexpr
):
    """The sum of all kept weights, the tile in which it comes to exceed `target`, and the sum
    before that tile."""
    reached = tl.full([], 0.0, tl.float64)
    before = tl.full([], 0.0, tl.float64)
    place = tl.full([], 0, tl.int32)
    for start in range(0, V, TILE):
        weight, id = _kept(x_V, start, cut, least, greatest, temperature, V, TILE)
        weight = tl.where((weight >= bar) & (weight > 0) & (id != stays), 0.0, weight)
        more = reached + tl.sum(weight.to(tl.float64), axis=0)
        is_place = (reached <= target) & (more > target)
        before = tl.where(is_place, reached, before)
        place = tl.where(is_place, start, place)
        reached = more
    return reached, place, before
