"""The arithmetic of timings, on a clock that the test turns."""

from typing import Any

import pytest

from engine import Request, SamplingParams, TokenDelta
from server.timings import Timings


def request(num_prompt: int) -> Request:
    sampling = SamplingParams(max_tokens=9, seed=0)
    return Request(id="r", prompt_ids=(1,) * num_prompt, sampling=sampling)


def delta(queue_s: float, num_cached: int = 0) -> TokenDelta:
    return TokenDelta("r", (1,), queue_s=queue_s, num_cached_tokens=num_cached)


def report(timings: Timings, now: float, **counts: int) -> dict[str, Any]:
    usage = {"num_prompt": 0, "num_cached": 0, "num_completion": 0, **counts}
    return timings.as_json(now, **usage)


def test_one_choice() -> None:
    timings = Timings(arrived=10.0, submitted=10.5)
    timings.started(13.0, request(100), delta(0.5, num_cached=20))
    timings.stepped(14.0, 3)
    timings.stepped(15.0, 5)
    timings.stepped(15.5, 0)  # a delta without tokens is not decoding
    assert report(timings, 16.0, num_prompt=100, num_cached=20, num_completion=9) == {
        "queue_ms": 500.0,
        "prefill_ms": 2000.0,
        "decode_ms": 2000.0,
        "total_ms": 6000.0,
        "prompt_tokens": 100,
        "cached_tokens": 20,
        "completion_tokens": 9,
        "prefill_tokens_per_s": 40.0,
        "decode_tokens_per_s": 4.0,
    }


def test_choices_side_by_side() -> None:
    timings = Timings(arrived=0.0, submitted=1.0)
    timings.started(3.0, request(10), delta(1.5))
    timings.stepped(4.0, 2)
    timings.started(5.0, request(30), delta(1.0))  # it began first, and had its token last
    timings.stepped(7.0, 6)
    found = report(timings, 8.0)
    assert (found["queue_ms"], found["prefill_ms"], found["decode_ms"]) == (1000, 3000, 4000)
    assert found["prefill_tokens_per_s"] == pytest.approx(40 / 3, abs=0.001)
    assert found["decode_tokens_per_s"] == 2.0


def test_nothing_to_divide() -> None:
    timings = Timings(arrived=0.0, submitted=1.0)
    found = report(timings, 2.0)
    assert (found["queue_ms"], found["prefill_ms"], found["decode_ms"]) == (0, 0, 0)
    assert (found["prefill_tokens_per_s"], found["decode_tokens_per_s"]) == (None, None)
    timings.started(1.0, request(8), delta(9.0))  # the engine's clock may run ahead
    found = report(timings, 2.0)
    assert (found["queue_ms"], found["prefill_ms"]) == (0, 0)
    assert found["prefill_tokens_per_s"] is None
