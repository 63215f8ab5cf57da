from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.stops import StopMatcher

TEXTS = st.text("ab", max_size=24) | st.text("abc\u2603", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=5).map(tuple)


def run(pieces: list[str], stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    matcher = StopMatcher(stops, include)
    text = "".join(map(matcher.push, pieces))
    return text + matcher.flush(), matcher.matched


def expected(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The earliest start, then the shortest, by trying every position."""
    for start in range(len(text)):
        found = [stop for stop in stops if text.startswith(stop, start)]
        if found:
            stop = min(found, key=len)
            return text[: start + len(stop) if include else start], stop
    return text, None


@given(text=TEXTS, stops=STOPS, include=st.booleans(), data=st.data())
def test_any_split_equals_the_whole(
    text: str, stops: tuple[str, ...], include: bool, data: st.DataObject
):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    edges = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert run(pieces, stops, include) == expected(text, stops, include)


@given(text=TEXTS, stops=STOPS)
def test_split_at_every_position(text: str, stops: tuple[str, ...]):
    whole = expected(text, stops, False)
    for cut in range(len(text) + 1):
        assert run([text[:cut], text[cut:]], stops, False) == whole


@given(text=TEXTS, stops=STOPS)
def test_no_more_is_held_than_must_be(text: str, stops: tuple[str, ...]):
    """Each character leaves as soon as no stop string that holds it can be completed."""
    matcher = StopMatcher(stops, include=False)
    released = ""
    for position in range(1, len(text) + 1):
        released += matcher.push(text[position - 1])
        if matcher.matched is not None:
            return
        read = text[:position]
        longest = max(
            (n for stop in stops for n in range(1, len(stop) + 1) if read.endswith(stop[:n])),
            default=0,
        )
        assert len(released) >= position - longest


def test_a_prefix_is_held_back_and_released():
    matcher = StopMatcher(("STOP",), include=False)
    assert matcher.push("go ST") == "go "
    assert matcher.push("O") == ""
    assert matcher.push("RE") == "STORE"
    assert matcher.push(" ST") == " "
    assert matcher.flush() == "ST"
    assert matcher.matched is None


def test_nothing_leaves_after_a_match():
    matcher = StopMatcher(("END",), include=False)
    assert matcher.push("abcENDdef") == "abc"
    assert matcher.matched == "END"
    assert matcher.push("more") == ""
    assert matcher.flush() == ""


def test_the_match_can_be_kept():
    matcher = StopMatcher(("END",), include=True)
    assert matcher.push("abcEN") == "abc"
    assert matcher.push("Ddef") == "END"
    assert matcher.matched == "END"
    assert matcher.flush() == ""


@pytest.mark.parametrize(
    ("text", "stops", "shown", "matched"),
    [
        ("xabcd", ("bc", "abcd"), "x", "abcd"),  # starts first, though it completes last
        ("xabce", ("bc", "abcd"), "xa", "bc"),
        ("xabc", ("bc", "abcd"), "xa", "bc"),  # the text ended: the other cannot complete
        ("xab", ("abc", "ab"), "x", "ab"),  # same start: the one completed first
        ("aab", ("ab",), "a", "ab"),
        ("ababac", ("abac",), "ab", "abac"),
        ("a\nb\n\nc", ("\n\n",), "a\nb", "\n\n"),
        ("naïve ☃", ("☃",), "naïve ", "☃"),
    ],
)
def test_which_match_wins(text: str, stops: tuple[str, ...], shown: str, matched: str):
    assert run([text], stops, False) == (shown, matched)
    assert run(list(text), stops, False) == (shown, matched)
    assert run(list(text), stops[::-1], False) == (shown, matched)


def test_without_stop_strings_text_passes():
    assert run(["a", "", "b"], (), False) == ("ab", None)


def test_a_long_repetitive_text_takes_linear_time():
    stops = ("a" * 1000 + "b", "a" * 999 + "c")
    assert run(["a" * 300_000], stops, False) == ("a" * 300_000, None)
