"""XTC against the definition: sort, walk down while the probability reaches the threshold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.sampling import (
    DrawParams,
    draw_nucleus,
    draw_top,
    draw_whole,
    exclude_top,
    uniform,
)
from kernels.sampling.xtc import OFF

weights = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 8.0]), min_size=2, max_size=12).filter(
    any
)
thresholds = st.sampled_from([0.0, 0.0625, 0.125, 0.25, 0.375, 0.5, OFF])  # exact, as the weights


def kept_by_definition(row: list[float], threshold: float) -> list[float]:
    order = sorted((i for i, w in enumerate(row) if w), key=lambda i: (-row[i], i))
    last = 0
    for place, i in enumerate(order):
        if row[i] < threshold * sum(row):
            break
        last = place
    return [w if i in order[last:] else 0.0 for i, w in enumerate(row)]


@given(weights, thresholds)
@settings(deadline=None, max_examples=300)
def test_against_the_definition(row: list[float], threshold: float) -> None:
    weight_RK = torch.tensor([row], dtype=torch.float64)
    exclude_top(weight_RK, torch.arange(len(row)), torch.tensor([threshold]))
    assert weight_RK.tolist() == [kept_by_definition(row, threshold)]


@given(st.lists(weights, min_size=1, max_size=6), st.permutations(range(12)))
@settings(deadline=None)
def test_a_row_depends_on_neither_its_batch_nor_its_layout(
    rows: list[list[float]], order: list[int]
) -> None:
    weight_RK = torch.tensor([[*row, *[0.0] * (12 - len(row))] for row in rows])
    threshold_R = torch.tensor([(0.0625, 0.25, OFF)[r % 3] for r in range(len(rows))])
    id_RK = torch.arange(12).expand(len(rows), 12)
    shuffled_RK, ids_RK = weight_RK[:, order], id_RK[:, order]
    expected = [
        kept_by_definition(row, t) for row, t in zip(rows, threshold_R.tolist(), strict=True)
    ]
    exclude_top(weight_RK, id_RK, threshold_R)
    exclude_top(shuffled_RK, ids_RK, threshold_R)
    assert torch.equal(weight_RK[:, order], shuffled_RK)
    for r, row in enumerate(expected):
        assert weight_RK[r, : len(row)].tolist() == row


def test_what_is_drawn_is_what_xtc_leaves_whatever_else_filters() -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.1: of the three from 0.15 up, only the third may come."""
    num = 400
    logits_RV = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(num, 4).contiguous()
    number_R = uniform(torch.zeros(num, 2, dtype=torch.int64), torch.arange(num))

    def params(top_k: int, top_p: float) -> DrawParams:
        def full(value: float) -> torch.Tensor:
            return torch.full((num,), value, dtype=torch.float64)

        return DrawParams(
            temperature_R=full(1.0),
            top_k_R=torch.full((num,), top_k),
            top_p_R=full(top_p),
            min_p_R=full(0.0),
            uniform_R=number_R,
            xtc_threshold_R=full(0.15),
        )

    assert set(draw_whole(logits_RV.clone(), params(4, 1.0)).tolist()) == {2, 3}
    assert set(draw_top(logits_RV.clone(), params(4, 1.0), 4).tolist()) == {2, 3}
    # After top_k 2 (and after top_p 0.6) two tokens are left, and both reach the threshold.
    assert set(draw_top(logits_RV.clone(), params(2, 1.0), 2).tolist()) == {1}
    assert set(draw_nucleus(logits_RV.clone(), params(4, 0.6), 4).tolist()) == {1}
    assert set(draw_nucleus(logits_RV.clone(), params(4, 0.6), 1).tolist()) == {1}
    off = params(4, 1.0)
    plain = DrawParams(
        off.temperature_R, off.top_k_R, off.top_p_R, off.min_p_R, off.uniform_R, None
    )
    assert set(draw_whole(logits_RV.clone(), plain).tolist()) == {0, 1, 2, 3}


def test_streams_of_random_numbers_are_different_and_repeat() -> None:
    key_R2 = torch.zeros(1000, 2, dtype=torch.int64)
    position_R = torch.arange(1000)
    draws, chances = uniform(key_R2, position_R), uniform(key_R2, position_R, stream=1)
    assert torch.equal(chances, uniform(key_R2, position_R, stream=1))
    assert not (draws == chances).any()
    together = torch.stack((draws, chances))
    assert abs(torch.corrcoef(together)[0, 1].item()) < 0.1
    assert chances.mean().item() == pytest.approx(0.5, abs=0.05)
