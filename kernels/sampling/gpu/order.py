# pyright: basic, reportArgumentType=false
"""A token's value and id in one int64 that falls in the order of `kernels.sampling.order`.

The bits of a float, with the lower ones turned over if it is negative, are an integer in the same
order. They stand above the id, counted from the last: of equal values the lower id is greater.
Keys of one row are therefore distinct: cuts between them leave no ties to settle, and for every k
there is a cut that exactly k keys reach.
"""

import triton
import triton.language as tl

MAX_VOCAB = 1 << 20

_ID_BITS = tl.constexpr(20)
_LAST_ID = tl.constexpr((1 << 20) - 1)
LOWEST = tl.constexpr(-(1 << 51))  # no key of a token is less
ABOVE = tl.constexpr(1 << 51)  # every key is less
NONE = tl.constexpr(-(1 << 62))  # what stands where there is no token


@triton.jit
def key_of(x, id):
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)  # -0 equals 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << _ID_BITS) | (id ^ _LAST_ID).to(tl.int64)


@triton.jit
def id_of(key):
    return (key & _LAST_ID).to(tl.int32) ^ _LAST_ID


@triton.jit
def value_of(key):
    """-inf where there is no token."""
    ordered = (key >> _ID_BITS).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return tl.where(key < LOWEST, -float("inf"), bits.to(tl.float32, bitcast=True))


@triton.jit
def cut_at(key, k, num):
    """A cut that exactly k of the `num` keys in the tile reach, where k is not more than these."""
    cut = tl.full([], LOWEST, tl.int64)
    hi = tl.full([], ABOVE, tl.int64)
    while (num > k) & (hi - cut > 1):
        middle = cut + (hi - cut) // 2
        reaching = tl.sum((key >= middle).to(tl.int32), axis=0)
        enough = reaching >= k
        num = tl.where(enough, reaching, num)
        cut = tl.where(enough, middle, cut)
        hi = tl.where(enough, hi, middle)
    return cut
