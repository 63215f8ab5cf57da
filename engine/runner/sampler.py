"""From a step's logits to its tokens, in the order that `SamplingParams` states.

Stages that no row of the batch needs are skipped, and a stage that some rows need sees only those.
A grammar's mask comes first and is never given up. Other constraints come in this order, and one
that would leave a row with nothing to draw is not applied to that row: `allowed_token_ids`, a bias
of -100, `bad_words`, the stop ids before `min_tokens`, and last a bias of 100, which leaves nothing
but the tokens that have it. A spent thinking budget beats them all.

Letters: R rows, V vocabulary (`num_real_tokens` wide), N (row, id) pairs.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from engine.grammar.bits import Mask
from engine.request import TokenLogprobs
from engine.runner.rows import (
    FREQUENCY,
    MIN_P,
    PRESENCE,
    REPETITION,
    TEMPERATURE,
    TOP_P,
    XTC_PROBABILITY,
    XTC_THRESHOLD,
    Draw,
    Row,
    Rows,
)
from kernels.sampling import (
    DrawParams,
    ban,
    draw_greedy,
    draw_nucleus,
    draw_top,
    draw_whole,
    keep_only,
    penalise_presence_frequency,
    penalise_repetition,
    rank,
    top,
    uniform,
)
from kernels.sampling.bitmask import keep_only_set_bits
from kernels.sampling.xtc import OFF

IMPOSSIBLE = -9999.0  # the log-probability of what cannot be, as OpenAI writes it: JSON has no -inf

CHUNK_LOGITS = 1 << 18  # 1 MiB of fp32

XTC_STREAM = 1  # of random numbers; the draw's is 0

Masks = dict[int, Mask]  # by row: what a grammar allows

Constraint = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def sample(
    rows: Rows,
    logits_RV: torch.Tensor,
    slots: list[int],
    positions: list[int],
    masks: Masks | None = None,
) -> tuple[list[int], list[TokenLogprobs | None]]:
    """Draw the token at each row's position and record it in `rows`. Overwrites the logits.

    `logits_RV` may be wider than the real vocabulary.
    """
    logits_RV = logits_RV[:, : rows.num_real_tokens]
    slot_R = torch.tensor(slots, device=rows.device)
    number_RF = rows.number_PF[slot_R]
    facts = [rows[slot] for slot in slots]
    params = None
    if any(row.draw is not Draw.GREEDY for row in facts):
        position_R = torch.tensor(positions, device=rows.device)
        params = DrawParams(
            temperature_R=number_RF[:, TEMPERATURE],
            top_k_R=rows.top_k_P[slot_R],
            top_p_R=number_RF[:, TOP_P],
            min_p_R=number_RF[:, MIN_P],
            uniform_R=uniform(rows.key_P2[slot_R], position_R),
            xtc_threshold_R=_xtc_thresholds(rows, facts, number_RF, slot_R, position_R),
        )
    tokens: list[torch.Tensor] = []
    logprobs: list[TokenLogprobs | None] = []
    for chunk in _chunks(logits_RV):
        part, part_RV = facts[chunk], logits_RV[chunk]
        reported = [r for r, row in enumerate(part) if row.num_logprobs is not None]
        raw_RV = part_RV[reported].log_softmax(dim=-1) if reported else None
        _penalise(rows, part_RV, part, number_RF[chunk])
        for r, row in enumerate(part):
            if row.dry is not None:
                row.dry.penalise(part_RV[r])
        if masks:
            _apply_masks(part_RV, masks, first=chunk.start)
        _constrain(part_RV, part, positions[chunk])
        token_R = _draw(part_RV, part, params[chunk] if params else None)
        tokens.append(token_R)
        entries: list[TokenLogprobs | None] = [None] * len(part)
        if raw_RV is not None:
            num_top = [part[r].num_logprobs or 0 for r in reported]
            for r, entry in zip(reported, _score(raw_RV, token_R[reported], num_top), strict=True):
                entries[r] = entry
        logprobs += entries
    token_R = torch.cat(tokens)
    rows.record(slots, slot_R, token_R)
    return token_R.tolist(), logprobs


def score(
    rows: Rows, logits_RV: torch.Tensor, token_R: torch.Tensor, num_top: list[int]
) -> list[TokenLogprobs]:
    """What each row says of a token that is given: any id, padding too. Overwrites the logits."""
    logits_RV[:, rows.num_real_tokens :] = -torch.inf
    entries: list[TokenLogprobs] = []
    for chunk in _chunks(logits_RV):
        entries += _score(logits_RV[chunk].log_softmax(dim=-1), token_R[chunk], num_top[chunk])
    return entries


def _xtc_thresholds(
    rows: Rows,
    facts: list[Row],
    number_RF: torch.Tensor,
    slot_R: torch.Tensor,
    position_R: torch.Tensor,
) -> torch.Tensor | None:
    """The threshold of each row for which XTC comes true at its position; None: no row asks."""
    if not any(row.excludes for row in facts):
        return None
    chance_R = uniform(rows.key_P2[slot_R], position_R, stream=XTC_STREAM)
    asks_R = torch.tensor([row.excludes for row in facts], device=rows.device)
    comes_R = asks_R & (chance_R <= number_RF[:, XTC_PROBABILITY])
    return number_RF[:, XTC_THRESHOLD].masked_fill(~comes_R, OFF)


def _chunks(logits_RV: torch.Tensor) -> Iterator[slice]:
    """So few rows at a time that what is computed on the way, as wide as they are, stays small."""
    num_rows, width = logits_RV.shape
    step = max(1, CHUNK_LOGITS // width)
    return (slice(begin, begin + step) for begin in range(0, num_rows, step))


def _score(
    logprob_RV: torch.Tensor, token_R: torch.Tensor, num_top: list[int]
) -> list[TokenLogprobs]:
    """Each row with its own number of top entries."""
    own_R1 = logprob_RV.gather(-1, token_R[:, None]).clamp(min=IMPOSSIBLE)
    own_R: list[float] = own_R1[:, 0].tolist()
    rank_R: list[int] = rank(logprob_RV, token_R).tolist()
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(num_top)
    if widest := max(num_top, default=0):
        value_RK, id_RK = top(logprob_RV, widest)
        entries = zip(id_RK.tolist(), value_RK.tolist(), num_top, strict=True)
        tops = [tuple(zip(ids[:k], values[:k], strict=True)) for ids, values, k in entries]
    return [TokenLogprobs(*parts) for parts in zip(own_R, rank_R, tops, strict=True)]


def _penalise(
    rows: Rows, logits_RV: torch.Tensor, facts: list[Row], number_RF: torch.Tensor
) -> None:
    penalised = [r for r, row in enumerate(facts) if row.tally is not None]
    if not penalised:
        return
    seen_RV, count_RV = rows.tallies([facts[r] for r in penalised])
    number_RF = number_RF[penalised].to(logits_RV.dtype)
    part_RV = logits_RV[penalised]
    if any(facts[r].repeats for r in penalised):
        penalise_repetition(part_RV, seen_RV, number_RF[:, REPETITION])
    if any(facts[r].counts for r in penalised):
        penalise_presence_frequency(
            part_RV, count_RV, number_RF[:, PRESENCE], number_RF[:, FREQUENCY]
        )
    logits_RV[penalised] = part_RV


def _apply_masks(logits_RV: torch.Tensor, masks: Masks, *, first: int) -> None:
    """Ban what the grammars of these rows, of which the first is row `first`, do not allow."""
    own = [row for row in range(first, first + len(logits_RV)) if row in masks]
    if own:
        mask_QW = torch.from_numpy(np.stack([masks[row] for row in own])).to(logits_RV.device)
        row_Q = torch.tensor([row - first for row in own], device=logits_RV.device)
        keep_only_set_bits(logits_RV, row_Q, mask_QW)


def _constrain(logits_RV: torch.Tensor, facts: list[Row], positions: list[int]) -> None:
    for r, row in enumerate(facts):
        if row.bias_id_N is not None and row.bias_N is not None:
            logits_RV[r].index_add_(0, row.bias_id_N, row.bias_N)
    _apply(keep_only, logits_RV, (row.allowed_id_N for row in facts))
    _apply(ban, logits_RV, (row.banned_id_N for row in facts))
    words = (row.bad_words for row in facts)
    _apply(ban, logits_RV, (None if word is None else word.completions() for word in words))
    early = (
        row.stop_id_N if position - row.num_prompt_tokens < row.min_tokens else None
        for row, position in zip(facts, positions, strict=True)
    )
    _apply(ban, logits_RV, early)
    _apply(keep_only, logits_RV, (row.forced_id_N for row in facts))
    for r, row in enumerate(facts):
        if row.thinking is not None:
            row.thinking.force(logits_RV[r], positions[r] - row.num_prompt_tokens)


def _apply(
    constraint: Constraint, logits_RV: torch.Tensor, ids: Iterable[torch.Tensor | None]
) -> None:
    """Apply one kind of constraint to the rows that have it, all at once."""
    having = [(r, id_N) for r, id_N in enumerate(ids) if id_N is not None]
    if having:
        row_N = torch.cat([torch.full_like(id_N, r) for r, id_N in having])
        constraint(logits_RV, row_N, torch.cat([id_N for _, id_N in having]))


def _draw(logits_RV: torch.Tensor, facts: list[Row], params: DrawParams | None) -> torch.Tensor:
    """Draw each kind of row by its own function. No `params`: all are greedy."""
    kinds: dict[Draw, list[int]] = {}
    for r, row in enumerate(facts):
        kinds.setdefault(row.draw, []).append(r)
    if len(kinds) == 1:
        return _draw_kind(facts[0].draw, facts, logits_RV, params)
    assert params is not None
    token_R = torch.empty(len(facts), dtype=torch.int64, device=logits_RV.device)
    for kind, members in kinds.items():
        index_Q = torch.tensor(members, device=logits_RV.device)
        part = [facts[r] for r in members]
        token_R[index_Q] = _draw_kind(kind, part, logits_RV[index_Q], params[index_Q])
    return token_R


def _draw_kind(
    kind: Draw, facts: list[Row], logits_RV: torch.Tensor, params: DrawParams | None
) -> torch.Tensor:
    if kind is Draw.GREEDY or params is None:
        return draw_greedy(logits_RV)
    if kind is Draw.NUCLEUS:
        return draw_nucleus(logits_RV, params)
    if kind is Draw.WHOLE:
        return draw_whole(logits_RV, params)
    return draw_top(logits_RV, params, num_candidates=max(row.top_k for row in facts))
