"""How tokens and the logprobs of a prompt are written, the same in chat and completions."""

from collections.abc import Sequence
from typing import Any

from engine import TokenLogprobs
from server.generate import MIN_LOGPROB
from server.tokenizer import Tokenizer


def token_name(token_id: int, tokenizer: Tokenizer, *, as_ids: bool) -> str:
    """A token as logprobs call it: its text, or `token_id:N`, which tells all tokens apart."""
    return f"token_id:{token_id}" if as_ids else tokenizer.token_str(token_id)


def prompt_logprobs_json(
    prompt_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None],
    tokenizer: Tokenizer,
    *,
    num_top: int,
) -> list[dict[str, Any] | None]:
    """One entry per prompt token: itself, then the `num_top` likeliest; null for the first."""
    entries: list[dict[str, Any] | None] = []
    for token_id, scores in zip(prompt_ids, logprobs, strict=True):
        if scores is None:
            entries.append(None)
            continue
        entry = {str(token_id): _score(token_id, scores.logprob, scores.rank, tokenizer)}
        for rank, (top_id, logprob) in enumerate(scores.top[:num_top], start=1):
            entry.setdefault(str(top_id), _score(top_id, logprob, rank, tokenizer))
        entries.append(entry)
    return entries


def _score(token_id: int, logprob: float, rank: int, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "logprob": max(logprob, MIN_LOGPROB),
        "rank": rank,
        "decoded_token": tokenizer.token_str(token_id),
    }
