"""Looking up tokens in a whole vocabulary and in a part of it."""

import torch

from kernels.embedding import embed


def test_every_part_of_the_vocabulary_brings_its_rows(dtype: torch.dtype) -> None:
    embedding_VD = torch.randn(24, 10).to(dtype)
    token_id_T = torch.tensor([0, 23, 7, 8, 7, 15, 16])
    whole_TD = embed(token_id_T, embedding_VD)
    assert torch.equal(whole_TD, embedding_VD[token_id_T])
    parts = [embed(token_id_T, embedding_VD[i : i + 8], i) for i in (0, 8, 16)]
    assert torch.equal(parts[0] + parts[1] + parts[2], whole_TD)
    for first_id, part_TD in zip((0, 8, 16), parts, strict=True):
        elsewhere_T = (token_id_T < first_id) | (token_id_T >= first_id + 8)
        assert not part_TD[elsewhere_T].any()


def test_no_tokens(dtype: torch.dtype) -> None:
    embedding_VD = torch.randn(24, 10).to(dtype)
    assert embed(torch.empty(0, dtype=torch.int64), embedding_VD).shape == (0, 10)
