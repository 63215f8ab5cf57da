"""What piles up for a request nobody reads: merged, bounded, nothing lost."""

import pytest

from engine.request import FinishReason, TokenDelta, TokenLogprobs
from engine.unread import Unread, UnreadBounds


def delta(*ids: int, finish: FinishReason | None = None) -> TokenDelta:
    logprobs = tuple(TokenLogprobs(-1.0, 1, ((i, -1.0),)) for i in ids)
    return TokenDelta("r", ids, finish=finish, logprobs=logprobs)


@pytest.mark.parametrize("max_deltas", [1, 2, 3, 256])
def test_everything_comes_out_as_one_delta(max_deltas: int):
    unread = Unread(UnreadBounds(max_deltas=max_deltas))
    assert not unread
    assert unread.add(TokenDelta("r", (1,), queue_s=0.5, num_cached_tokens=7))
    for i in range(2, 10):
        assert unread.add(delta(i))
    assert unread.add(delta(10, finish=FinishReason.STOP))
    assert unread
    taken = unread.take()
    assert taken.token_ids == tuple(range(1, 11))
    assert [entry.top[0][0] for entry in taken.logprobs] == list(range(2, 11))
    assert (taken.queue_s, taken.num_cached_tokens) == (0.5, 7)
    assert taken.finish is FinishReason.STOP
    assert not unread


def test_a_pile_that_is_too_large_and_too_old_is_told():
    unread = Unread(UnreadBounds(max_bytes=1000, patience_s=0.0))
    assert all(unread.add(delta(i)) for i in range(3))
    assert not unread.add(delta(*range(10)))


def test_a_large_pile_may_wait_and_a_taken_one_is_none():
    patient = Unread(UnreadBounds(max_bytes=10, patience_s=1000.0))
    assert all(patient.add(delta(i)) for i in range(300))
    unread = Unread(UnreadBounds(max_bytes=1000, patience_s=0.0))
    for i in range(300):
        assert unread.add(delta(i))
        unread.take()
