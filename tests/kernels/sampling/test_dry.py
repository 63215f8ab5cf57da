"""DRY against brute force: matches by comparing everything, penalties token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.sampling import advance_matches, penalise_repeats, suffix_matches
from kernels.sampling.dry import MAX_PENALTY

VOCAB = 8
few_ids = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def naive_match(ids: list[int], i: int) -> int:
    """Tokens up to and with ids[i] that equal the end of ids."""
    length = 0
    while length <= i and ids[i - length] == ids[-1 - length]:
        length += 1
    return length


@given(few_ids)
@settings(deadline=None)
def test_matches_are_the_longest_common_suffixes(ids: list[int]) -> None:
    assert suffix_matches(ids) == [naive_match(ids, i) for i in range(len(ids))]


def test_a_long_repetition_takes_linear_time() -> None:
    class Counting(int):
        num = 0

        def __eq__(self, other: object) -> bool:
            Counting.num += 1
            return int(self) == other

        __hash__ = int.__hash__

    ids = [Counting(i % 2) for i in range(4000)]
    assert suffix_matches(ids)[-3] == 3998
    assert Counting.num < 3 * len(ids)


def test_the_example_of_llama_cpp() -> None:
    """Its comment shows: a b c c b c y a b c -> 0 0 3 1 0 2 0 0 0."""
    assert suffix_matches("abccbcyabc")[:-1] == [0, 0, 3, 1, 0, 2, 0, 0, 0]


@given(few_ids, few_ids)
@settings(deadline=None)
def test_matches_that_follow_the_tokens_are_the_same(ids: list[int], more: list[int]) -> None:
    match_T = torch.tensor(suffix_matches(ids), dtype=torch.int32)
    for token in more:
        ids = [*ids, token]
        match_T = torch.cat((match_T, torch.zeros(1, dtype=torch.int32)))
        advance_matches(match_T, torch.tensor(ids))
        assert match_T.tolist() == suffix_matches(ids)


@given(
    few_ids,
    st.integers(0, 61),
    st.integers(0, 5),
    st.sampled_from([1.0, 1.0000001, 1.75, 4.0]),
    st.sets(st.integers(0, VOCAB - 1)),
)
@settings(deadline=None, max_examples=200)
def test_penalties_against_brute_force(
    ids: list[int], since_break: int, allowed: int, base: float, breakers: set[int]
) -> None:
    lengths: dict[int, int] = {}
    for i in range(len(ids) - 1):
        length = min(naive_match(ids, i), since_break)
        if length >= allowed and len(ids) > allowed and ids[i + 1] not in breakers:
            lengths[ids[i + 1]] = max(length, lengths.get(ids[i + 1], 0))
    logits_V = torch.linspace(-2, 2, VOCAB)
    expected = [
        x - (0.8 * base ** (lengths[v] - allowed) if v in lengths else 0)
        for v, x in enumerate(logits_V.double().tolist())
    ]
    breaks_V = torch.zeros(VOCAB, dtype=torch.bool)
    breaks_V[list(breakers)] = True
    penalise_repeats(
        logits_V,
        torch.tensor(ids, dtype=torch.int32),
        torch.tensor(suffix_matches(ids), dtype=torch.int32),
        since_break,
        multiplier=0.8,
        base=base,
        allowed_length=allowed,
        breaks_V=breaks_V if breakers else None,
    )
    assert logits_V.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_penalties_stay_finite_and_bans_stay_bans() -> None:
    ids = [1, 2] * 400
    logits_V = torch.zeros(VOCAB)
    logits_V[2] = -torch.inf
    for token in (ids, ids[:-1]):
        penalise_repeats(
            logits_V,
            torch.tensor(token),
            torch.tensor(suffix_matches(token)),
            len(token),
            multiplier=100.0,
            base=100.0,
            allowed_length=0,
            breaks_V=None,
        )
    assert logits_V[1] == pytest.approx(-MAX_PENALTY)
    assert logits_V[2] == -torch.inf
    assert (logits_V[3:] == 0).all()


def test_ids_past_the_row_are_left_alone() -> None:
    ids = [VOCAB, VOCAB + 1] * 3
    logits_V = torch.arange(VOCAB).float()
    penalise_repeats(
        logits_V,
        torch.tensor(ids),
        torch.tensor(suffix_matches(ids)),
        len(ids),
        multiplier=1.0,
        base=2.0,
        allowed_length=1,
        breaks_V=torch.zeros(VOCAB, dtype=torch.bool),
    )
    assert logits_V.tolist() == list(range(VOCAB))
