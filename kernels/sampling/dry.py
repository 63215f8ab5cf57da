"""DRY ("don't repeat yourself"): tokens that would carry on a repetition lose logits.

By p-e-w (text-generation-webui, 2024), with the definition of llama.cpp's `llama_sampler_dry` and
koboldcpp. Look at the last `window` tokens of prompt and output. Where a stretch of them that ends
at position i equals the end of the whole, and is at least `allowed_length` long, the token after i
would make the repetition one longer, so it is penalised:

    x - multiplier * base ** (length - allowed_length)        for the greatest such length

A sequence breaker (a newline, say) ends a stretch: no length counts past the last breaker, and a
token that is a breaker itself is never penalised.

The lengths m[i], of the longest common suffix of ids[: i + 1] and ids, are found as llama.cpp does,
by the Z-algorithm on the reversed tokens, in linear time, but only once; from then on each token
updates them in one pass without a search, where they are, because

    m'[i] = m[i - 1] + 1 if ids[i] is the new token, else 0

Cutting them to the window and to the last breaker commutes with that, so it is done on reading.

T tokens in the window, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch

MAX_PENALTY = 1e30  # keeps fp32 logits finite, so that no row is ever without a token
_LOG_MAX_FP32 = 88.7228391  # llama.cpp's bound on base ** exponent


def suffix_matches(ids: Sequence[int]) -> list[int]:
    """The m of the module's docstring, in linear time; the last one is the number of tokens."""
    text = ids[::-1]
    num = len(text)
    match = [num] * num  # of the reversed tokens: the common prefix of text[k:] and text
    left = right = 0  # the stretch text[left:right] that reaches furthest right so far
    for k in range(1, num):
        length = min(right - k, match[k - left]) if k < right else 0
        while k + length < num and text[length] == text[k + length]:
            length += 1
        match[k] = length
        if k + length > right:
            left, right = k, k + length
    return match[::-1]


def advance_matches(match_T: torch.Tensor, id_T: torch.Tensor) -> None:
    """Update `match_T` in place for the token that has just become the last of `id_T`.

    The last element of `match_T` is not read; the first may have lost its predecessor.
    """
    extended_T = torch.ones_like(match_T)
    extended_T[1:] += match_T[:-1]
    match_T.copy_(extended_T.masked_fill_(id_T != id_T[-1], 0))


def penalise_repeats(
    logits_V: torch.Tensor,
    id_T: torch.Tensor,
    match_T: torch.Tensor,
    since_break: torch.Tensor | int,
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    breaks_V: torch.Tensor | None,
) -> None:
    """Penalise one row in place; `since_break` tokens follow the last breaker, or T of them.

    `breaks_V` says which tokens are breakers; None: none are. Ids from V on are left alone.
    """
    num = len(id_T)
    if num <= allowed_length:
        return
    next_T = id_T[1:].long()
    start_T = torch.arange(1, num, device=id_T.device)  # lengths end where the window begins
    length_T = torch.minimum(match_T[:-1], start_T)
    length_T = torch.minimum(length_T, torch.as_tensor(since_break, device=id_T.device))
    repeats_T = (length_T >= allowed_length) & (next_T < len(logits_V))
    next_T = next_T.clamp(max=len(logits_V) - 1)
    if breaks_V is not None:
        repeats_T &= ~breaks_V[next_T]
    excess_T = (length_T - allowed_length).clamp(min=0)
    if base > 1.000001:
        excess_T = excess_T.clamp(max=int(_LOG_MAX_FP32 / math.log(base)))
    penalty_T = (multiplier * base ** excess_T.double()).clamp_(max=MAX_PENALTY)
    penalised_T = logits_V[next_T] - penalty_T.masked_fill_(~repeats_T, 0).to(logits_V.dtype)
    logits_V.scatter_reduce_(0, next_T, penalised_T, "amin")
