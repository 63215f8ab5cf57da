import random
import re

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from engine import GrammarError, GrammarSpec
from server.constraints.regex import MAX_REPEAT, UnsupportedRegex, found, literal, whole
from tests.engine.grammar.sampling import Babbler, NoEnd

PATTERNS = [
    r"^[A-Z]{1,3}-[A-Z]{1,2} [0-9]{1,4}$",
    r"\d{3}-\D\W\S\w\s",
    r"[^\d\s]{2}[\w-]+?[]x][[a]",
    r"a|^b$|c{,2}d{2,}",
    r"(?:x|(?P<name>y+))*z?",
    r"(^ab|^cd)(e|f$)",
    r"(?i)Straße[k-m]",
    r"\.\*\/\\ \u00e9\x41\t.",
    r"a{x}[&&~~-]{",
    r"\Aé{3}\Z",
    r"[.]{2}.{2}",
    r"[^a-zA-Z ]",
    "",
]
REFUSED = [
    r"(?=a)", r"(?!a)b", r"(?<=a)b", r"(a)\1", r"a++", r"a*+", r"(?>a)", r"\bword", r"a\B",
    r"a$b", r"x*(^a)", r"(^a)*", r"(^a|b$)c", r"(a", r"a)", r"[a", r"[z-a]", r"*a", r"a**",
    r"a{3,2}", r"a{10001}", r"\x4", r"\ud800", r"\u{110000}", r"\q", r"(?i:a)", r"(?s).",
    "(" * 70 + ")" * 70, "\\",
]  # fmt: skip


# Python warns of sets that a later version may read in another way.
pytestmark = pytest.mark.filterwarnings("ignore:Possible:FutureWarning")


def answer(babbler: Babbler, expression: str, pattern: str, seed: int) -> str:
    spec = GrammarSpec(grammar=f"start: /{expression}/")
    return babbler.answer(spec, random.Random(seed), free_tokens=8, chars=pattern + "aAx0 -.")


def answers(babbler: Babbler, expression: str, pattern: str) -> list[str]:
    return [answer(babbler, expression, pattern, seed) for seed in range(12)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_written_matches_as_a_whole(babbler: Babbler, pattern: str):
    for text in answers(babbler, whole(pattern), pattern):
        assert re.fullmatch(pattern, text)


@pytest.mark.parametrize(
    "pattern",
    [
        "b",
        "^b",
        "b$",
        r"x|^y|z$",
        PATTERNS[0],
        r"\d\D",
        "a{2}$",
        r"^\w+\s",
        "(?i)x-",
        "(^a|^b)-",
        "",
    ],
)
def test_what_is_written_has_a_match_somewhere(babbler: Babbler, pattern: str):
    for text in answers(babbler, found(pattern), pattern):
        assert re.search(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("b", "abc"), ("^b", "bc"), ("b$", "ab"), ("^(a|b)$", "b"), ("x|^y|z$", "ay..z"), ("", "q")],
)
def test_a_search_allows_text_around_the_match(babbler: Babbler, pattern: str, text: str):
    assert babbler.accepts(GrammarSpec(grammar=f"start: /{found(pattern)}/"), text)


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_cannot_be_expressed_is_refused(pattern: str):
    with pytest.raises(UnsupportedRegex) as refusal:
        whole(pattern)
    assert pattern not in str(refusal.value) or len(pattern) < 3


def test_the_largest_repetition_is_served(babbler: Babbler):
    spec = GrammarSpec(grammar=f"start: /{whole(f'a{{{MAX_REPEAT}}}')}/")
    ids = (babbler.id_of("a"),) * MAX_REPEAT
    assert babbler.compiler.matcher(spec, ids).is_finished
    assert not babbler.compiler.matcher(spec, ids[1:]).is_finished


@given(st.text(max_size=30))
@settings(deadline=None, max_examples=50)
def test_a_literal_matches_itself(text: str):
    babbler = _babbler()
    spec = GrammarSpec(grammar=f"start: /{literal(text)}/")
    assert babbler.answer(spec, random.Random(0), free_tokens=0) == text


ATOMS = st.sampled_from(
    [
        "a",
        "b",
        "0",
        r"\d",
        r"\w",
        r"\s",
        r"\.",
        ".",
        "[a-c]",
        "[^a-c]",
        r"[\d_]",
        r"[^\w]",
        "é",
        "-",
    ]
)


def regexes() -> st.SearchStrategy[str]:
    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        quantifiers = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{,2}", "*?", "{2,}"])
        return st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
            st.tuples(inner, quantifiers).map(lambda p: f"({p[0]}){p[1]}"),
        )

    return st.recursive(ATOMS, extend, max_leaves=8)


@given(regexes(), st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_any_expression_is_matched_by_its_answers(pattern: str, seed: int):
    try:
        text = answer(_babbler(), whole(pattern), pattern, seed)
    except NoEnd:
        reject()  # it never wrote what the end needs
    assert re.fullmatch(pattern, text)


@given(st.text(alphabet=r"ab01()[]{}|*+?^$\.,-dwsDWSxpuAZ:=!<>P&~ ", max_size=12))
@settings(deadline=None, max_examples=300)
def test_any_text_is_served_or_refused(pattern: str):
    try:
        expression = whole(pattern)
    except UnsupportedRegex:
        return
    try:
        text = answer(_babbler(), expression, pattern, seed=0)
    except NoEnd:
        reject()
    except GrammarError:
        return  # a property of characters that does not exist, or a class with nothing in it
    assert re.fullmatch(pattern, text)


_SHARED: list[Babbler] = []


def _babbler() -> Babbler:
    """One for all examples: hypothesis forbids fixtures that are made anew for each."""
    if not _SHARED:
        _SHARED.append(Babbler())
    return _SHARED[0]
