"""Lessons of their own for two attention heads: which tool a request is for, and what it is called.

Learnt from the next token alone, choosing among tools stays at chance for as long as we can train:
the domain of a request is soon readable where the call begins, and the domain of a purpose where
the tool's name stands, but the product of query and key that brings them together gets no gradient
before one of the two is there. So heads of the last attention layer are supervised, as in Liu et
al., "Neural Machine Translation with Supervised Attention" (2016). One chooses: its query at a
choice and its key at a name both learn to be the code of their domain, and its scores to be highest
at a name of the chosen tool. One copies: wherever a name is said, its scores are to be highest
where the next token of that name was read. The model that comes out is an ordinary one.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from demo.network import Attention
from demo.tasks.domains import DOMAINS

NO_DOMAIN, NO_CHOICE = -1, -2


@dataclass(frozen=True, slots=True)
class Choices:
    """Where tools and their parameters are named in a batch.

    A name is what follows `<function` or `<parameter`, from the `=` on. Each of its tokens has a
    number, the same wherever it occurs in the row for the same tool. A tool is chosen by the tokens
    up to the first one that no other tool of its row shares.
    """

    named_BT: torch.Tensor  # int64: the number of this token, or 0
    kind_BT: torch.Tensor  # int64: the domain of the tool that this token chooses, or one of above
    answer_BT: torch.Tensor  # bool: the token is the model's to say


def domain_codes(width: int) -> torch.Tensor:
    """code_NE: a fixed direction of unit length for each of the N domains, in fp32."""
    made = torch.randn(len(DOMAINS), width, generator=torch.Generator().manual_seed(0))
    return functional.normalize(made, dim=-1)


def choosing_loss(
    attention: Attention, rotary: int, choices: Choices
) -> tuple[torch.Tensor, dict[str, float]]:
    """What the heads lose, and how often each looked at the right place (empty without names).

    `attention` has just run on the batch; the first `rotary` of its dimensions turn with the
    position and have no part in the codes. The heads have different keys.
    """
    query_BHTE, key_BGTE = attention.queries_and_keys
    named_BT, kind_BT = choices.named_BT, choices.kind_BT
    said_BT = (named_BT > 0) & choices.answer_BT
    row_S, next_S = said_BT.nonzero(as_tuple=True)
    if not len(row_S):
        return query_BHTE.new_zeros(()), {}
    copier = attention.heads // attention.kv_heads
    copying, copied = _looking(query_BHTE[:, copier], key_BGTE[:, 1], named_BT, row_S, next_S)
    kind_S = kind_BT[row_S, next_S]
    is_choice_S = kind_S != NO_CHOICE
    row_S, next_S, kind_S = row_S[is_choice_S], next_S[is_choice_S], kind_S[is_choice_S]
    query_BTE, key_BTE = query_BHTE[:, 0], key_BGTE[:, 0]
    choosing, chosen = _looking(query_BTE, key_BTE, named_BT, row_S, next_S)
    code_NE = domain_codes(query_BTE.shape[-1] - rotary)
    codes = _code_loss(query_BTE[row_S, next_S - 1], kind_S, code_NE)
    codes = codes + _code_loss(key_BTE[kind_BT >= 0], kind_BT[kind_BT >= 0], code_NE)
    return copying + choosing + codes, {"chosen": chosen, "copied": copied}


def _looking(
    query_BTE: torch.Tensor,
    key_BTE: torch.Tensor,
    named_BT: torch.Tensor,
    row_S: torch.Tensor,
    next_S: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """Cross-entropy of a head's scores before each `next_S`, and how often the best is right."""
    query_SE = query_BTE[row_S, next_S - 1] * query_BTE.shape[-1] ** -0.5
    # Row by row: keys of a row need no copy for each of its queries.
    score_ST = torch.cat(
        [query_SE[row_S == row] @ key_BTE[row].T for row in row_S.unique(sorted=True)]
    )
    future_ST = torch.arange(key_BTE.shape[1]) >= next_S[:, None]
    score_ST = score_ST.masked_fill(future_ST, float("-inf"))
    right_ST = (named_BT[row_S] == named_BT[row_S, next_S][:, None]) & ~future_ST
    right_S = score_ST.masked_fill(~right_ST, float("-inf")).logsumexp(-1)
    looked = right_ST.gather(1, score_ST.argmax(-1, keepdim=True)).float().mean().item()
    return (score_ST.logsumexp(-1) - right_S).mean(), looked


def _code_loss(x_SE: torch.Tensor, kind_S: torch.Tensor, code_NE: torch.Tensor) -> torch.Tensor:
    known_S = kind_S >= 0
    if not known_S.any():
        return x_SE.new_zeros(())
    score_SN = x_SE[known_S][:, -code_NE.shape[1] :] @ code_NE.T
    return functional.cross_entropy(score_SN, kind_S[known_S])
