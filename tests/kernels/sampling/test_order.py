import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.sampling import draw_greedy, rank, top

NAN_FREE = st.sampled_from([-torch.inf, -3.0, -1.0, 0.0, 0.5, 2.0, 7.0])


def in_order(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


@given(
    st.integers(1, 12).flatmap(
        lambda v: st.lists(st.lists(NAN_FREE, min_size=v, max_size=v), min_size=1, max_size=4)
    ),
    st.integers(1, 14),
)
@settings(deadline=None)
def test_top_rank_and_argmax_share_one_order(rows: list[list[float]], k: int) -> None:
    value_RV = torch.tensor(rows)
    value_RK, id_RK = top(value_RV, k)
    for r, row in enumerate(rows):
        expected = in_order(row)
        assert id_RK[r].tolist() == expected[:k]
        assert value_RK[r].tolist() == [row[i] for i in expected[:k]]
        assert draw_greedy(value_RV)[r] == expected[0]
        for place, token in enumerate(expected):
            token_R = torch.full((len(rows),), token)
            assert rank(value_RV, token_R)[r] == place + 1


@pytest.mark.parametrize("threads", [1, 2])
def test_ties_in_a_wide_vocabulary_go_to_the_lowest_id(threads: int) -> None:
    value_RV = torch.zeros(3, 248_320)
    value_RV[:, [200_000, 777, 90_001]] = 5.0
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert draw_greedy(value_RV).tolist() == [777] * 3
        assert draw_greedy(value_RV[:1]).tolist() == [777]
        _, id_RK = top(value_RV, 5)
        assert id_RK.tolist() == [[777, 90_001, 200_000, 0, 1]] * 3
    finally:
        torch.set_num_threads(before)


def test_the_first_k_do_not_depend_on_how_many_are_asked_for() -> None:
    # bf16 logits tie often, and at every cut
    value_RV = torch.randn(4, 5000, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    _, many_RK = top(value_RV, 1024)
    for k in (1, 2, 20, 50, 333, 1023):
        assert torch.equal(top(value_RV, k)[1], many_RK[:, :k])
