import json
import random
from typing import Any

import pytest

from server.constraints.reader import ConstraintReader
from server.errors import BadRequest
from tests.engine.grammar.sampling import Babbler

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
LARK = 'start: "a" DIGIT+\nDIGIT: /[0-9]/'
EBNF = 'root ::= "a" digit+\ndigit ::= [0-9]'


def json_schema(schema: Any, **others: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **others}}


# Requests, and an answer that fits each.
SERVED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_object"}}, '{"x": [1, {}]}'),
    ({"response_format": json_schema(SCHEMA)}, '{"a": 1}'),
    ({"response_format": json_schema(SCHEMA, strict=True)}, '{"a": 1}'),
    ({"response_format": json_schema(SCHEMA, strict=False)}, '{"a": 1}'),
    ({"structured_outputs": {"json": SCHEMA}}, '{"a": 1}'),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, '{"a": 1}'),
    ({"structured_outputs": {"json": SCHEMA, "regex": None, "json_object": False}}, '{"a": 1}'),
    ({"structured_outputs": {"json_object": True}}, "{}"),
    ({"structured_outputs": {"regex": "[ab]{2}/"}}, "ab/"),
    ({"structured_outputs": {"choice": ["yes", "no\n", "é \\"]}}, "no\n"),
    ({"structured_outputs": {"choice": ["yes", "yes, but"]}}, "yes, but"),
    ({"structured_outputs": {"grammar": EBNF}}, "a12"),
    ({"structured_outputs": {"grammar": LARK}}, "a12"),
    ({"guided_json": SCHEMA}, '{"a": 1}'),
    ({"guided_regex": "[ab]{2}"}, "ab"),
    ({"guided_choice": ["x", "y"]}, "y"),
    ({"guided_grammar": EBNF}, "a12"),
    ({"regex": "^[ab]{2}$"}, "ab"),
    ({"ebnf": EBNF}, "a12"),
    ({"json_schema": json.dumps(SCHEMA)}, '{"a": 1}'),
    ({"response_format": {"type": "text"}, "guided_regex": "a"}, "a"),
]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": "json"}, "response_format", "must be an object"),
    ({"response_format": {}}, "response_format", "response_format.type must be one of"),
    ({"response_format": {"type": "xml"}}, "response_format", "type must be one of"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema must be an"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
     "response_format", "json_schema.schema is required"),
    ({"response_format": json_schema(SCHEMA, strict="yes")}, "response_format", "strict must"),
    ({"response_format": json_schema({"type": "x"})}, "response_format", "schema.type must"),
    ({"response_format": json_schema([])}, "response_format", "schema must be a schema"),
    ({"structured_outputs": []}, "structured_outputs", "must be an object"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one of json, regex"),
    ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"json_object": 1}}, "structured_outputs", "true or false"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs", "is not valid JSON"),
    ({"structured_outputs": {"json": 3}}, "structured_outputs", "must be a schema"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs", "not empty"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs", "list of strings"),
    ({"structured_outputs": {"choice": "ab"}}, "structured_outputs", "list of strings"),
    ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs", "list of strings"),
    ({"structured_outputs": {"choice": ["a"] * 10_001}}, "structured_outputs", "more than 10000"),
    ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs", "it is malformed"),
    ({"structured_outputs": {"grammar": "root ::= missing"}}, "structured_outputs", "malformed"),
    ({"structured_outputs": {"grammar": "start: <|im_end|>"}}, "structured_outputs", "malformed"),
    ({"guided_regex": 3}, "guided_regex", "must be a string"),
    ({"guided_regex": "("}, "guided_regex", "unbalanced parenthesis"),
    ({"guided_regex": "a{1,99999}"}, "guided_regex", "bounded by more than 10000"),
    ({"guided_regex": "a" * 300_000}, "guided_regex", "larger than 262144 bytes"),
    ({"guided_grammar": "root ::= " + "(" * 50_000}, "guided_grammar", "cannot be used"),
    ({"json_schema": "[1]"}, "json_schema", "must be a JSON object"),
    ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex", "cannot be combined"),
    ({"response_format": {"type": "json_object"}, "guided_json": SCHEMA}, "guided_json",
     "response_format and guided_json cannot be combined"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "answer"), SERVED, ids=str)
def test_each_field_binds_the_answer(
    reader: ConstraintReader, babbler: Babbler, request_: dict[str, Any], answer: str
):
    spec = reader.read(request_)
    assert spec is not None
    assert spec.after_token_id is None
    assert babbler.accepts(spec, answer)
    for wrong in ("", f"{answer} ", f" {answer}", "x" + answer, "# no"):
        assert not babbler.accepts(spec, wrong)


@pytest.mark.parametrize(("request_", "answer"), SERVED, ids=str)
def test_behind_the_thinking_it_begins_with_a_blank_line(
    reader: ConstraintReader, babbler: Babbler, request_: dict[str, Any], answer: str
):
    spec = reader.read(request_, after_token_id=babbler.id_of("</think>"), call_token_id=0)
    assert spec is not None
    assert spec.banned_before == ()
    assert babbler.accepts(spec, f"Thinking.\n</think>\n\n{answer}")
    assert not babbler.accepts(spec, f"Thinking.\n</think>{answer}")
    assert not babbler.accepts(spec, answer), "an answer does not end while the model thinks"


@pytest.mark.parametrize(("request_", "param", "message"), REFUSED, ids=str)
def test_what_is_wrong_is_refused_by_its_field(
    reader: ConstraintReader, request_: dict[str, Any], param: str, message: str
):
    with pytest.raises(BadRequest) as refusal:
        reader.read(request_)
    assert refusal.value.status == 400
    assert refusal.value.param == param
    assert message in refusal.value.message
    assert len(refusal.value.message) < 300


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"response_format": None, "guided_json": None, "structured_outputs": None, "tools": None},
        {"response_format": {"type": "text"}},
        {"tools": [{"type": "function", "function": {"name": "f", "strict": False}}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"},
    ],
)
def test_a_request_may_ask_for_nothing(reader: ConstraintReader, request_: dict[str, Any]):
    assert reader.read(request_) is None


def test_choices_are_all_there_is(reader: ConstraintReader, babbler: Babbler):
    choices = ["red", "green", "blue", "re", "日本", "</think>", "\n", '"']
    spec = reader.read({"guided_choice": choices})
    assert spec is not None
    answers = {babbler.answer(spec, random.Random(i), free_tokens=9) for i in range(80)}
    assert answers == set(choices)


def test_many_choices_are_served(reader: ConstraintReader, babbler: Babbler):
    choices = [f"choice {i}" for i in range(10_000)]
    spec = reader.read({"guided_choice": choices})
    assert spec is not None
    for seed in range(5):
        assert babbler.stubborn(spec, random.Random(seed).choice) in choices


def test_a_grammar_of_the_client_cannot_name_tokens(reader: ConstraintReader, babbler: Babbler):
    spec = reader.read({"guided_grammar": 'start: "a" <[0-255]> /b/'})
    assert spec is not None
    answer = babbler.answer(spec, random.Random(0), free_tokens=5)
    assert answer[0] == "a"
    assert answer[-1] == "b"
