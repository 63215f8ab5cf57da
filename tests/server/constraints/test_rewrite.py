"""Keywords that the engine lacks: rewritten they mean the same, or they are refused."""

import itertools
import json
import random
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from server.constraints.reader import ConstraintReader
from server.constraints.rewrite import rewritten
from server.errors import BadRequest
from tests.engine.grammar.sampling import Babbler

KIND = {"enum": ["card", "cash", "none"]}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 9}


def objects(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or []}


def when(value: Any, then: Any, **others: Any) -> dict[str, Any]:
    return {"if": {"properties": {"kind": value}, **others}, "then": then}


PAYMENT = objects(["kind"], kind=KIND, number=NUMBER, coins=NUMBER)
CARD = {"const": "card"}
NEEDS_NUMBER = {"required": ["number"]}

# Schemas, and keys or values to make all small candidates of.
SERVED: list[dict[str, Any]] = [
    {**PAYMENT, **when(CARD, NEEDS_NUMBER)},
    {**PAYMENT, **when(CARD, NEEDS_NUMBER), "else": {"properties": {"number": False}}},
    {**objects(kind=KIND, number=NUMBER), **when(CARD, NEEDS_NUMBER)},
    {**objects(kind=KIND, number=NUMBER), **when(CARD, NEEDS_NUMBER, required=["kind"])},
    {**PAYMENT, **when({"enum": ["card", "cash"]}, {"properties": {"number": {"const": 3}}})},
    {**PAYMENT, "allOf": [
        when(CARD, NEEDS_NUMBER), when({"const": "cash"}, {"required": ["coins"]}),
    ]},
    {**PAYMENT, "additionalProperties": False,
     **when(CARD, {"properties": {"extra": NUMBER}})},
    {**objects(["kind"], kind={"type": "boolean"}, number=NUMBER),
     **when({"const": True}, NEEDS_NUMBER), "else": False},
    {**PAYMENT, "if": {"properties": {"kind": CARD}}},
    {**PAYMENT, "then": False},
    {**objects(a=NUMBER, b=NUMBER, c=NUMBER), "dependentRequired": {"a": ["b"], "b": ["c"]}},
    {**objects(a=NUMBER, b=NUMBER), "dependentSchemas": {"a": {"properties": {"b": False}}}},
    {**objects(a=NUMBER, b=NUMBER), "dependentSchemas": {"a": False}},
    {**objects(["a"], a=NUMBER, b=NUMBER), "dependentRequired": {"a": ["b"]}},
    {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": NUMBER},
    {**objects(a=NUMBER, b=NUMBER, c=NUMBER), "propertyNames": {"enum": ["a", "c"]}},
    {"type": "object", "propertyNames": {"pattern": "^[ab]$"}, "additionalProperties": NUMBER},
    {**objects(a=NUMBER, bb=NUMBER), "propertyNames": {"maxLength": 1}},
    {"type": "object", "propertyNames": {"minLength": 1, "maxLength": 2},
     "additionalProperties": NUMBER},
    {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": NUMBER},
    {"type": "object", "propertyNames": False},
    {"type": ["integer", "null", "boolean"], "not": {"type": "integer"}, "maximum": 3},
    {"enum": ["a", "b", 1, None], "not": {"enum": ["b", None]}},
    {"enum": ["a", "b"], "not": {"const": "a"}},
    {**objects(a=NUMBER, b=NUMBER), "not": {"required": ["a"]}},
    {**objects(a=NUMBER), "not": False},
    {"type": "array", "items": {"enum": ["x", "y", "z"]}, "uniqueItems": True},
    {"type": "array", "items": {"enum": ["x", "y", 1, 1]}, "uniqueItems": True, "minItems": 2},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True},
    {"type": "array", "items": {"$ref": "#/$defs/c"}, "uniqueItems": True, "maxItems": 2,
     "$defs": {"c": {"enum": ["x", "y", "z"]}}},
    {"type": "array", "items": NUMBER, "uniqueItems": True, "maxItems": 1},
    {"type": "array", "items": NUMBER, "uniqueItems": False, "maxItems": 3},
    {**objects(["a"], a=NUMBER), "unevaluatedProperties": False},
    {"type": "array", "prefixItems": [NUMBER], "unevaluatedItems": False},
    {"type": "array", "items": NUMBER, "contains": {}, "maxItems": 3},
    {"type": "array", "items": NUMBER, "contains": True, "minContains": 2, "maxContains": 3},
    {"type": "array", "items": NUMBER, "contains": {"const": 5}, "minContains": 0, "maxItems": 2},
]  # fmt: skip
DRAFT_7: list[dict[str, Any]] = [
    {**objects(a=NUMBER, b=NUMBER), "dependencies": {"a": ["b"]}},
    {**objects(a=NUMBER, b=NUMBER), "dependencies": {"a": {"required": ["b"]}}},
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "items": {"enum": [*range(30)]}, "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "items": {"enum": [[1], [1]]}, "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": {"const": 5}}, "contains"),
    ({"type": "array", "contains": {}, "minContains": "x"}, "contains"),
    ({"type": "string", "not": {"const": "a"}}, "not"),
    ({"type": "number", "not": {"type": "integer"}}, "not"),
    ({"type": "integer", "not": {"minimum": 3}}, "not"),
    ({**objects(a=NUMBER, b=NUMBER), "not": {"required": ["a", "b"]}}, "not"),
    ({"not": {"$ref": "#/nowhere"}}, "not"),
    ({**PAYMENT, "if": {"required": ["number"]}, "then": {"required": ["coins"]}}, "if"),
    ({**PAYMENT, **when({"type": "string"}, NEEDS_NUMBER)}, "if"),
    ({**PAYMENT, **when(CARD, {"minProperties": 2})}, "if"),
    ({**objects(["kind"], kind={"type": "string"}), **when(CARD, NEEDS_NUMBER)}, "if"),
    ({"type": "object", "propertyNames": {"format": "uuid"}}, "propertyNames"),
    ({**objects(a=NUMBER), "propertyNames": {"pattern": "(a+)+$"}}, "propertyNames"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"allOf": [{"type": "object"}], "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"dependentRequired": 3}, "dependentRequired"),
]  # fmt: skip


@pytest.mark.parametrize("schema", SERVED + DRAFT_7, ids=lambda schema: json.dumps(schema)[:70])
def test_random_answers_fit_what_was_asked_for(
    reader: ConstraintReader, babbler: Babbler, schema: dict[str, Any]
):
    asked = {"name": "x", "schema": schema, "strict": True}
    spec = reader.read({"response_format": {"type": "json_schema", "json_schema": asked}})
    assert spec is not None
    validator = (Draft7Validator if schema in DRAFT_7 else Draft202012Validator)(schema)
    for seed in range(10):
        answer = babbler.answer(spec, random.Random(seed), free_tokens=seed)
        validator.validate(json.loads(answer))


def candidates(schema: dict[str, Any]) -> list[Any]:
    """Small values near the schema, many of which fit it."""
    if "enum" in schema or isinstance(schema["type"], list):
        return ["a", "b", "c", 1, 3, None, True]
    if schema["type"] == "array":
        items = ["x", "y", "z"] if "enum" in json.dumps(schema) else [5, 3]
        items = [True, False] if "boolean" in json.dumps(schema) else items
        return [list(v) for k in range(4) for v in itertools.product(items, repeat=k)]
    names = [*schema.get("properties", {"a": 0, "b": 0})]
    some = {"kind": ["card", "cash", "none", True, False]}
    return [
        dict(zip(keys, values, strict=True))
        for k in range(len(names) + 1)
        for keys in itertools.combinations(names, k)
        for values in itertools.product(*(some.get(key, [3]) for key in keys))
    ]


@pytest.mark.parametrize("schema", SERVED + DRAFT_7, ids=lambda schema: json.dumps(schema)[:70])
def test_all_that_fits_can_be_said(
    reader: ConstraintReader, babbler: Babbler, schema: dict[str, Any]
):
    """Of objects the properties that are named: others are closed, as for any schema."""
    spec = reader.read({"guided_json": schema})
    assert spec is not None
    validator = (Draft7Validator if schema in DRAFT_7 else Draft202012Validator)(schema)
    num_fitting = 0
    for value in candidates(schema):
        fits = validator.is_valid(value)
        assert babbler.accepts(spec, json.dumps(value)) == fits, value
        num_fitting += fits
    assert num_fitting > 0


@pytest.mark.parametrize(("schema", "keyword"), REFUSED, ids=lambda value: str(value)[:70])
@pytest.mark.parametrize("strict", [None, False, True])
def test_the_rest_is_refused_strict_or_not(
    reader: ConstraintReader, schema: dict[str, Any], keyword: str, strict: bool | None
):
    asked = {"name": "x", "schema": schema, "strict": strict}
    with pytest.raises(BadRequest, match=rf"schema\.{keyword}"):
        reader.read({"response_format": {"type": "json_schema", "json_schema": asked}})


def test_impossible_schemas_are_refused(reader: ConstraintReader):
    for schema in (
        {"not": {}},
        {"not": True},
        {"enum": [1], "not": {"const": 1.0}},
        {"type": "string", "not": {"type": "string"}},
        {"type": "null", "not": {"required": ["a"]}},
        {"type": "array", "items": {"enum": [1]}, "uniqueItems": True, "minItems": 2},
    ):
        with pytest.raises(BadRequest, match="allows no value"):
            reader.read({"guided_json": schema})


@pytest.mark.parametrize(
    "wrong",
    [
        {"required": 3, "dependentRequired": {"a": ["b"]}},
        {"properties": [], "dependentSchemas": {"a": {"required": ["b"]}}},
        {"allOf": 3},
        {"propertyNames": {"pattern": []}},
        {"propertyNames": {"enum": 3}},
        {"not": {"type": [{}]}},
        {"enum": ["x"], "not": {"enum": 3}},
        {"type": "array", "items": {"type": [{}], "enum": [1]}, "uniqueItems": True},
        {"type": "array", "items": {"enum": [1]}, "uniqueItems": True, "minItems": -1},
        {"type": "array", "contains": {}, "maxContains": []},
    ],
    ids=str,
)
def test_values_of_other_types_are_refused(reader: ConstraintReader, wrong: dict[str, Any]):
    with pytest.raises(BadRequest, match="guided_json"):
        reader.read({"guided_json": {"type": "object", **wrong}})


def test_branches_are_bounded(reader: ConstraintReader):
    names = [f"p{i}" for i in range(40)]
    schema = {
        **objects(**dict.fromkeys(names, NUMBER)),
        "dependentRequired": {name: ["p0"] for name in names[1:]},
    }
    with pytest.raises(BadRequest, match="dependentRequired is not supported"):
        reader.read({"guided_json": schema})
    nested: dict[str, Any] = {"type": "null"}
    for _ in range(20):
        nested = {**objects(["kind"], kind=KIND, number=nested), **when(CARD, NEEDS_NUMBER)}
    with pytest.raises(BadRequest, match="past 2000 properties"):
        reader.read({"guided_json": nested})
    values = {"enum": [*range(5000)]}
    many = {**objects(kind=values), "allOf": [when({"const": i}, {}) for i in range(1500)]}
    with pytest.raises(BadRequest, match="not supported"):
        reader.read({"guided_json": many})
    unique = {"type": "array", "items": values, "uniqueItems": True, "maxItems": 5000}
    with pytest.raises(BadRequest, match="uniqueItems is not supported"):
        reader.read({"guided_json": unique})


def test_a_forced_call_does_not_skip_them(reader: ConstraintReader):
    parameters = {**objects(a=NUMBER, b=NUMBER), "dependentRequired": {"a": ["b"]}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(BadRequest, match="dependentRequired is not supported for a tool"):
        reader.read({"tools": [tool], "tool_choice": "required"})
    assert reader.read({"tools": [tool]}) is None


def test_what_needs_no_rewriting_is_left_alone():
    schema = {"type": "object", "properties": {"a": {}}, "allOf": [{"type": "object"}]}
    assert rewritten(schema, schema) is schema
