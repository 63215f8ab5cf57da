"""What models have been seen to write instead of the format, and what becomes of it."""

import re

import pytest

from server.parse import Reasoning
from tests.server.parse.answers import Answer, call, events_of, gather, read, strict

WRITE_A = ("write", '{"path": "a", "text": "x"}')
PATH = "<parameter=path>\na\n</parameter>\n"
TEXT = "<parameter=text>\nx\n</parameter>\n"
LOOKED = ("look", "{}")

# name: (thinking, text, answer)
SEEN = {
    "no closer after a value": (
        False,
        f"<tool_call>\n<function=write>\n<parameter=path>\na\n{TEXT}</function>\n</tool_call>",
        Answer(None, None, [WRITE_A], 1),
    ),
    "no closer after any value": (
        False,
        "<tool_call>\n<function=write>\n<parameter=path>\na\n<parameter=text>\nx\n</function>\n</tool_call>",
        Answer(None, None, [WRITE_A], 1),
    ),
    "no closer after the function": (
        False,
        f"<tool_call>\n<function=write>\n{PATH}{TEXT}</tool_call>",
        Answer(None, None, [WRITE_A], 1),
    ),
    "no closer after the block": (
        False,
        f"<tool_call>\n<function=write>\n{PATH}{TEXT}</function>\n",
        Answer(None, None, [WRITE_A], 1),
    ),
    "no closer between two blocks": (
        False,
        f"<tool_call>\n<function=write>\n{PATH}{TEXT}</function>\n{call('look')}",
        Answer(None, None, [WRITE_A, LOOKED], 2),
    ),
    "no closer at all": (
        False,
        "<tool_call>\n<function=write>\n<parameter=path>\na\n<parameter=text>\nx",
        Answer(None, None, [WRITE_A], 1),
    ),
    "no wrapper": (
        False,
        f"I write.\n\n<function=write>\n{PATH}{TEXT}</function>",
        Answer(None, "I write.", [WRITE_A], 1),
    ),
    "no wrapper but its closer": (
        False,
        f"I write.\n\n<function=write>\n{PATH}{TEXT}</function>\n</tool_call>",
        Answer(None, "I write.", [WRITE_A], 1),
    ),
    "closers twice": (
        False,
        f"{call('look')}\n</function>\n</tool_call>\nDone.",
        Answer(None, "Done.", [LOOKED], 1),
    ),
    "text before the closer of the block": (
        False,
        "<tool_call>\n<function=look>\n</function>\nDone.\n</tool_call>\n\nReally.",
        Answer(None, "Done.\n\n\nReally.", [LOOKED], 1),
    ),
    "no angle bracket after the function": (
        False,
        f"<tool_call>\n<function=write\n{PATH}</function>\n</tool_call>",
        Answer(None, f"<tool_call>\n<function=write\n{PATH}</function>\n</tool_call>"),
    ),
    "no angle bracket after a parameter": (
        False,
        f"<tool_call>\n<function=write>\n<parameter=mode\n4\n</parameter>\n{PATH}{TEXT}</function>",
        Answer(None, None, [WRITE_A], 1),
    ),
    "a call inside reasoning that is never closed": (
        True,
        f"I should look.\n\n{call('look')}",
        Answer("I should look.", None, [LOOKED], 1),
    ),
    "a call inside reasoning, then its end and text": (
        True,
        f"I should look.\n\n{call('look')}\n</think>\n\nI looked.",
        Answer("I should look.", "I looked.", [LOOKED], 1),
    ),
    "a call inside reasoning, then more thoughts and another": (
        True,
        f"I should look.\n{call('look')}\nAnd again.\n{call('look')}\n</think>\n",
        Answer("I should look.", "And again.", [LOOKED] * 2, 2),
    ),
    "reasoning closed twice before a call": (
        True,
        f"Hm.\n</think>\n\n</think>\n\n{call('look')}",
        Answer("Hm.", None, [LOOKED], 1),
    ),
    "a parameter on the line of its function": (
        False,
        "<function=write><parameter=path>a</parameter><parameter=text>x</parameter></function>",
        Answer(None, None, [WRITE_A], 1),
    ),
    "indented markup": (
        False,
        f"  <tool_call>\n    <function=write>\n    {PATH}    {TEXT}  </function>\n  </tool_call>",
        Answer(None, None, [WRITE_A], 1),
    ),
    "JSON in place of the format": (
        False,
        '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>',
        Answer(None, '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'),
    ),
    "JSON in place of the parameters": (
        False,
        '<tool_call>\n<function=write>\n{"path": "a"}\n</function>\n</tool_call>',
        Answer(None, None, [("write", "{}")], 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("thinking", "text", "answer"), SEEN.values(), ids=list(SEEN))
def test_seen(thinking, text, answer):
    assert read(text, thinking=thinking) == answer


VALUES = [
    "",
    " ",
    "\n",
    "\n\n",
    "  indented\n    more\n",
    "\n\nleading and trailing\n\n",
    "tabs\tand \r\n line ends\r",
    '{"looks": ["like", "JSON"]}',
    "[1, 2]",
    "5",
    "null",
    "None",
    "true",
    '"quoted"',
    "back\\slash \\n \\u00e9 \\",
    "quotes \" ' `",
    "control \x00 \x07 \x1b \x7f",
    "\u00e9\u4e2d\U0001f600\u2028\ufeff",
    "a < b > c && d <= e << f </ g",
    "<p>some</p> <parameter>old</parameter>",
    "x</parameter>y",
    "<a>\n</parameter>\n</a>",
    "if a </parameter> then\n</parameter>\nend",
    "see </function> here",
    "a line\n  <parameter=nested>\nin code",
    'print("<parameter=path>")',
    "<tool_call>\nnot a call\n</tool_call>",
    "<think>not a thought</think>",
    "<|im_end|>",
]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("value", VALUES)
def test_a_string_is_what_the_model_wrote(value, thinking):
    text = call("write", ("text", value), ("path", value))
    ((name, arguments),) = read(text, thinking=thinking).arguments
    assert (name, arguments) == ("write", {"text": value, "path": value})


LONG = (
    "They want it written.\n</think>\n\nI write it.\n\n"
    + call("write", ("path", "a <b>.txt"), ("mode", "420"), ("text", 'say "</parameter>"\n\n'))
    + "\n"
    + call("look")
    + "\n\nDone: 1 < 2."
)


@pytest.mark.parametrize("end", range(len(LONG) + 1))
def test_cut_at_every_position(end):
    """What a cut answer says is a prefix of the whole one, and an unfinished call lacks its end."""
    whole = read_whole(LONG)
    for is_cut in (True, False):
        answer = gather(events_of([LONG[:end]], thinking=True, cut=is_cut))
        assert gather(events_of(LONG[:end], thinking=True, cut=is_cut)) == answer
        if answer.calls or answer.content:
            assert answer.reasoning == whole.reasoning
        for (name, arguments), (whole_name, whole_arguments) in zip(
            answer.calls, whole.calls, strict=False
        ):
            assert name == whole_name
            if is_cut:
                assert whole_arguments.startswith(arguments)
            else:
                strict(arguments)
        assert answer.num_finished == len(answer.calls) or is_cut
        if is_cut and not answer.calls:
            reasoning, _, content = LONG[:end].partition("</think>")
            assert (answer.reasoning or "") == reasoning.rstrip("\n")
            content = re.sub(r"\s*<tool_call>.*", "", content, flags=re.DOTALL)
            assert (answer.content or "") == content.lstrip("\n")


def read_whole(text):
    answer = gather(events_of([text], thinking=True))
    assert answer == Answer(
        "They want it written.",
        "I write it.\n\nDone: 1 < 2.",
        [
            (
                "write",
                '{"path": "a <b>.txt", "mode": 420, "text": "say \\"</parameter>\\"\\n\\n"}',
            ),
            ("look", "{}"),
        ],
        2,
    )
    return answer


def test_many_tags_in_one_piece():
    events = events_of([LONG], thinking=True)
    assert [type(event).__name__ for event in events] == [
        "Reasoning", "Content", "CallStart", "CallArguments", "CallEnd",
        "CallStart", "CallArguments", "CallEnd", "Content",
    ]  # fmt: skip
    assert events[0] == Reasoning("They want it written.")
