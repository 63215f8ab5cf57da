"""The machine against a reader of whole texts, on grammatical garbage in random pieces."""

import json
import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.parse import OutputParser
from tests.server.parse.answers import STRING, Answer, events_of, gather, split_at, strict, tool
from tests.server.parse.oracle import parse

TOOLS = [tool("f", a=STRING, b=STRING, **{"a key": STRING}), tool("g")]
DECLARED = {"f": ("a", "b", "a key"), "g": ()}
TAGS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "</function>", "</parameter>",
    "<function=f>", "<function=g>", "<function=unknown>",
    "<function=>", "<function=f g>", "<function=f", "<function=",
    "<parameter=a>", "<parameter=b>", "<parameter=c>", "<parameter=a key>",
    "<parameter=no key>", "<parameter=>", "<parameter=a", "<parameter=",
    "<tool_c", "</", "<", ">", "</func", "</think",
]  # fmt: skip
SPACES = ["\n", "\n\n", " ", "\t", " \n", "\u3000"]
WELL_FORMED = [
    "<tool_call>\n<function=f>\n<parameter=a>\n",
    "\n</parameter>\n<parameter=b>\n",
    "\n</parameter>\n</function>\n</tool_call>",
    "\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n",
    "</function></tool_call>",
]
texts = st.lists(
    st.one_of(
        st.sampled_from(TAGS),
        st.sampled_from(SPACES),
        st.sampled_from(WELL_FORMED),
        st.text('xyz"\\é\U0001f600\x07', min_size=1, max_size=4),
    ),
    max_size=25,
).map("".join)
places = st.lists(st.integers(0, 500), max_size=12)


@settings(max_examples=1000, deadline=None)
@given(text=texts, thinking=st.booleans(), with_tools=st.booleans(), places=places)
@example("<function=f><parameter=a></function>\n<parameter=b>x", False, True, [])
@example(
    "<tool_call><function=f></function> <function=unknown></function> x</tool_call>",
    False,
    True,
    [],
)
def test_machine_reads_what_the_oracle_reads(text, thinking, with_tools, places):
    tools = TOOLS if with_tools else None
    expected = parse(text, thinking=thinking, declared=DECLARED if with_tools else None)
    answer = gather(events_of(split_at(text, places), thinking=thinking, tools=tools))
    assert answer == Answer(
        expected.reasoning or None, expected.content or None, answer.calls, len(answer.calls)
    )
    assert answer.arguments == expected.calls


@settings(max_examples=400, deadline=None)
@given(text=texts, thinking=st.booleans(), with_tools=st.booleans(), places=places)
def test_any_split_gives_the_same_at_the_token_limit(text, thinking, with_tools, places):
    options = {"thinking": thinking, "tools": TOOLS if with_tools else None, "cut": True}
    whole = events_of([text], **options)
    assert events_of(split_at(text, places), **options) == whole
    assert events_of(text, **options) == whole


@settings(max_examples=400, deadline=None)
@given(text=texts, thought=texts, with_tools=st.booleans(), places=places)
def test_bound_content_comes_as_it_is(text, thought, with_tools, places):
    """Behind the first end of the thinking, or where there is none from the beginning."""
    options = {"tools": TOOLS if with_tools else None, "content_is_bound": True}
    for before in ("", thought.replace("<", "(") + "</think>"):
        whole_text = before + text
        thinking = bool(before)
        whole = events_of([whole_text], thinking=thinking, **options)
        assert events_of(split_at(whole_text, places), thinking=thinking, **options) == whole
        if with_tools:
            continue  # calls may stand in its place
        kept = re.sub("^\n{0,2}", "", text) if thinking else text
        assert gather(whole).content == (kept or None)


@settings(max_examples=400, deadline=None)
@given(text=texts, thinking=st.booleans())
def test_arguments_cut_at_the_token_limit_lack_their_end_only(text, thinking):
    answer = gather(events_of([text], thinking=thinking, tools=TOOLS, cut=True))
    for i, (_, arguments) in enumerate(answer.calls):
        if i < answer.num_finished:
            strict(arguments)
        else:
            assert i == len(answer.calls) - 1
            assert any(_is_object(arguments + end) for end in ("}", '"}'))


@settings(max_examples=100, deadline=None)
@given(text=texts, thinking=st.booleans())
def test_what_was_reported_stands(text, thinking):
    """More text only adds: answers so far, also those cut there, are prefixes of the whole one."""
    whole = gather(events_of([text], thinking=thinking, tools=TOOLS))
    for end in range(len(text)):
        cut = gather(events_of([text[:end]], thinking=thinking, tools=TOOLS, cut=True))
        assert len(cut.calls) <= len(whole.calls)
        for (name, arguments), (same_name, all_arguments) in zip(
            cut.calls, whole.calls, strict=False
        ):
            assert name == same_name
            assert all_arguments.startswith(arguments)

        parser = OutputParser(thinking=thinking, tools=TOOLS)
        so_far = gather(parser.feed(text[:end]))
        assert (whole.reasoning or "").startswith(so_far.reasoning or "")
        assert (whole.content or "").startswith(so_far.content or "")


def traced(text: str) -> str:
    """`text` with characters that are all different, so that each can be traced."""
    numbers = iter(range(0x4E00, 0x9FFF))
    return re.sub("[xz]", lambda _: chr(next(numbers)), text)


@settings(max_examples=500, deadline=None)
@given(text=texts.map(traced), thinking=st.booleans(), with_tools=st.booleans())
def test_nothing_is_lost(text, thinking, with_tools):
    """Every traced character comes out once and in order, unless it stood between two values."""
    parsed = parse(text, thinking=thinking, declared=DECLARED if with_tools else None)
    events = events_of([text], thinking=thinking, tools=TOOLS if with_tools else None)
    words = (getattr(event, "name", "") + getattr(event, "text", "") for event in events)
    kept = re.findall("[\u4e00-\u9fff]", "".join(words))
    expected = [c for c in re.findall("[\u4e00-\u9fff]", text) if c not in parsed.skipped]
    if parsed.repeats:  # a value that another one replaces need not come out
        assert set(kept) <= set(expected)
    else:
        assert kept == expected


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
