import math
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from kernels.sampling import (
    DrawParams,
    draw_greedy,
    draw_nucleus,
    draw_top,
    draw_whole,
    top,
    uniform,
)
from kernels.sampling.xtc import OFF
from tests.kernels.triton.outside import outside

WIDTHS = [1, 33, 9001]  # one part, or three
KINDS = ["whole", "nucleus", "top"]
LEAST, GREATEST = 2.0**-53, 1 - 2.0**-53  # what `uniform` can give

Draw = Callable[[torch.Tensor, DrawParams], torch.Tensor]


@pytest.fixture
def _row_is_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter pays by the operation, and a search looks at every tile some 50 times."""
    monkeypatch.setattr("kernels.sampling.gpu.draw.TILE", 16384)


def logits(num_rows: int, width: int, *, scale: float = 3.0, dtype: torch.dtype = torch.bfloat16):
    """fp32 with the ties that bf16 leaves."""
    return (torch.randn(num_rows, width) * scale).to(dtype).float()


def params(num_rows: int, **given: object) -> DrawParams:
    """Parameters as columns of a table, as the runner keeps them."""
    table_RF = torch.empty(num_rows, 5, dtype=torch.float64)
    table_RF[:] = torch.tensor([1.0, 1.0, 0.0, 0.5, OFF])
    names = ("temperature_R", "top_p_R", "min_p_R", "uniform_R", "xtc_threshold_R")
    for column, name in enumerate(names):
        if name in given:
            table_RF[:, column] = torch.as_tensor(given[name], dtype=torch.float64)
    columns = dict(zip(names, table_RF.unbind(-1), strict=True))
    if "xtc_threshold_R" not in given:
        del columns["xtc_threshold_R"]
    top_k_R = torch.as_tensor(given.get("top_k_R", 1 << 30)).expand(num_rows)
    return DrawParams(top_k_R=top_k_R.clone(), **columns)


def moved(params: DrawParams, device: torch.device) -> DrawParams:
    values = {field.name: getattr(params, field.name) for field in fields(params)}
    return DrawParams(**{name: x if x is None else x.to(device) for name, x in values.items()})


def assert_same(
    draw: Draw, logits_RV: torch.Tensor, params: DrawParams, device: torch.device
) -> torch.Tensor:
    """The kernel's tokens, which must be the reference's, and the same for each row alone."""
    expected_R = outside(draw, logits_RV.clone(), params)
    token_R = draw(logits_RV.to(device), moved(params, device)).cpu()
    assert token_R.tolist() == expected_R.tolist()
    last = slice(len(logits_RV) - 1, None)
    alone_R = draw(logits_RV[last].to(device), moved(params[last], device)).cpu()
    assert alone_R.tolist() == token_R[last].tolist()
    return token_R


def top_of(num_candidates: int) -> Draw:
    return lambda logits_RV, params: draw_top(logits_RV, params, num_candidates)


@pytest.mark.parametrize("num_rows", [0, 1, 127, 129])
@pytest.mark.parametrize("stream", [0, 1])
def test_uniform_numbers_are_the_same_to_the_bit(
    device: torch.device, num_rows: int, stream: int
) -> None:
    key_R2 = torch.randint(0, 1 << 32, (num_rows, 2))
    position_R = torch.randint(0, 1 << 32, (num_rows,))
    expected_R = outside(uniform, key_R2, position_R, stream=stream)
    found_R = uniform(key_R2.to(device), position_R.to(device), stream=stream)
    assert torch.equal(found_R.cpu(), expected_R)


@pytest.mark.parametrize("width", WIDTHS)
def test_greedy_takes_the_first_of_the_greatest(device: torch.device, width: int) -> None:
    logits_RV = logits(5, width, scale=0.05)
    logits_RV[0] = -1.0
    logits_RV[1, width // 2 :] = 0.0
    logits_RV[1, : width // 2] = -0.0  # equal, and before
    logits_RV[2] = -torch.inf
    logits_RV[2, width - 1] = -1e30
    token_R = draw_greedy(logits_RV.to(device)).cpu()
    assert token_R.tolist() == outside(draw_greedy, logits_RV).tolist()
    assert token_R[:3].tolist() == [0, 0, width - 1]


def test_rows_may_be_part_of_wider_ones(device: torch.device) -> None:
    wide_RV = logits(3, 4200)
    wide_RV[:, 4100:] = 1e9
    part_RV = wide_RV.to(device)[:, :4100]
    assert draw_greedy(part_RV).tolist() == wide_RV[:, :4100].argmax(dim=-1).tolist()
    whole = moved(params(3, uniform_R=GREATEST), device)
    assert all(token < 4100 for token in draw_whole(part_RV, whole).tolist())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("xtc", [False, True])
def test_few_candidates(device: torch.device, width: int, xtc: bool) -> None:
    R = 6
    logits_RV = logits(R, width)
    logits_RV[1, 1::2] = -torch.inf
    logits_RV[2] = 0.0  # all tie
    given = {"xtc_threshold_R": torch.rand(R) * 0.2} if xtc else {}
    draws = params(
        R,
        temperature_R=torch.rand(R) * 2 + 0.05,
        top_k_R=torch.randint(1, 33, (R,)).clamp(max=width),
        top_p_R=torch.rand(R) * 0.9 + 0.1,
        min_p_R=torch.rand(R) * 0.1,
        uniform_R=torch.rand(R),
        **given,
    )
    assert_same(top_of(32), logits_RV, draws, device)


@pytest.mark.usefixtures("_row_is_one_tile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_candidates(device: torch.device, dtype: torch.dtype) -> None:
    """Parts hold the first 40 in full, and not the first 5,000."""
    draws = params(
        3,
        top_k_R=torch.tensor([40, 777, 5000]),
        top_p_R=torch.tensor([0.9, 1, 0.99]),
        uniform_R=torch.rand(3),
    )
    logits_RV = logits(3, 9001, scale=1.0, dtype=dtype)
    assert_same(top_of(9001), logits_RV, draws, device)


@pytest.mark.usefixtures("_row_is_one_tile")
@pytest.mark.parametrize("width", WIDTHS)
def test_nucleus(device: torch.device, width: int) -> None:
    """A flat row is left to the third launch, a peaked one is not."""
    R = 6
    logits_RV = logits(R, width, scale=4.0)
    logits_RV[0] /= 10
    logits_RV[1, 1::3] = -torch.inf
    draws = params(
        R,
        temperature_R=torch.rand(R) + 0.3,
        top_p_R=torch.rand(R) * 0.9 + 0.1,
        min_p_R=torch.tensor([0, 0, 0, 0, 0.2, 0.001]),
        uniform_R=torch.rand(R),
    )
    assert_same(draw_nucleus, logits_RV, draws, device)


@pytest.mark.usefixtures("_row_is_one_tile")
def test_a_nucleus_of_ties_ends_within_them(device: torch.device) -> None:
    draws = params(2, top_p_R=torch.tensor([0.25, 1.0]), uniform_R=GREATEST)
    token_R = assert_same(draw_nucleus, torch.zeros(2, 8192), draws, device)
    assert token_R.tolist() == [2047, 8191]


@pytest.mark.parametrize("width", WIDTHS)
def test_whole_rows(device: torch.device, width: int) -> None:
    R = 8
    logits_RV = logits(R, width)
    logits_RV[1, ::2] = -torch.inf
    logits_RV[1, 0] = -20
    draws = params(
        R,
        temperature_R=torch.tensor([1, 1, 0.5, 2, 1e-30, 1e30, 1, 1]),
        min_p_R=torch.tensor([0, 0, 0.1, 0.01, 0, 0, 1, 0.5]),
        uniform_R=torch.tensor([LEAST, GREATEST, *torch.rand(6).tolist()]),
    )
    assert_same(draw_whole, logits_RV, draws, device)


@pytest.mark.usefixtures("_row_is_one_tile")
@pytest.mark.parametrize("draw", [draw_whole, draw_nucleus], ids=["whole", "nucleus"])
def test_the_top_choices_are_dropped(device: torch.device, draw: Draw) -> None:
    logits_RV = logits(6, 4500)
    logits_RV[0, :3] = 12.0  # three tie
    logits_RV[1, 7] = 40.0  # one alone
    logits_RV[2] /= 10  # not settled by its parts
    draws = params(
        6,
        top_p_R=torch.tensor([1, 0.9, 0.999, 0.95, 0.7, 0.5]) if draw is draw_nucleus else 1.0,
        min_p_R=torch.tensor([0, 0, 0.001, 0, 0, 0]),
        uniform_R=torch.rand(6),
        xtc_threshold_R=torch.tensor([0.1, 0.5, 1e-3, 0.0, OFF, 0.2]),
    )
    assert_same(draw, logits_RV, draws, device)


@pytest.mark.usefixtures("_row_is_one_tile")
@pytest.mark.parametrize("draw", [draw_whole, draw_nucleus, top_of(5)], ids=KINDS)
def test_tokens_without_weight_are_never_drawn(device: torch.device, draw: Draw) -> None:
    logits_RV = torch.full((4, 4500), -torch.inf)
    logits_RV[:, 4400] = 1.0
    logits_RV[:, 100] = -200.0  # its weight is 0 in fp32
    logits_RV[1:, 2000] = 0.5
    draws = params(4, top_k_R=3, uniform_R=torch.tensor([LEAST, LEAST, GREATEST, 0.5]))
    token_R = assert_same(draw, logits_RV, draws, device)
    assert token_R[:3].tolist() == [4400, 2000, 4400]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, about the NaNs
@pytest.mark.usefixtures("_row_is_one_tile")
@pytest.mark.parametrize("draw", [draw_whole, draw_nucleus, top_of(5)], ids=KINDS)
def test_nan_logits_still_give_an_id(device: torch.device, draw: Draw) -> None:
    logits_RV = torch.full((2, 4500), math.nan)
    logits_RV[1] = torch.randn(4500)
    logits_RV[1, 17] = math.nan
    draws = params(2, top_k_R=5, top_p_R=0.9)
    for token in draw(logits_RV.to(device), moved(draws, device)).tolist():
        assert 0 <= token < 4500


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("k", [1, 20, 32, 33])
def test_top_settles_ties_by_id(device: torch.device, width: int, k: int) -> None:
    logits_RV = logits(4, width, scale=0.5)
    logits_RV[1] = -1.0
    logits_RV[2, width // 2 :] = -torch.inf
    value_RK, id_RK = top(logits_RV.to(device), k)
    expected_value_RK, expected_id_RK = outside(top, logits_RV, k)
    assert torch.equal(value_RK.cpu(), expected_value_RK)
    assert torch.equal(id_RK.cpu(), expected_id_RK)
