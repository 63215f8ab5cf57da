# pyright: basic, reportArgumentType=false
"""The first tokens of each row: of parts of the row first, then of those.

A row is cut into C parts of 4,096 ids. Ids are dealt to the parts in runs of 128, so that the
frequent tokens, which have low ids, do not all meet in one. Each part gives its first K keys, in no
order. Their union holds the first K of the row, and all of the row that reaches the greatest cut.

Letters: R rows, V vocabulary, C parts, K keys of each.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.launch import Cost, launch
from kernels.sampling.gpu.order import MAX_VOCAB, NONE, cut_at, id_of, key_of, value_of

PART = 4096
RUN = 128
MAX_TOP = 32


@dataclass(frozen=True, slots=True)
class Parts:
    """Where a part has fewer than K ids, its last keys are `NONE`."""

    key_RCK: torch.Tensor  # int64
    cut_RC: torch.Tensor  # int64: what all keys of the part reach, and no other of its tokens
    greatest_RC: torch.Tensor  # fp32: value
    mass_RC: torch.Tensor  # fp64: sum of weights, that of the greatest value being 1


def top(value_RV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    R, V = value_RV.shape
    if k > MAX_TOP or k >= V:
        value_RV, id_RV = value_RV.sort(dim=-1, descending=True, stable=True)
        return value_RV[:, :k], id_RV[:, :k]
    key_RCK = parts_of(value_RV).key_RCK
    num_keys = key_RCK.shape[1] * MAX_TOP
    first_RK = torch.empty(R, MAX_TOP, dtype=torch.int64, device=value_RV.device)
    value_RK = torch.empty(R, k, dtype=torch.float32, device=value_RV.device)
    id_RK = torch.empty(R, k, dtype=torch.int64, device=value_RV.device)
    num_bytes = R * (8 * num_keys + 12 * k)
    launch(
        _merge_kernel,
        (R,),
        key_RCK,
        first_RK,
        value_RK,
        id_RK,
        k,
        cost=lambda: Cost(num_bytes, num_bytes + R * 16 * k, flops=0),
        num_warps=4,
        NUM_KEYS=num_keys,
        PADDED=triton.next_power_of_2(num_keys),
        K=MAX_TOP,
    )
    return value_RK, id_RK


def parts_of(
    x_RV: torch.Tensor, temperature_R: torch.Tensor | None = None, *, greatest_only: bool = False
) -> Parts:
    """Masses are written if there are temperatures; otherwise they are not to be read."""
    R, V = x_RV.shape
    if x_RV.dtype != torch.float32 or V > MAX_VOCAB or x_RV.stride(1) != 1:
        raise ValueError(f"{x_RV.shape=} {x_RV.stride()=} {x_RV.dtype=}: rows of fp32 are needed")
    C = triton.cdiv(V, PART)
    K = 1 if greatest_only else MAX_TOP
    parts = Parts(
        key_RCK=torch.empty(R, C, K, dtype=torch.int64, device=x_RV.device),
        cut_RC=torch.empty(R, C, dtype=torch.int64, device=x_RV.device),
        greatest_RC=torch.empty(R, C, dtype=torch.float32, device=x_RV.device),
        mass_RC=torch.empty(R, C, dtype=torch.float64, device=x_RV.device),
    )
    num_bytes = 4 * R * V + R * C * (8 * K + 20)
    launch(
        _parts_kernel,
        (C, R),
        x_RV,
        temperature_R,
        parts.key_RCK,
        parts.cut_RC,
        parts.greatest_RC,
        parts.mass_RC,
        x_RV.stride(0),
        0 if temperature_R is None else temperature_R.stride(0),
        cost=lambda: Cost(num_bytes, num_bytes, 0),
        num_warps=8,
        # Rows that are not aligned, as log-probabilities are, take an address for each value.
        max_registers=None if x_RV.stride(0) % 16 == 0 else 128,
        V=V,
        C=C,
        K=K,
        PART=PART,
        RUN=RUN,
        HAS_MASS=temperature_R is not None,
    )
    return parts


@triton.jit(do_not_specialize=["s_temperature"], do_not_specialize_on_alignment=["temperature_R"])
def _parts_kernel(
    x_RV, temperature_R, key_RCK, cut_RC, greatest_RC, mass_RC, stride, s_temperature,
    V: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
    PART: tl.constexpr, RUN: tl.constexpr, HAS_MASS: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0)
    r = tl.program_id(1).to(tl.int64)
    at_c = r * C + c
    i = tl.arange(0, PART)
    id = (i // RUN * C + c) * RUN + i % RUN
    x = tl.load(x_RV + r * stride + id, mask=id < V, other=-float("inf"))
    if HAS_MASS:
        temperature = tl.load(temperature_R + r * s_temperature).to(tl.float32)
        greatest = tl.maximum(tl.max(x, axis=0), -3e38)  # of a part that is banned, finite as well
        weight = tl.exp(tl.div_rn(x - greatest, temperature))
        tl.store(greatest_RC + at_c, greatest)
        tl.store(mass_RC + at_c, tl.sum(weight.to(tl.float64), axis=0))
    key = tl.where(id < V, key_of(x, id), NONE)
    if K == 1:
        tl.store(key_RCK + at_c, tl.max(key, axis=0))
    else:
        num = tl.sum((key != NONE).to(tl.int32), axis=0)
        cut = cut_at(key, K, num)
        taken = key >= cut
        place = tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.store(key_RCK + at_c * K + place, key, mask=taken)
        k = tl.arange(0, K)
        tl.store(key_RCK + at_c * K + k, tl.full([K], NONE, tl.int64), mask=k >= num)
        tl.store(cut_RC + at_c, cut)


@triton.jit(do_not_specialize=["k"])
def _merge_kernel(
    key_RCK, first_RK, value_RK, id_RK, k,
    NUM_KEYS: tl.constexpr, PADDED: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, PADDED)
    key = tl.load(key_RCK + r * NUM_KEYS + n, mask=n < NUM_KEYS, other=NONE)
    num = tl.sum((key != NONE).to(tl.int32), axis=0)
    taken = key >= cut_at(key, k, num)
    place = tl.cumsum(taken.to(tl.int32), axis=0) - 1
    tl.store(first_RK + r * K + place, key, mask=taken)
    tl.debug_barrier()  # other threads of this program wrote what is read here
    i = tl.arange(0, K)
    first = tl.load(first_RK + r * K + i, mask=i < k, other=NONE)
    rank = tl.sum((first[None, :] > first[:, None]).to(tl.int32), axis=1)
    tl.store(value_RK + r * k + rank, value_of(first), mask=i < k)
    tl.store(id_RK + r * k + rank, id_of(first).to(tl.int64), mask=i < k)
