"""Masks, bans, penalties and bias: what happens to logits before a token is drawn from them."""

import pytest
import torch

from kernels.sampling import NOTHING, Bias, Masks, Penalties, adjust, ban, keep_only
from tests.kernels.triton.outside import outside

WIDTHS = [1, 33, 2048, 5001]


def mask(num_rows: int, width: int) -> torch.Tensor:
    words = torch.randint(-(1 << 31), 1 << 31, (num_rows, (width + 31) // 32 + 1))
    return words.to(torch.int32)


@pytest.mark.parametrize("function", [ban, keep_only])
@pytest.mark.parametrize("width", WIDTHS)
def test_bans(device: torch.device, function: object, width: int) -> None:
    assert callable(function)
    logits_RV = torch.randn(5, width)
    row_N = torch.randint(0, 4, (300,))  # row 4 has none; pairs repeat
    id_N = torch.randint(0, width, (300,))
    expected_RV = logits_RV.clone()
    outside(function, expected_RV, row_N, id_N)
    found_RV = logits_RV.to(device)
    function(found_RV, row_N.to(device), id_N.to(device))
    assert torch.equal(found_RV.cpu(), expected_RV)
    function(found_RV, row_N[:0].to(device), id_N[:0].to(device))
    assert torch.equal(found_RV.cpu(), expected_RV)


@pytest.mark.parametrize("function", [ban, keep_only])
def test_bans_that_would_leave_nothing_are_not_applied(
    device: torch.device, function: object
) -> None:
    assert callable(function)
    logits_RV = torch.full((3, 5001), -torch.inf)
    logits_RV[0, [2, 5000]] = torch.tensor([1.0, 2.0])
    logits_RV[1, [7, 5000]] = torch.tensor([3.0, 4.0])
    logits_RV[2] = 0.0
    pairs = [(0, 2), (0, 5000), (0, 5000), (1, 7), (2, 3)]
    if function is keep_only:
        pairs = [(0, 4), (0, 3), (1, 7), (1, 8), (2, 3)]
    row_N, id_N = torch.tensor(pairs).unbind(-1)
    expected_RV = logits_RV.clone()
    outside(function, expected_RV, row_N, id_N)
    assert torch.equal(expected_RV[0], logits_RV[0])
    found_RV = logits_RV.to(device)
    function(found_RV, row_N.to(device), id_N.to(device))
    assert torch.equal(found_RV.cpu(), expected_RV)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "parts", [("penalties",), ("masks",), ("bias",), ("penalties", "masks", "bias")]
)
def test_all_in_one_pass(device: torch.device, width: int, parts: tuple[str, ...]) -> None:
    R = 4
    logits_RV = torch.randn(R, width) * 5
    tally_KV = torch.randint(0, 7, (3, width), dtype=torch.int32)
    number_RF = torch.rand(R, 3, dtype=torch.float64) + 0.5
    ids = [torch.randperm(width)[:n] for n in (0, 200, 1, 3)]
    offset_R1 = torch.tensor([0, *(len(some) for some in ids)]).cumsum(0)
    id_N = torch.cat(ids)

    def edits(device: torch.device) -> dict[str, object]:
        everything = {
            "penalties": Penalties(
                tally_KV.to(device),
                torch.tensor([2, NOTHING, 0, 2], device=device),
                *number_RF.to(device).unbind(-1),
            ),
            "masks": Masks(masks_QW.to(device), torch.tensor([NOTHING, 1, 0, NOTHING]).to(device)),
            "bias": Bias(offset_R1.to(device), id_N.to(device), bias_N.to(device)),
        }
        return {name: everything[name] for name in parts}

    masks_QW, bias_N = mask(2, width), torch.randn(len(id_N)) * 10
    expected_RV = logits_RV.clone()
    outside(adjust, expected_RV, **edits(torch.device("cpu")))
    found_RV = logits_RV.to(device)
    adjust(found_RV, **edits(device))
    # A GPU contracts x - frequency * count into one rounding.
    torch.testing.assert_close(found_RV.cpu(), expected_RV, rtol=1e-5, atol=1e-5)
    untouched = {"penalties": 1, "masks": 0, "bias": 0}
    if len(parts) == 1:
        row = untouched[parts[0]]
        assert torch.equal(found_RV[row].cpu(), logits_RV[row])
    adjust(found_RV)
