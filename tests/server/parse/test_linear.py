"""The work is linear in the text, whatever the text: counted in lines run, not in seconds."""

import os
import sys

import pytest

import server.parse
from server.parse import OutputParser
from server.parse.lexer import MAX_NAME, Kind, Lexer
from tests.server.parse.answers import STRING, tool

FOLDER = os.path.dirname(server.parse.__file__)
TOOLS = [
    tool("f", a=STRING, n={"type": "integer"}, m={"type": ["string", "null"]}, o={"type": "array"})
]
VALUE = "<tool_call><function=f><parameter=a>"

# What the text begins with, and what is then repeated.
HOSTILE = {
    "angle brackets": ("", "<"),
    "openers": ("", "<tool_call>"),
    "openers in lines": ("", "<tool_call>\n\n "),
    "openers of functions": ("", "<tool_call><function="),
    "functions": ("", "<function="),
    "parameters": ("", "<parameter="),
    "a long function": ("<function=", "f"),
    "a long opener": ("<tool_call>", " "),
    "newlines": ("", "\n"),
    "spaces": ("x", " "),
    "closers": ("", "</think>"),
    "calls": ("", "<function=f></function>"),
    "calls that are left open": ("", "<tool_call><function=f>"),
    "text in a call": ("<function=f>", "x"),
    "brackets in a value": (VALUE, "<"),
    "parameters in a value": (VALUE, "<parameter="),
    "parameters on lines in a value": (VALUE, "\n<parameter=a>"),
    "closers in a value": (VALUE, "</parameter>"),
    "closers and spaces in a value": (VALUE, "</parameter> </function> "),
    "spaces after a closer": (f"{VALUE}</parameter>", "\n"),
    "newlines in a value": (VALUE, "\n"),
    "quotes in a value": (VALUE, '"'),
    "nulls": ("<function=f><parameter=m>", "null"),
    "digits": ("<function=f><parameter=n>", "7"),
    "brackets in an array": ("<function=f><parameter=o>", "["),
    "a name in a value": (f"{VALUE}\n<parameter=", "a"),
    "brackets in reasoning": ("<think>", "<"),
    "openers in reasoning": ("<think>", "<tool_call>\n"),
    "newlines in reasoning": ("<think>x", "\n"),
}
hostile = pytest.mark.parametrize(("start", "unit"), HOSTILE.values(), ids=list(HOSTILE))
LONG = (
    "angle brackets", "openers", "parameters", "a long opener", "newlines", "spaces",
    "text in a call", "brackets in a value", "parameters on lines in a value",
    "spaces after a closer", "newlines in a value", "nulls", "digits", "brackets in an array",
)  # fmt: skip


def lines_run(pieces):
    """How many lines of the parser run while it reads `pieces`."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    parser = OutputParser(thinking=False, tools=TOOLS)
    sys.settrace(trace)
    try:
        for piece in pieces:
            parser.feed(piece)
        parser.finish(cut=False)
    finally:
        sys.settrace(before)
    return count


@hostile
def test_as_much_text_again_is_as_much_work_again(start, unit):
    for split in (list, lambda text: [text]):
        once, twice, thrice = (lines_run(split(start + unit * n)) for n in (300, 600, 900))
        assert thrice - twice <= 1.05 * (twice - once) + 20


@hostile
def test_a_character_costs_a_bounded_number_of_steps(start, unit):
    text = start + unit * 500
    assert lines_run(text) <= 100 * len(text) + 1000


@pytest.mark.timeout(100)
@pytest.mark.parametrize(("start", "unit"), [HOSTILE[name] for name in LONG], ids=LONG)
def test_a_megabyte_is_read(start, unit):
    """What lines do not show is copying: of all that is held back, for each of 60,000 pieces."""
    text = start + unit * (1_000_000 // len(unit))
    parser = OutputParser(thinking=False, tools=TOOLS)
    events = [event for i in range(0, len(text), 16) for event in parser.feed(text[i : i + 16])]
    events += parser.finish(cut=False)
    assert sum(len(getattr(event, "text", "")) for event in events) <= 2 * len(text) + 100


@hostile
def test_the_lexer_holds_back_one_tag(start, unit):
    lexer = Lexer(calls=True)
    raws = ""
    text = start + unit * 500
    for num_fed, char in enumerate(text, start=1):
        raws += "".join(lexeme.raw for lexeme in lexer.feed(char))
        assert num_fed - len(raws) <= MAX_NAME + len("<parameter=")
    rest = lexer.finish()
    assert raws + (rest.raw if rest else "") == text


@pytest.mark.parametrize("opener", ["<function=", "<parameter="])
def test_the_longest_name(opener):
    (tag,) = Lexer(calls=True).feed(f"{opener}{'n' * MAX_NAME}>")
    assert tag.name == "n" * MAX_NAME
    tag, text = Lexer(calls=True).feed(f"{opener}{'n' * (MAX_NAME + 1)}>")
    assert (tag.name, text.kind, text.raw) == ("", Kind.TEXT, "n>")
