"""From a step's logits to its tokens, in the order that `SamplingParams` states.

Stages that no row of the batch needs are skipped, and a stage that some rows need sees only those.
A grammar's mask comes first and is never given up. Other constraints come in this order, and one
that would leave a row with nothing to draw is not applied to that row: `allowed_token_ids`, a bias
of -100, `bad_words`, the stop ids before `min_tokens`, and last a bias of 100, which leaves nothing
but the tokens that have it. A spent thinking budget beats them all, but not the grammar.

Nothing here is read back from the device: which rows need what is known on the host. (`bad_words`
and what `kernels.sampling` does on ties are the exceptions, where they say so.)

Letters: R rows, V vocabulary (`num_real_tokens` wide), N (row, id) pairs.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from engine.grammar.bits import Mask
from engine.runner.answer import Drawn, Scores
from engine.runner.batch import SampledRows
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
    NOTHING,
    Bias,
    DrawParams,
    Penalties,
    adjust,
    ban,
    draw_greedy,
    draw_nucleus,
    draw_top,
    draw_whole,
    keep_only,
    rank,
    top,
    uniform,
)
from kernels.sampling import Masks as RowMasks
from kernels.sampling.xtc import OFF

IMPOSSIBLE = -9999.0  # the log-probability of what cannot be, as OpenAI writes it: JSON has no -inf

CHUNK_LOGITS = 1 << 18  # 1 MiB of fp32: what a CPU's caches hold
GPU_CHUNK_LOGITS = 1 << 24  # 64 rows of the real vocabulary: few launches count

XTC_STREAM = 1  # of random numbers; the draw's is 0

Masks = dict[int, Mask]  # by row: what a grammar allows

Constraint = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def sample(
    rows: Rows, logits_RV: torch.Tensor, sampled: SampledRows, masks: Masks | None = None
) -> Drawn:
    """Draw the token at each row's position and record it in `rows`. Overwrites the logits.

    `logits_RV` may be wider than the real vocabulary.
    """
    wide_RW, logits_RV = logits_RV, logits_RV[:, : rows.num_real_tokens]
    slots, slot_R = sampled.slots, sampled.slot_R
    number_RF = rows.number_PF[slot_R]
    facts = [rows[slot] for slot in slots]
    params = None
    if any(row.draw is not Draw.GREEDY for row in facts):
        params = DrawParams(
            temperature_R=number_RF[:, TEMPERATURE],
            top_k_R=rows.top_k_P[slot_R],
            top_p_R=number_RF[:, TOP_P],
            min_p_R=number_RF[:, MIN_P],
            uniform_R=uniform(rows.key_P2[slot_R], sampled.position_R),
            xtc_threshold_R=_xtc_thresholds(rows, facts, number_RF, sampled),
        )
    tokens: list[torch.Tensor] = []
    scores: list[tuple[list[int], Scores]] = []
    for chunk in _chunks(logits_RV):
        part, part_RV = facts[chunk], logits_RV[chunk]
        reported = [r for r, row in enumerate(part) if row.num_logprobs is not None]
        reported_Q = rows.index(reported) if reported else None
        raw_QV = None if reported_Q is None else part_RV[reported_Q].log_softmax(dim=-1)
        penalties = _penalties(rows, part, number_RF[chunk])
        if any(row.dry is not None for row in part):  # comes between them and what follows
            adjust(part_RV, penalties=penalties)
            penalties = None
            for r, row in enumerate(part):
                if row.dry is not None:
                    row.dry.penalise(part_RV[r])
        own_masks = [masks.get(chunk.start + r) for r in range(len(part))] if masks else []
        adjust(
            part_RV, penalties=penalties, masks=_row_masks(rows, own_masks), bias=_bias(rows, part)
        )
        _constrain(part_RV, part, sampled.positions[chunk])
        token_R = _draw(rows, wide_RW[chunk], part, params[chunk] if params else None)
        tokens.append(token_R)
        if reported_Q is not None and raw_QV is not None:
            num_top = [part[r].num_logprobs or 0 for r in reported]
            entries = _score(raw_QV, token_R[reported_Q], num_top)
            scores.append(([chunk.start + r for r in reported], entries))
    token_R = torch.cat(tokens)
    rows.record(slots, slot_R, token_R)
    return Drawn(token_R, tuple(scores))


def score(
    rows: Rows, logits_RV: torch.Tensor, token_R: torch.Tensor, num_top: list[int]
) -> list[Scores]:
    """What each row says of a token that is given: any id, padding too. Overwrites the logits.

    In order, a few rows at a time.
    """
    logits_RV[:, rows.num_real_tokens :] = -torch.inf
    return [
        _score(logits_RV[chunk].log_softmax(dim=-1), token_R[chunk], num_top[chunk])
        for chunk in _chunks(logits_RV)
    ]


def _xtc_thresholds(
    rows: Rows,
    facts: list[Row],
    number_RF: torch.Tensor,
    sampled: SampledRows,
) -> torch.Tensor | None:
    """The threshold of each row for which XTC comes true at its position; None: no row asks."""
    if not any(row.excludes for row in facts):
        return None
    chance_R = uniform(rows.key_P2[sampled.slot_R], sampled.position_R, stream=XTC_STREAM)
    asks_R = rows.device.upload(np.array([row.excludes for row in facts]))
    comes_R = asks_R & (chance_R <= number_RF[:, XTC_PROBABILITY])
    return number_RF[:, XTC_THRESHOLD].masked_fill(~comes_R, OFF)


def _chunks(logits_RV: torch.Tensor) -> Iterator[slice]:
    """So few rows at a time that what is computed on the way, as wide as they are, stays small."""
    num_rows, width = logits_RV.shape
    step = max(1, (CHUNK_LOGITS if logits_RV.device.type == "cpu" else GPU_CHUNK_LOGITS) // width)
    return (slice(begin, begin + step) for begin in range(0, num_rows, step))


def _score(logprob_RV: torch.Tensor, token_R: torch.Tensor, num_top: list[int]) -> Scores:
    """Each row with its own number of top entries."""
    own_R1 = logprob_RV.gather(-1, token_R[:, None]).clamp(min=IMPOSSIBLE)
    widest = max(num_top, default=0)
    return Scores(
        logprob_R=own_R1[:, 0],
        rank_R=rank(logprob_RV, token_R),
        top=top(logprob_RV, widest) if widest else None,
        num_top=num_top,
    )


def _penalties(rows: Rows, facts: list[Row], number_RF: torch.Tensor) -> Penalties | None:
    if not any(row.tally is not None for row in facts):
        return None
    places = [NOTHING if row.tally is None else row.tally for row in facts]
    return Penalties(
        tally_KV=rows.tally_KV,
        place_R=rows.index(places),
        repetition_R=number_RF[:, REPETITION],
        presence_R=number_RF[:, PRESENCE],
        frequency_R=number_RF[:, FREQUENCY],
    )


def _row_masks(rows: Rows, masks: list[Mask | None]) -> RowMasks | None:
    """One for each row, or none at all."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    count = itertools.count()
    places = [NOTHING if mask is None else next(count) for mask in masks]
    return RowMasks(mask_QW=rows.device.upload(np.stack(given)), place_R=rows.index(places))


def _bias(rows: Rows, facts: list[Row]) -> Bias | None:
    ids = [row.bias_id_N for row in facts if row.bias_id_N is not None]
    if not ids:
        return None
    lengths = [0 if row.bias_id_N is None else len(row.bias_id_N) for row in facts]
    return Bias(
        offset_R1=rows.index([0, *itertools.accumulate(lengths)]),
        id_N=torch.cat(ids),
        bias_N=torch.cat([row.bias_N for row in facts if row.bias_N is not None]),
    )


def _constrain(logits_RV: torch.Tensor, facts: list[Row], positions: list[int]) -> None:
    ends = [
        (r, row.thinking, row.thinking.comes(logits_RV[r]))
        for r, row in enumerate(facts)
        if row.thinking is not None and row.thinking.is_due(positions[r] - row.num_prompt_tokens)
    ]
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
    for r, thinking, comes in ends:
        thinking.force(logits_RV[r], comes)


def _apply(
    constraint: Constraint, logits_RV: torch.Tensor, ids: Iterable[torch.Tensor | None]
) -> None:
    """Apply one kind of constraint to the rows that have it, all at once."""
    having = [(r, id_N) for r, id_N in enumerate(ids) if id_N is not None]
    if having:
        row_N = torch.cat([torch.full_like(id_N, r) for r, id_N in having])
        constraint(logits_RV, row_N, torch.cat([id_N for _, id_N in having]))


def _draw(
    rows: Rows, wide_RW: torch.Tensor, facts: list[Row], params: DrawParams | None
) -> torch.Tensor:
    """Draw each kind of row by its own function. No `params`: all are greedy.

    Rows of the vocabulary with its padding, W wide, because a kind's rows are copied: they keep the
    alignment that way, and need no other kernels than rows that are not.
    """
    V = rows.num_real_tokens
    kinds: dict[Draw, list[int]] = {}
    for r, row in enumerate(facts):
        kinds.setdefault(row.draw, []).append(r)
    if len(kinds) == 1:
        return _draw_kind(facts[0].draw, facts, wide_RW[:, :V], params)
    assert params is not None
    token_R = torch.empty(len(facts), dtype=torch.int64, device=wide_RW.device)
    for kind, members in kinds.items():
        index_Q = rows.index(members)
        part = [facts[r] for r in members]
        token_R[index_Q] = _draw_kind(kind, part, wide_RW[index_Q][:, :V], params[index_Q])
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
