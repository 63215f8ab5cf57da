"""Where the time of one answer went, for requests that ask: queue, prefill, decode.

Taken by the server's clock, from when the engine's deltas reach it, but for the queue time, which
is the engine's word. With several choices, which run side by side, the phases overlap:

    queue    from the submission to the first step of the choice that began first
    prefill  from there to the first delta of the choice that had it last
    decode   from the first delta of the choice that had it first to the last token of all
    total    from the request's arrival to now: reading, templates and tokenizing included

Tokens that came with a choice's first delta belong to prefill, so the decode rate leaves them out;
the prefill rate counts what was computed: each choice's prompt, less its cached tokens.
"""

from typing import Any

from engine import Request, TokenDelta


class Timings:
    """Times are `time.monotonic()`."""

    def __init__(self, *, arrived: float, submitted: float) -> None:
        self._arrived = arrived
        self._submitted = submitted
        self._began: float | None = None  # the first step
        self._first_delta = self._last_first_delta = self._last_token = submitted
        self._num_computed = 0  # prompt tokens
        self._num_decoded = 0

    def started(self, now: float, request: Request, delta: TokenDelta) -> None:
        """The first delta of a choice came."""
        began = min(self._submitted + delta.queue_s, now)
        if self._began is None:
            self._began = began
            self._first_delta = now
        self._began = min(self._began, began)
        self._last_first_delta = self._last_token = now
        self._num_computed += len(request.prompt_ids) - delta.num_cached_tokens

    def stepped(self, now: float, num_tokens: int) -> None:
        """`num_tokens` more of a choice came."""
        if num_tokens:
            self._last_token = now
            self._num_decoded += num_tokens

    def as_json(
        self, now: float, *, num_prompt: int, num_cached: int, num_completion: int
    ) -> dict[str, Any]:
        began = self._submitted if self._began is None else self._began
        prefill_s = self._last_first_delta - began
        decode_s = self._last_token - self._first_delta
        return {
            "queue_ms": _ms(began - self._submitted),
            "prefill_ms": _ms(prefill_s),
            "decode_ms": _ms(decode_s),
            "total_ms": _ms(now - self._arrived),
            "prompt_tokens": num_prompt,
            "cached_tokens": num_cached,
            "completion_tokens": num_completion,
            "prefill_tokens_per_s": _rate(self._num_computed, prefill_s),
            "decode_tokens_per_s": _rate(self._num_decoded, decode_s),
        }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def _rate(num_tokens: int, seconds: float) -> float | None:
    """None where there is nothing to divide."""
    return round(num_tokens / seconds, 3) if num_tokens and seconds > 0 else None
