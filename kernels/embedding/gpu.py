# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
"""One program for each token."""

import torch
import triton
import triton.language as tl

from kernels.launch import Cost, launch


def embed(token_id_T: torch.Tensor, embedding_VD: torch.Tensor, first_id: int) -> torch.Tensor:
    (T,), (V, D) = token_id_T.shape, embedding_VD.shape
    x_TD = torch.empty(T, D, dtype=embedding_VD.dtype, device=embedding_VD.device)

    def cost() -> Cost:
        moved = 2 * T * D * x_TD.element_size() + T * token_id_T.element_size()
        return Cost(necessary_bytes=moved, moved_bytes=moved, flops=0)

    launch(
        _embed_kernel,
        (T,),
        token_id_T.contiguous(),
        embedding_VD,
        x_TD,
        cost=cost,
        num_warps=4,
        FIRST_ID=first_id,
        V=V,
        D=D,
        BLOCK_D=triton.next_power_of_2(D),
    )
    return x_TD


@triton.jit
def _embed_kernel(
    token_id,  # [T]
    embedding,  # [V, D]
    x,  # [T, D]
    FIRST_ID: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    row = tl.load(token_id + t).to(tl.int64) - FIRST_ID
    d = tl.arange(0, BLOCK_D)
    row_D = row + tl.zeros([BLOCK_D], dtype=tl.int64)  # the interpreter wants a mask of vectors
    here_D = (row_D >= 0) & (row_D < V) & (d < D)
    x_D = tl.load(embedding + row_D * D + d, mask=here_D, other=0.0)
    tl.store(x + t * D + d, x_D, mask=d < D)
