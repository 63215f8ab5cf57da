"""DRY of a sequence that grows, against llama.cpp's way of doing it anew at every token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request import SamplingParams
from engine.runner.device import CpuDevice
from engine.runner.dry import Dry

REAL = 6
Breakers = dict[int, list[list[int]]]  # head -> tails


def naive_penalties(
    ids: list[int], last_n: int, allowed: int, breakers: Breakers
) -> dict[int, int]:
    """Token -> exponent, step by step as `llama_sampler_dry_apply` goes, but for its Z-algorithm.

    `recent[i]` is the token i places from the end.
    """
    recent = ids[::-1][: len(ids) if last_n == -1 else last_n]
    num = len(recent)
    if num <= allowed:
        return {}
    limit = num
    for i in range(num):
        longest = -1
        for tail in breakers.get(recent[i], []):
            if longest < len(tail) <= i and all(
                recent[i - 1 - offset] == token for offset, token in enumerate(tail)
            ):
                longest = len(tail)
        if longest >= 0:
            limit = i - longest
            break
    if limit < allowed:
        return {}
    found: dict[int, int] = {}
    for k in range(1, num):
        length = 0
        while length + k < num and recent[length] == recent[length + k]:
            length += 1
        length = min(length, limit)
        if length >= allowed:
            token = recent[k - 1]
            found[token] = max(found.get(token, 0), length)
    return {
        token: length - allowed
        for token, length in found.items()
        if [] not in breakers.get(token, [])
    }


def exponents(dry: Dry) -> dict[int, int]:
    """What `dry` penalises now, with multiplier 1 and base 2."""
    logits_V = torch.zeros(REAL)
    dry.penalise(logits_V)
    return {v: round((-logits_V[v]).log2().item()) for v in range(REAL) if logits_V[v]}


tokens = st.integers(0, 3)


@given(
    st.lists(tokens, min_size=1, max_size=30),
    st.lists(tokens, max_size=30),
    st.sampled_from([-1, -1, 1, 3, 8, 20]),
    st.integers(0, 3),
    st.lists(st.lists(tokens, min_size=1, max_size=4), max_size=4),
)
@settings(deadline=None, max_examples=300)
def test_a_growing_sequence_against_the_naive_way(
    prompt: list[int], more: list[int], last_n: int, allowed: int, sequences: list[list[int]]
) -> None:
    breakers: Breakers = {}
    for head, *tail in sequences:
        breakers.setdefault(head, []).append(tail)
    sampling = SamplingParams(
        max_tokens=99,
        seed=0,
        dry_multiplier=1.0,
        dry_base=2.0,
        dry_allowed_length=allowed,
        dry_last_n=last_n,
        dry_breaker_ids=tuple(s[0] for s in sequences if len(s) == 1),
        dry_breakers=tuple(tuple(s) for s in sequences if len(s) > 1),
    )

    def start(ids: list[int]) -> Dry:
        return Dry(sampling, tuple(ids), num_real_tokens=REAL, device=CpuDevice())

    ids = list(prompt)
    dry = start(ids)
    assert exponents(dry) == naive_penalties(ids, last_n, allowed, breakers)
    for token in more:
        ids.append(token)
        dry.append(torch.tensor([token]))
        expected = naive_penalties(ids, last_n, allowed, breakers)
        assert exponents(dry) == expected
        assert exponents(start(ids)) == expected


@pytest.mark.parametrize("last_n", [-1, 50])
def test_it_goes_on_past_the_room_it_began_with(last_n: int) -> None:
    sampling = SamplingParams(
        max_tokens=999, seed=0, dry_multiplier=1.0, dry_base=1.01, dry_last_n=last_n
    )
    ids = [0, 1, 2]
    dry = Dry(sampling, tuple(ids), num_real_tokens=REAL, device=CpuDevice())
    for step in range(900):
        ids.append((step * step) % 3)
        dry.append(torch.tensor([ids[-1]]))
    again = Dry(sampling, tuple(ids), num_real_tokens=REAL, device=CpuDevice())
    one_V, other_V = torch.zeros(REAL), torch.zeros(REAL)
    dry.penalise(one_V)
    again.penalise(other_V)
    assert torch.equal(one_V, other_V)
    assert one_V.min() < -(1.01**20)
