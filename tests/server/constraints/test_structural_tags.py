"""Expectations are xgrammar 0.2.8's own, asked through `Grammar.from_structural_tag`."""

import json
import random
import re
from typing import Any

import pytest

from server.constraints.reader import ConstraintReader
from server.errors import BadRequest
from tests.engine.grammar.sampling import Babbler

INTEGER = {"type": "json_schema", "json_schema": {"type": "integer"}}
TEXT = {"type": "any_text"}


def const(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def tag(begin: str, end: Any, content: Any = INTEGER) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def sequence(*elements: Any) -> dict[str, Any]:
    return {"type": "sequence", "elements": list(elements)}


FUNCTIONS = {
    "type": "triggered_tags",
    "triggers": ["<f"],
    "tags": [tag("<f=a>", "</f>"), tag("<f=b>", "</f>")],
}
SEPARATED = {
    "type": "tags_with_separator",
    "tags": [tag("<a>", "</a>"), tag("<b>", "</b>")],
    "separator": ",",
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}

# Formats, answers that fit and answers that do not.
FORMATS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (const("ab \n"), ["ab \n"], ["", "ab", "ab \n."]),
    ({"type": "regex", "pattern": "[ab]+"}, ["ab", "b"], ["", "abx"]),
    (TEXT, ["", "x <y>\n"], []),
    ({**TEXT, "excludes": ["<", "no"]}, ["", "n o"], ["a<", "know"]),
    ({**TEXT, "max_chars": 3}, ["", "äöü"], ["abcd"]),
    (INTEGER, ["5", "-31"], ["", "5 ", "x"]),
    (FUNCTIONS,
     ["", "hi", "< f", "hi<f=a>1</f>", "hi<f=a>1</f>more", "<f=a>1</f><f=b>22</f>"],
     ["hi<f", "<f=a>x</f>", "<f=c>1</f>", "<f=a>1", "<f=a>1</f> <f"]),
    ({**FUNCTIONS, "at_least_one": True},
     ["<f=a>1</f>", "<f=a>1</f>more", "<f=a>1</f>more<f=b>2</f>"],
     ["", "hi", "hi<f=a>1</f>"]),
    ({**FUNCTIONS, "stop_after_first": True},
     ["", "hi", "hi<f=a>1</f>"], ["<f=a>1</f>more", "<f=a>1</f><f=b>1</f>"]),
    ({**FUNCTIONS, "at_least_one": True, "stop_after_first": True},
     ["<f=a>1</f>", "<f=b>1</f>"], ["", "hi<f=a>1</f>", "<f=a>1</f>m"]),
    ({**FUNCTIONS, "excludes": ["bad"]},
     ["ba", "<f=a>1</f>ba", "b<f=a>1</f>ad"], ["bad", "bad<f=a>1</f>", "<f=a>1</f>bad"]),
    ({**FUNCTIONS, "triggers": ["<f=a", "<f=b"]},
     ["<f=c>", "<f=a>1</f>x<f=b>2</f>"], ["<f=a", "<f=bc>"]),
    ({**FUNCTIONS, "triggers": ["<f", "unused"]}, ["x", "<f=a>1</f>"], ["unused"]),
    (tag("<a>", "</a>", TEXT), ["<a>x</a>", "<a></a>", "<a></ab></a>"],
     ["<a>", "<a>x</a></a>", "x<a></a>"]),
    (tag("<a>", ["</a>", "</b>"], TEXT), ["<a>x</a>", "<a>x</b>"], ["<a>x</b></a>", "<a>x"]),
    (tag("<a>", ["</a>", ""]), ["<a>1</a>", "<a>1"], ["<a>", "<a>1</a>1"]),
    (tag("<a>", "</a>", FUNCTIONS), ["<a>x</a>", "<a>x<f=a>1</f>y</a>"],
     ["<a>x<f</a>", "<a></a></a>", "<a><f=a>1</f>"]),
    (tag("<a>", "</a>", {**FUNCTIONS, "stop_after_first": True}),
     ["<a>x</a>", "<a>x<f=a>1</f></a>"], ["<a>x<f=a>1</f>y</a>"]),
    (tag("<a>", "</a>", {**FUNCTIONS, "at_least_one": True}),
     ["<a><f=a>1</f></a>", "<a><f=a>1</f>y</a>"], ["<a></a>", "<a>x<f=a>1</f></a>"]),
    (tag("<a>", "</a>", {**FUNCTIONS, "at_least_one": True, "stop_after_first": True}),
     ["<a><f=a>1</f></a>"], ["<a></a>", "<a><f=a>1</f>y</a>"]),
    (tag("<a>", "</a>", sequence(const("c"), TEXT)), ["<a>cx</a>"], ["<a>x</a>", "<a>c</a></a>"]),
    (tag("<a>", "</a>", {"type": "regex", "pattern": "[a-z<>/]+"}), ["<a>x</a>", "<a><b></a>"],
     ["<a></a>", "<a>x"]),
    (tag("<a>", "</a>", {"type": "or", "elements": [INTEGER, const("none")]}),
     ["<a>1</a>", "<a>none</a>"], ["<a></a>", "<a>n</a>"]),
    (tag("<a>", "</a>", {"type": "or", "elements": [const("c"), TEXT]}), ["<a>cx</a>", "<a>c</a>"],
     ["<a>cx</a></a>"]),
    (sequence(TEXT, const("X")), ["aX", "aXX", "X"], ["a", ""]),
    (sequence(tag("<think>", "</think>", TEXT), INTEGER), ["<think>so</think>12"],
     ["12", "<think>so</think>", "<think>1</think></think>1"]),
    (SEPARATED, ["", "<a>1</a>", "<a>1</a>,<b>2</b>"], ["<a>1</a>,", "<a>1</a><b>2</b>", ","]),
    ({**SEPARATED, "at_least_one": True}, ["<b>1</b>", "<a>1</a>,<a>2</a>"], [""]),
    ({**SEPARATED, "stop_after_first": True}, ["", "<a>1</a>"], ["<a>1</a>,<a>2</a>"]),
    ({**SEPARATED, "separator": ""}, ["", "<a>1</a><a>2</a>"], ["<a>1</a>,<a>2</a>"]),
    ({"type": "dispatch", "rules": [["<x>", const("1")], ["<y>", INTEGER]]},
     ["", "a<x>1b<x>1", "<y>22 "], ["<x>2", "<x>", "<y>z"]),
    ({"type": "dispatch", "loop": False, "rules": [["<x>", const("1")]]},
     ["", "abc", "ab<x>1"], ["<x>1b", "<x>1b<x>1"]),
    (sequence(INTEGER, {"type": "optional", "content": const("!")}), ["1", "1!"], ["1!!"]),
    ({"type": "plus", "content": sequence(INTEGER, const(";"))}, ["1;", "1;2;"], ["", "1"]),
    ({"type": "star", "content": const("ab")}, ["", "abab"], ["aba"]),
    ({"type": "repeat", "min": 1, "max": 2, "content": const("ab")}, ["ab", "abab"],
     ["", "ababab"]),
    ({"type": "repeat", "min": 2, "max": -1, "content": sequence(INTEGER, const(";"))},
     ["1;2;", "1;2;3;"], ["1;"]),
    ({"type": "json_schema", "json_schema": PERSON, "max_whitespace_cnt": 0},
     ['{"name":"x","age":1}'], ['{"name": "x","age":1}', '{"age":1,"name":"x"}']),
]  # fmt: skip
LEGACY = {
    "type": "structural_tag",
    "triggers": ["<function="],
    "structures": [{"begin": "<function=f>", "schema": PERSON, "end": "</function>"}],
}
CALL = '<function=f>{"name": "x", "age": 3}</function>'

REFUSED: list[tuple[Any, str]] = [
    ([], "format must be an object"),
    ({}, "format.type must be one of const_string"),
    ({"type": {}}, "format.type must be one of const_string"),
    ({"type": "magic"}, "format.type must be one of const_string"),
    ({"type": "token", "token": 3}, "format.type token is not supported"),
    ({"type": "token_triggered_tags"}, "token_triggered_tags is not supported"),
    ({"type": "grammar", "grammar": 'root ::= "a"'}, "format.type must be one of"),
    ({"type": "json_schema"}, "format.json_schema is required"),
    ({"type": "json_schema", "json_schema": {"type": "x"}}, "json_schema.type must be among"),
    ({"type": "json_schema", "json_schema": {}, "style": "glm_xml"}, "style must be"),
    ({"type": "json_schema", "json_schema": {}, "excludes": ["x"]}, "excludes is not supported"),
    ({"type": "regex", "pattern": "("}, "format.pattern cannot be used: unbalanced"),
    ({"type": "regex", "pattern": 3}, "format.pattern must be a string"),
    ({**TEXT, "max_tokens": 3}, "format.max_tokens is not supported"),
    ({**TEXT, "max_chars": -1}, "format.max_chars must be an integer from 0"),
    ({**TEXT, "excludes": "x"}, "format.excludes must be a list of strings"),
    (sequence(), "format.elements must be a list that is not empty"),
    (sequence(TEXT, 3), "format.elements.1 must be an object"),
    ({"type": "or"}, "format.elements must be a list"),
    (tag("<a>", "", TEXT), "format.content has no end"),
    (tag("<a>", [], TEXT), "format.end must be"),
    (tag("<a>", {"type": "token", "token": 1}), "format.end must be"),
    (tag({"type": "token", "token": 1}, ""), "format.begin must be a string"),  # type: ignore[arg-type]
    ({**FUNCTIONS, "triggers": ["<f", "<f="]}, "tags.0.begin must begin with exactly one"),
    ({**FUNCTIONS, "triggers": ["<g"]}, "tags.0.begin must begin with exactly one"),
    ({**FUNCTIONS, "triggers": []}, "format.triggers must be a list of strings"),
    ({**FUNCTIONS, "triggers": [""]}, "format.triggers must be a list of strings"),
    ({**FUNCTIONS, "triggers": ["<f", "f"]}, "of which one contains another"),
    ({**FUNCTIONS, "tags": []}, "format.tags must be a list that is not empty"),
    ({**FUNCTIONS, "tags": [const("<f")]}, "format.tags.0.begin must be a string"),
    ({**FUNCTIONS, "at_least_one": 1}, "format.at_least_one must be true or false"),
    ({**FUNCTIONS, "excludes": [""]}, "must not hold an empty string"),
    (tag("<a>", "<f", FUNCTIONS), "has a trigger that is also the end"),
    ({**SEPARATED, "separator": None}, "format.separator must be a string"),
    ({"type": "dispatch", "rules": [["<x>"]]}, "format.rules.0 must be a string and a format"),
    ({"type": "repeat", "min": 3, "max": 2, "content": const("a")}, "format.max must be at least"),
    ({"type": "repeat", "min": 0, "max": 10_001, "content": const("a")}, "from -1 to 10000"),
    ({"type": "star", "content": None}, "format.content must be an object"),
]


def structural(format_: Any) -> dict[str, Any]:
    return {"type": "structural_tag", "format": format_}


@pytest.mark.parametrize(
    ("format_", "fits", "does_not"), FORMATS, ids=lambda value: str(value)[:60]
)
def test_formats_mean_what_they_mean_elsewhere(
    reader: ConstraintReader,
    babbler: Babbler,
    format_: dict[str, Any],
    fits: list[str],
    does_not: list[str],
):
    spec = reader.read({"response_format": structural(format_)})
    assert spec is not None
    assert [text for text in fits if not babbler.accepts(spec, text)] == []
    assert [text for text in does_not if babbler.accepts(spec, text)] == []


@pytest.mark.parametrize(
    "request_",
    [
        {"response_format": LEGACY},
        {"structured_outputs": {"structural_tag": json.dumps(LEGACY)}},
        {"structured_outputs": {"structural_tag": LEGACY}},
        {"structural_tag": json.dumps(LEGACY)},
        {
            "response_format": structural(
                {
                    "type": "triggered_tags",
                    "triggers": LEGACY["triggers"],
                    "tags": [
                        tag(
                            "<function=f>",
                            "</function>",
                            {"type": "json_schema", "json_schema": PERSON},
                        )
                    ],
                }
            )
        },
    ],
    ids=["legacy", "as text", "as an object", "top level", "newer"],
)
def test_both_forms_and_all_fields_are_read(
    reader: ConstraintReader, babbler: Babbler, request_: dict[str, Any]
):
    spec = reader.read(request_)
    assert spec is not None
    assert spec.bounds_numbers
    for text in ("", "Hello.", CALL, f"So:\n{CALL}\n\nand {CALL}.", "<functions", "<"):
        assert babbler.accepts(spec, text), text
    for text in ("<function=g>{}</function>", CALL[:-1], CALL.replace("3", '"3"'), "<function="):
        assert not babbler.accepts(spec, text), text


def test_random_answers_hold_only_calls_that_fit(reader: ConstraintReader, babbler: Babbler):
    spec = reader.read({"response_format": LEGACY})
    assert spec is not None
    num_calls = 0
    for seed in range(12):
        rng = random.Random(seed)
        text = babbler.answer(spec, rng, free_tokens=20, begin="Call <function=" * (seed % 2))
        for body in re.findall("<function=(.*?)</function>", text, re.DOTALL):
            name, _, arguments = body.partition(">")
            assert name == "f"
            assert list(json.loads(arguments)) == ["name", "age"]
            num_calls += 1
        assert text.count("<function=") == text.count("</function>") or not num_calls
    assert num_calls >= 6


def test_thinking_comes_before(reader: ConstraintReader, babbler: Babbler):
    spec = reader.read({"response_format": LEGACY}, after_token_id=babbler.id_of("</think>"))
    assert spec is not None
    assert babbler.accepts(spec, f"<function=?\n</think>\n\n{CALL}")


def test_tools_may_be_called_instead(reader: ConstraintReader, babbler: Babbler):
    tools = [{"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}]
    spec = reader.read({"response_format": structural(tag("<a>", "</a>")), "tools": tools})
    assert spec is not None
    assert babbler.accepts(spec, "<a>1</a>")
    assert babbler.accepts(spec, "<tool_call>\n<function=g>\n</function>\n</tool_call>")


@pytest.mark.parametrize(("format_", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_named(reader: ConstraintReader, format_: Any, message: str):
    with pytest.raises(BadRequest) as refusal:
        reader.read({"response_format": structural(format_)})
    assert (refusal.value.status, refusal.value.param) == (400, "response_format")
    assert message in refusal.value.message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"type": "structural_tag"}, "triggers must be"),
        ({**LEGACY, "structures": 3}, "structures must not be empty"),
        ({**LEGACY, "structures": [3]}, "structures.0 must be an object"),
        ({**LEGACY, "structures": [{"begin": "<function="}]}, "structures.0.end must be"),
        ({**LEGACY, "triggers": "<f"}, "triggers must be a list"),
        (structural(const("x" * 300_000)), "larger than 262144 bytes"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_older_form_is_checked_too(reader: ConstraintReader, value: Any, message: str):
    with pytest.raises(BadRequest, match=message):
        reader.read({"response_format": value})
    with pytest.raises(BadRequest, match=r"structured_outputs\.structural_tag"):
        reader.read({"structured_outputs": {"structural_tag": "{}"}})
    with pytest.raises(BadRequest, match="must be an object"):
        reader.read({"structured_outputs": {"structural_tag": 3}})


def test_deep_formats_are_refused(reader: ConstraintReader):
    deep: dict[str, Any] = const("x")
    for _ in range(200):
        deep = {"type": "optional", "content": deep}
    with pytest.raises(BadRequest, match="nested deeper"):
        reader.read({"response_format": structural(deep)})
