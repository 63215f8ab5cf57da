import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.sampling import ban, keep_only, penalise_presence_frequency, penalise_repetition


@given(st.integers(0, 2**32), st.floats(0.2, 3), st.floats(-2, 2), st.floats(-2, 2))
@settings(deadline=None, max_examples=40)
def test_penalties_against_one_token_at_a_time(
    seed: int, repetition: float, presence: float, frequency: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(3, 9, generator=g)
    count_RV = torch.randint(0, 4, (3, 9), generator=g, dtype=torch.int32)
    seen_RV = (count_RV > 0) | (torch.rand(3, 9, generator=g) < 0.3)
    expected_RV = logits_RV.clone()
    for r in range(3):
        for v in range(9):
            x = logits_RV[r, v].item()
            if seen_RV[r, v]:
                x = x / repetition if x > 0 else x * repetition
            n = int(count_RV[r, v])
            expected_RV[r, v] = x - frequency * n - presence * (n > 0)
    penalise_repetition(logits_RV, seen_RV, torch.full((3,), repetition))
    penalise_presence_frequency(
        logits_RV, count_RV, torch.full((3,), presence), torch.full((3,), frequency)
    )
    torch.testing.assert_close(logits_RV, expected_RV, rtol=1e-6, atol=1e-6)


def test_neutral_penalties_change_no_bit() -> None:
    logits_RV = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    before_RV = logits_RV.clone()
    everything_RV = torch.ones(2, 50, dtype=torch.int32)
    penalise_repetition(logits_RV, everything_RV > 0, torch.ones(2))
    penalise_presence_frequency(logits_RV, everything_RV, torch.zeros(2), torch.zeros(2))
    assert torch.equal(logits_RV, before_RV)


pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=20)


@given(pairs, st.sets(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=8))
@settings(deadline=None)
def test_bans_and_keeps_never_leave_a_row_empty(
    pairs: list[tuple[int, int]], banned_before: set[tuple[int, int]]
) -> None:
    start_RV = torch.arange(15.0).view(3, 5)
    for r, v in banned_before:
        if v:  # id 0 stays: a row is never empty to begin with
            start_RV[r, v] = -torch.inf
    row_N = torch.tensor([r for r, _ in pairs])
    id_N = torch.tensor([v for _, v in pairs])
    banned_RV, kept_RV = start_RV.clone(), start_RV.clone()
    ban(banned_RV, row_N, id_N)
    keep_only(kept_RV, row_N, id_N)
    for r in range(3):
        named = {v for row, v in pairs if row == r}
        for result_RV, dropped in ((banned_RV, named), (kept_RV, set(range(5)) - named)):
            row = start_RV[r].tolist()
            left = [-torch.inf if v in dropped else x for v, x in enumerate(row)]
            if not named or max(left) == -torch.inf:
                left = row
            assert result_RV[r].tolist() == left
