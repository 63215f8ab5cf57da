import pytest
import torch

from kernels.sampling.bitmask import keep_only_set_bits


def reference(logits_RV: torch.Tensor, rows: list[int], mask_QW: torch.Tensor) -> torch.Tensor:
    result_RV = logits_RV.clone()
    for q, r in enumerate(rows):
        for i in range(logits_RV.shape[1]):
            if not int(mask_QW[q, i // 32]) >> (i % 32) & 1:
                result_RV[r, i] = -torch.inf
    return result_RV


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 100, 256])
@pytest.mark.parametrize("rows", [[0], [2], [3, 0], [0, 1, 2, 3]])
def test_bans_what_has_no_bit(vocab: int, rows: list[int]):
    generator = torch.Generator().manual_seed(vocab)
    words = 8  # wider than the logits: padding rows of the embedding
    bits = torch.randint(-(2**31), 2**31, (len(rows), words), generator=generator)
    mask_QW = bits.to(torch.int32)
    logits_RV = torch.randn(4, vocab, generator=generator)
    expected = reference(logits_RV, rows, mask_QW)
    keep_only_set_bits(logits_RV, torch.tensor(rows), mask_QW)
    assert torch.equal(logits_RV, expected)


def test_one_row_alone_has_the_bits_of_one_in_a_crowd():
    mask_QW = torch.tensor([[0x5A5A5A5A, -1]], dtype=torch.int32)
    crowd_RV = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    alone_RV = crowd_RV[3:4].clone()
    keep_only_set_bits(crowd_RV, torch.tensor([3]), mask_QW)
    keep_only_set_bits(alone_RV, torch.tensor([0]), mask_QW)
    assert torch.equal(crowd_RV[3:4], alone_RV)


def test_refuses_a_mask_that_is_too_narrow():
    with pytest.raises(ValueError, match="does not fit"):
        keep_only_set_bits(
            torch.zeros(1, 65), torch.tensor([0]), torch.zeros(1, 2, dtype=torch.int32)
        )
