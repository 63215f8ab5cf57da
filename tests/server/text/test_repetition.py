"""Loops, against vLLM's definition read literally."""

from hypothesis import given, settings
from hypothesis import strategies as st

from server.repetition import LoopDetector, RepetitionRule


def loops_by_definition(ids: list[int], rule: RepetitionRule) -> bool:
    return any(
        size * rule.min_count <= len(ids)
        and ids[-size * rule.min_count :] == ids[-size:] * rule.min_count
        for size in range(rule.min_size, rule.max_size + 1)
    )


@given(
    st.lists(st.integers(0, 2), max_size=60),
    st.integers(1, 5),
    st.integers(0, 6),
    st.integers(2, 5),
)
@settings(deadline=None, max_examples=300)
def test_a_loop_is_seen_with_the_token_that_closes_it(
    ids: list[int], min_size: int, more: int, min_count: int
) -> None:
    rule = RepetitionRule(min_size=min_size, max_size=min_size + more, min_count=min_count)
    detector = LoopDetector(rule)
    for end, token in enumerate(ids, start=1):
        assert detector.push(token) == loops_by_definition(ids[:end], rule)


def test_the_example_of_vllm() -> None:
    detector = LoopDetector(RepetitionRule(min_size=1, max_size=2, min_count=3))
    assert [detector.push(i) for i in (1, 2, 1, 2, 1, 2)] == [False] * 5 + [True]
