"""Every draw function against one token-by-token reference in Python floats."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from kernels.sampling import (
    MAX_CANDIDATES,
    DrawParams,
    draw_nucleus,
    draw_top,
    draw_whole,
    uniform,
)

Draw = Callable[[torch.Tensor, DrawParams], torch.Tensor]


def params(
    rows: int,
    *,
    temperature: float = 1.0,
    top_k: int = 1 << 40,
    top_p: float = 1.0,
    min_p: float = 0.0,
    uniform_R: torch.Tensor | None = None,
) -> DrawParams:
    def full(value: float) -> torch.Tensor:
        return torch.full((rows,), value, dtype=torch.float64)

    return DrawParams(
        temperature_R=full(temperature),
        top_k_R=torch.full((rows,), top_k),
        top_p_R=full(top_p),
        min_p_R=full(min_p),
        uniform_R=full(0.5) if uniform_R is None else uniform_R,
    )


def draw_sorted(logits_RV: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """All filters by a sort of the whole row."""
    return draw_top(logits_RV, params, num_candidates=logits_RV.shape[-1])


class TooClose(Exception):
    """Rounding would decide: the reference has no opinion."""


def reference_weights(
    row: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> dict[int, float]:
    """What is left of a row, in order."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    weights = {i: math.exp((row[i] - row[order[0]]) / temperature) for i in order[:top_k]}
    mass = sum(weights.values())
    before, kept = 0.0, dict[int, float]()
    for i, weight in weights.items():
        if abs(before - top_p * mass) < 1e-5 * mass or (weight < 1 and abs(weight - min_p) < 1e-5):
            raise TooClose
        if before < top_p * mass and weight >= min_p:
            kept[i] = weight
        before += weight
    return kept


def reference_draw(kept: dict[int, float], number: float) -> int:
    target, running = number * sum(kept.values()), 0.0
    for i in sorted(kept):
        running += kept[i]
        if abs(running - target) < 1e-5:
            raise TooClose
        if running > target:
            return i
    raise AssertionError("the target lies below the total")


LOGITS = st.integers(2, 24).flatmap(
    lambda v: st.lists(
        st.one_of(st.integers(-20, 20).map(lambda i: i / 4), st.just(-math.inf)),
        min_size=v,
        max_size=v,
    )
)


@given(
    LOGITS,
    st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    st.integers(1, 30),
    st.one_of(st.just(2.0), st.floats(0.01, 0.999)),
    st.one_of(st.just(-1.0), st.floats(0.001, 1.0)),
    st.floats(0.001, 0.999),
)
@settings(deadline=None, max_examples=300)
def test_draws_against_the_reference(
    row: list[float], temperature: float, top_k: int, top_p: float, min_p: float, number: float
) -> None:
    assume(max(row) > -math.inf)
    logits_RV = torch.tensor([row, row[::-1], row])
    number_R = torch.tensor([number, 0.5, 1 - number], dtype=torch.float64)

    def check(draw: Draw, top_k: int, top_p: float) -> None:
        try:
            kept = reference_weights(row, temperature, top_k, top_p, min_p)
            expected = reference_draw(kept, number)
        except TooClose:
            reject()
        drawn_R = draw(
            logits_RV,
            params(
                3,
                temperature=temperature,
                top_k=top_k,
                top_p=min(top_p, 1.0),
                min_p=max(min_p, 0.0),
                uniform_R=number_R,
            ),
        )
        assert drawn_R[0] == expected

    everything = len(row)
    check(lambda x, p: draw_top(x, p, num_candidates=top_k), top_k, top_p)
    check(lambda x, p: draw_top(x, p, num_candidates=top_k + 3), top_k, top_p)
    check(draw_sorted, everything + 1, top_p)
    check(draw_whole, everything, 2.0)
    for num_candidates in (1, 4, 1024):
        check(
            lambda x, p, n=num_candidates: draw_nucleus(x, p, num_candidates=n),  # type: ignore[misc]
            everything,
            top_p,
        )


@pytest.mark.parametrize(
    ("draw", "options"),
    [
        (draw_whole, {}),
        (draw_whole, {"temperature": 1.6, "min_p": 0.05}),
        (draw_sorted, {"temperature": 0.8, "top_k": 9, "top_p": 0.9}),
        (lambda x, p: draw_top(x, p, num_candidates=16), {"top_k": 12, "temperature": 1.3}),
        (draw_nucleus, {"top_p": 0.85}),
        (lambda x, p: draw_nucleus(x, p, num_candidates=2), {"top_p": 0.85}),
    ],
)
def test_frequencies_are_the_probabilities(draw: Draw, options: dict[str, float]) -> None:
    n = 6_000
    row_V = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 1.5
    number_R = uniform(torch.tensor([[11, 0]]).expand(n, 2), torch.arange(n))
    token_R = draw(row_V.expand(n, 40), params(n, uniform_R=number_R, **options))  # type: ignore[arg-type]
    full = {"temperature": 1.0, "top_k": 40, "top_p": 2.0, "min_p": -1.0} | options
    kept = reference_weights(row_V.tolist(), **full)  # type: ignore[arg-type]
    counts = torch.bincount(token_R, minlength=40)
    assert set(counts.nonzero().flatten().tolist()) <= set(kept)
    total = sum(kept.values())
    common = {i: w for i, w in kept.items() if n * w / total >= 5}
    chi_square = sum(
        (counts[i].item() - n * w / total) ** 2 / (n * w / total) for i, w in common.items()
    )
    freedom = len(common)
    assert freedom >= 5
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)  # five standard deviations


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_draws_the_same_token_alone_and_in_a_crowd(threads: int) -> None:
    g = torch.Generator().manual_seed(5)
    logits_RV = (torch.randn(6, 100_003, generator=g) * 3).bfloat16().float()
    number_R = torch.rand(6, generator=g, dtype=torch.float64)
    draws: list[tuple[Draw, DrawParams]] = [
        (lambda x, p: draw_top(x, p, num_candidates=int(p.top_k_R.max())), params(6, top_p=0.95)),
        (draw_nucleus, params(6, top_p=0.9)),
        (draw_nucleus, params(6, top_p=0.9999)),
        (draw_whole, params(6, min_p=1e-6)),
        (draw_sorted, params(6, top_p=0.999)),
    ]
    top_k_R = torch.tensor([1, 20, 50, 1024, 333, 5])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for draw, p in draws:
            p = DrawParams(p.temperature_R, top_k_R, p.top_p_R, p.min_p_R, number_R)
            if draw is draw_sorted:
                p = DrawParams(p.temperature_R, 1000 * top_k_R, p.top_p_R, p.min_p_R, number_R)
            together_R = draw(logits_RV, p)
            for rows in ([0], [5], [3, 1], [4, 2, 0]):
                index = torch.tensor(rows)
                assert torch.equal(draw(logits_RV[index], p[index]), together_R[index])
    finally:
        torch.set_num_threads(before)


def test_what_the_promise_to_single_rows_rests_on() -> None:
    # `exp` and `cumsum` give an element the same bits wherever it lies; `sum` would not.
    x = -torch.rand(70_000, generator=torch.Generator().manual_seed(6)) * 30
    whole = x.exp()
    for start, length in ((0, 1), (1, 7), (3, 33), (5, 1000), (11, 65_537)):
        assert torch.equal(x[start : start + length].clone().exp(), whole[start : start + length])
    rows = whole.view(7, -1)
    sums = rows.cumsum(dim=-1, dtype=torch.float64)
    for r in range(7):
        assert torch.equal(rows[r : r + 1].cumsum(dim=-1, dtype=torch.float64), sums[r : r + 1])
        assert torch.equal(rows[r : r + 1, :99].cumsum(-1, dtype=torch.float64)[0], sums[r, :99])


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1.0, 1e30])
@pytest.mark.parametrize("number", [2.0**-53, 0.5, 1 - 2.0**-53])
def test_extremes_draw_a_token_that_is_not_banned(temperature: float, number: float) -> None:
    rows = {
        "all but one banned": [-math.inf] * 7 + [-1e30] + [-math.inf] * 4,
        "two left, one far below": [-math.inf, 1e31, -math.inf, -1e31] + [-math.inf] * 8,
        "all equal": [3.0] * 12,
        "huge": [1e31 * (i % 3 - 1) for i in range(12)],
    }
    logits_RV = torch.tensor(list(rows.values()))
    number_R = torch.full((len(rows),), number, dtype=torch.float64)
    for top_p, min_p in ((1.0, 0.0), (1e-9, 0.0), (1 - 1e-9, 1.0), (0.5, 1e-9)):
        p = params(
            len(rows),
            temperature=temperature,
            top_k=3,
            top_p=top_p,
            min_p=min_p,
            uniform_R=number_R,
        )
        for draw in (draw_whole, draw_sorted, draw_nucleus):
            drawn_R = draw(logits_RV, p)
            assert bool((logits_RV.gather(1, drawn_R[:, None]) > -torch.inf).all())
            assert drawn_R[0] == 7
        top_R = draw_top(logits_RV, p, num_candidates=3)
        assert top_R[0] == 7
        if temperature <= 1:
            assert top_R[1] == 1
            assert logits_RV[3, top_R[3]] == 1e31


def test_broken_logits_stay_in_range() -> None:
    logits_RV = torch.full((3, 9), math.nan)
    logits_RV[1] = math.inf
    logits_RV[2, 4] = math.inf
    for draw in (draw_whole, draw_sorted, draw_nucleus):
        drawn_R = draw(logits_RV, params(3, top_p=0.9))
        assert bool(((drawn_R >= 0) & (drawn_R < 9)).all())


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.97, 0.99999, 1 - 1e-12])
def test_wide_nuclei_are_those_of_a_full_sort(top_p: float) -> None:
    # flat rows need far more candidates than there are, peaked ones a handful; and rows of ties
    g = torch.Generator().manual_seed(8)
    logits_RV = torch.randn(64, 3 * MAX_CANDIDATES, generator=g)
    logits_RV[1::4] *= 8
    logits_RV[2::4] = logits_RV[2::4].round()
    logits_RV[3::4, ::2] = -torch.inf
    number_R = torch.rand(64, generator=g, dtype=torch.float64)
    for min_p in (0.0, 0.01):
        p = params(64, top_p=top_p, min_p=min_p, uniform_R=number_R)
        assert torch.equal(draw_nucleus(logits_RV, p), draw_sorted(logits_RV, p))
