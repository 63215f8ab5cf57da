"""Looking up tokens in Triton, in a whole vocabulary and in a part of it."""

import pytest
import torch

from kernels.embedding import embed, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("first_id", [0, 8, 16])
@pytest.mark.parametrize("D", [32, 33])
def test_triton_means_the_reference(
    D: int, first_id: int, dtype: torch.dtype, device: torch.device
) -> None:
    part_VD = torch.randn(8, D).to(dtype).to(device)
    token_id_T = torch.tensor([0, 23, 7, 8, 7, 15, 16, 999], device=device)
    x_TD = embed(token_id_T, part_VD, first_id)
    assert torch.equal(x_TD, reference.embed(token_id_T, part_VD, first_id))
    assert embed(token_id_T[:0], part_VD, first_id).shape == (0, D)
