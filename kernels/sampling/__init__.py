"""Choosing tokens from logits: bans, penalties, filters, counter-based draws, log-probabilities.

The letters of every file here: R rows, V vocabulary, K candidates, N (row, id) pairs, Q the rows
that occur in such pairs.

Two promises hold throughout. A row's result has the same bits in any batch: whatever adds up a row
does so in an order that depends on the row alone (`cumsum` and `log_softmax`; never `sum`, which
splits a lone row over threads). And tokens have one total order, value falling, then id rising, so
that ties are settled in the same way by the argmax, the filters, the top list and the rank.
"""

from kernels.sampling.adjust import NOTHING, Bias, Masks, Penalties, adjust
from kernels.sampling.bans import ban, keep_only
from kernels.sampling.draw import (
    MAX_CANDIDATES,
    DrawParams,
    draw_greedy,
    draw_nucleus,
    draw_top,
    draw_whole,
)
from kernels.sampling.dry import advance_matches, penalise_repeats, suffix_matches
from kernels.sampling.order import rank, top
from kernels.sampling.penalties import penalise_presence_frequency, penalise_repetition
from kernels.sampling.philox import philox4x32, uniform
from kernels.sampling.xtc import exclude_top

__all__ = [
    "MAX_CANDIDATES",
    "NOTHING",
    "Bias",
    "DrawParams",
    "Masks",
    "Penalties",
    "adjust",
    "advance_matches",
    "ban",
    "draw_greedy",
    "draw_nucleus",
    "draw_top",
    "draw_whole",
    "exclude_top",
    "keep_only",
    "penalise_presence_frequency",
    "penalise_repeats",
    "penalise_repetition",
    "philox4x32",
    "rank",
    "suffix_matches",
    "top",
    "uniform",
]
