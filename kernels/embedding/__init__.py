"""Token ids to rows of an embedding, of which this rank may hold a part of the vocabulary."""

import torch

from kernels.backend import uses_triton
from kernels.embedding import reference

__all__ = ["embed"]


def embed(token_id_T: torch.Tensor, embedding_VD: torch.Tensor, first_id: int = 0) -> torch.Tensor:
    """x_TD, where row i of `embedding_VD` belongs to token `first_id` + i; zeros for other ids."""
    if uses_triton(embedding_VD):
        from kernels.embedding import gpu

        return gpu.embed(token_id_T, embedding_VD, first_id)
    return reference.embed(token_id_T, embedding_VD, first_id)
