"""What an embedding look-up means. On a CPU there is nothing faster."""

import torch


def embed(token_id_T: torch.Tensor, embedding_VD: torch.Tensor, first_id: int) -> torch.Tensor:
    row_T = token_id_T - first_id
    outside_T = (row_T < 0) | (row_T >= embedding_VD.shape[0])
    x_TD = embedding_VD[row_T.masked_fill(outside_T, 0)]
    return x_TD.masked_fill_(outside_T[:, None], 0)
