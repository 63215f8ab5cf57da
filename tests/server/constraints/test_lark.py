"""Clients' grammars are bounded like schemas and expressions, and refused by line."""

import random
import time

import pytest

from server.constraints import ConstraintReader, GrammarChecker
from server.constraints.client_grammar import ClientGrammar
from server.constraints.lark import UnusableGrammar
from server.errors import BadRequest
from server.limits import Limits
from tests.engine.grammar.sampling import Babbler

SERVED: list[tuple[str, str]] = [
    ('start: a\na: %json {"type": "object", "properties": {"x": {"type": "integer"}},\n'
     ' "required": ["x"]} "!"', '{"x": 1}!'),
    ('start: %json {"type": "object", "properties": {"x": {"not": {"type": ["object", "array",'
     ' "string", "boolean", "null"]}, "maximum": 9}}, "required": ["x"]}', '{"x": 1}'),
    ('start: "a"~2..3 "b"{1,2} ("c" | "d")?', "aabc"),
    ("start: /[a-z]{2,10000}/i", "abC"),
    (r"start: /\x{20000}\{20000\}/", "\U00020000{20000}"),
    ('// from here\r\nstart: x // "no"{1,20000}\n# %json {"multipleOf": 100000007}\nx: "//#x"',
     "//#x"),
    ('start: T\nT: /[a-z]+/ & ~/(?s:.*)b(?s:.*)/', "acd"),
    ('start: ("a"\n  | "b")\n  | "c"i', "C"),
    ('%import common.INT\n%ignore / /\nstart: INT ","', "12 ,"),
    ('start: %lark {\n  start: "x" y\n  y: "z"\n}', "xz"),
    ('start: %regex {"substring_chars": "abcde"}', "bcd"),
    ('start: l::0x0\nl::_: "" | "a" l::incr([0:20]) %if lt([0:20], 50000)', "aaa"),
    ('%llguidance {"no_forcing": false}\nstart: "\\u0041\\x42"', "AB"),
    ('root ::= "a" foo-Bar{2,3}\nfoo-Bar ::= [a-z/] | "\\"" # {1,20000}', 'a/"'),
]  # fmt: skip
REFUSED: list[tuple[str, int, str]] = [
    ('start: %json {"type": "integer", "multipleOf": 100000007}', 1, "%json.multipleOf must"),
    ('start: "x" a\na: %json {\n"type": "array",\n"maxItems": 20000}\n', 2, "%json.maxItems must"),
    ('start: %json {"not": {"pattern": "a"}}', 1, "%json.not is not supported"),
    ('start: %json {"a": 1', 1, "not followed by JSON"),
    ('start: %json {"a": NaN}', 1, "is not valid JSON"),
    ('start: %json {"$ref": "https://example.org"}', 1, "inside the schema"),
    ("start: %json " + '{"items":' * 100 + "{}" + "}" * 100, 1, "nested deeper"),
    ('start: %regex {"unknown": 1}', 1, "%regex"),
    ('start: x\nx: %lark {\nstart: %json {"type": "integer", "multipleOf": 100000007}\n}', 3,
     "%json.multipleOf must"),
    ('%llguidance {"allow_invalid_utf8": true}\nstart: "a"', 1, "may set"),
    ("start: a\n\na: /[a-z]{1,20000}/", 3, "at character 6 of a regular expression"),
    ("start: a\n\na: /(?x)[a-z]{ 1 , #\n 20000 }/", 3, "at character 10 of a regular"),
    (r"start: /\\{20000}/", 1, "at character 3 of a regular expression"),
    ('start: "ab"{0,50000}', 1, "a repetition that is not bounded"),
    ('start: ("ab"\n | "c"){ , 50000 }', 2, "a repetition that is not bounded"),
    ('start: "x"\n  | "ab"~50000', 2, "a repetition that is not bounded"),
    ('start: "ab" ~ 1 .. 50000', 1, "a repetition that is not bounded"),
    ('start: "ab"{99999999999999999999}', 1, "a repetition that is not bounded"),
    ('root ::= "a"\nb ::= "x"{0,50000}', 2, "a repetition that is not bounded"),
    ('root ::= a\n\na ::= "b"\n root ::= "c"', 4, "a rule of that name already"),
    ("root ::= a\n\na ::= [a-z]{20000}", 3, "a repetition that is not bounded"),
    ('start: "a"\nb: @other', 2, "refers to another grammar"),
    ('start: "a"\nb: $', 2, "is malformed"),
    ('root ::= "a"\n\nb ::= (', 3, "is malformed"),
    ('root ::= "a"\nb ::= "a" missing', 2, "it names a rule that is not there"),
]  # fmt: skip


@pytest.mark.parametrize(("grammar", "answer"), SERVED, ids=str)
def test_what_is_served_means_what_it_says(
    reader: ConstraintReader, babbler: Babbler, grammar: str, answer: str
):
    spec = reader.read({"guided_grammar": grammar})
    assert spec is not None
    assert babbler.accepts(spec, answer)
    assert not babbler.accepts(spec, answer + "#")


@pytest.mark.parametrize(("grammar", "line", "message"), REFUSED, ids=str)
def test_what_is_not_is_refused_by_its_line(grammar: str, line: int, message: str):
    with pytest.raises(UnusableGrammar, match=r".") as refusal:
        ClientGrammar(grammar)
    assert refusal.value.line == line
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(("grammar", "line", "message"), REFUSED, ids=str)
def test_a_request_with_it_is_refused_at_once(
    reader: ConstraintReader, grammar: str, line: int, message: str
):
    before = time.monotonic()
    with pytest.raises(BadRequest) as refusal:
        reader.read({"structured_outputs": {"grammar": grammar}})
    assert time.monotonic() - before < 4, "nothing of it was compiled"
    assert refusal.value.param == "structured_outputs"
    assert refusal.value.message.startswith(
        f"structured_outputs.grammar cannot be used: in line {line} "
    )


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ('start: "a"\n  nowhere\n', "in line 2 it is malformed"),
        ('start: "a" b\nb: "too" nowhere', "in line 2 it is malformed: it names a rule"),
        ("start: a\na: /x(?=y)/", "in line 2 it is malformed: it has a regular expression"),
        ('start: a\na: "limit"{3,2}', "in line 2 it is malformed"),
        ("root ::= a\na ::= [z-a]", "in line 2 it is malformed: it has a regular expression"),
    ],
)
def test_what_the_engine_refuses_is_refused_by_its_line(
    checker: GrammarChecker, grammar: str, said: str
):
    with pytest.raises(BadRequest) as refusal:
        checker.from_ebnf(grammar, "ebnf")
    assert refusal.value.message.startswith(f"ebnf cannot be used: {said}")
    assert "start" not in refusal.value.message, "nothing of the grammar is repeated"


def test_blanks_in_embedded_json_are_bounded(reader: ConstraintReader, babbler: Babbler):
    spec = reader.read({"guided_grammar": 'start: %json {"type": "array", "items": {}}'})
    assert spec is not None
    assert babbler.accepts(spec, "[ 1]")
    assert not babbler.accepts(spec, "[  1]")


def line_refused(text: str) -> int | None:
    try:
        ClientGrammar(text)
    except UnusableGrammar as error:
        return error.line
    return None


def test_any_text_is_read_or_refused():
    pieces = ['"', "/", "\\", "{", "}", "start:", "%json", "%lark", "\n", " ", "a", "~", "9", "//"]
    for seed in range(300):
        text = "start: " + "".join(random.Random(seed).choices(pieces, k=12))
        assert line_refused(text) in (None, *range(1, text.count("\n") + 2))


@pytest.mark.parametrize("text", ['start: "' + "a" * 250_000, "start: /" + "\\a" * 120_000])
def test_a_large_grammar_is_read_without_going_back(text: str):
    assert line_refused(text) == 1
    assert line_refused(text + text[7]) is None
    assert line_refused("start: " + "{" * 250_000) is None, "the engine's to refuse"


def test_the_operators_limits_hold_in_clients_grammars(checker: GrammarChecker):
    reader = ConstraintReader(checker, Limits(max_repeat=20, max_schema_properties=1))
    for grammar, refusal in (
        ("start: /a{21}/", "more than 20"),
        ('start: "a"{2,21}', "at most 20"),
        ('start: %json {"properties": {"a": {}, "b": {}}}', "past 1 properties"),
    ):
        with pytest.raises(BadRequest, match=refusal):
            reader.read({"guided_grammar": grammar})
        assert ConstraintReader(checker).read({"guided_grammar": grammar}) is not None
