import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from server.constraints.checker import GrammarChecker
from server.constraints.reader import ConstraintReader
from server.constraints.schema import (
    normalized,
)
from server.errors import BadRequest
from server.limits import Limits
from tests.engine.grammar.sampling import Babbler

LIMITS = Limits()

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 3, None]}, "maxItems": 3},
    },
    "required": ["age", "name"],
}
TAGGED = [
    {
        "type": "object",
        "properties": {"kind": {"const": kind}, "value": {"type": kind}},
        "required": ["kind", "value"],
    }
    for kind in ("integer", "boolean", "null")
]
# All of them bounded: whatever the model writes, they end.
BOUNDED: list[Any] = [
    PERSON,
    {"enum": ["red", "green", 1, 2.5, None, True, [1, {"a": "\n"}], {"b": 1, "a": "é😀"}]},
    {"const": {"x": [1, 2]}},
    {"type": ["integer", "null", "boolean"]},
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "null"}, PERSON], "items": False},
    {"type": "array", "items": [{"type": "null"}, {"type": "integer"}], "additionalItems": False},
    {"anyOf": [PERSON, {"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 9}]},
    {"oneOf": TAGGED},
    {"oneOf": [{"type": "integer"}, {"type": "null"}, {"type": "boolean"}]},
    {"allOf": [{"$ref": "#/$defs/p"}], "$defs": {"p": PERSON}},
    {"type": "integer", "multipleOf": 7},
    {"type": "integer", "multipleOf": 9973, "minimum": 3},
    {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    {"type": "integer", "minimum": 2**62 + 1, "maximum": 2**62 + 9999},
    {"type": "integer", "minimum": -(10**400), "maximum": 10**400},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 10**400},
    {"type": "number", "minimum": 0.25, "exclusiveMaximum": 1.5},
    {"type": "number", "minimum": -1e300, "maximum": 1e300},
    {"minimum": 3, "exclusiveMinimum": True},
    {"type": "string", "pattern": "^[a-f0-9]{8}$"},
    {"type": "string", "pattern": "b{2}", "maxLength": 6},
    {"type": "string", "pattern": "^(a|b)c?$|^x$"},
    {"properties": {"a": {"type": "null"}, "b": {"$ref": "#/properties/a"}}, "required": ["b"]},
    {"type": "object", "properties": {"a": False, "b": True and {"type": "null"}}},
    {"description": "d", "title": "t", "x-guidance": {"lenient": True}, "type": "boolean"},
    {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "null"}}},
    *({"type": "string", "format": f} for f in ("date", "time", "date-time", "uuid", "ipv4")),
    *({"type": "string", "format": f} for f in ("ipv6", "duration", "hostname", "email")),
]
# These may go on for ever.
OPEN: list[Any] = [
    True,
    {},
    {"type": "object"},
    {"type": "string", "format": "uri"},
    {"type": "object", "additionalProperties": PERSON, "maxProperties": 4, "minProperties": 1},
    {"type": "object", "patternProperties": {"^[a-c]$": {"type": "null"}}},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a", "b"]},
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["value", "children"],
            }
        },
        "$ref": "#/$defs/node",
    },
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
        ]
    },
    {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    {"type": "string", "minLength": 2, "pattern": "^x"},
]
WHAT_IS_WRONG: list[tuple[Any, str]] = [
    ({"type": "integer", "multipleOf": 10**400}, "multipleOf must have digits"),
    (
        {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"x": {"type": "strin"}}}}},
        "guided_json.$defs.a.properties.x.type must be",
    ),
    ({"enum": [1, 10**400]}, "enum holds an integer past 2**53"),
    ({"type": "integer", "minimum": 10**400}, "minimum is further from zero"),
    ({"type": "array", "uniqueItems": True}, "guided_json.uniqueItems is not supported"),
    (
        {"properties": {"a": {"not": {"minimum": 3}}}},
        "guided_json.properties.a.not is not supported",
    ),
    ({"if": {}, "then": {"minimum": 3}}, "guided_json.if is not supported"),
    ({"type": "text"}, "guided_json.type must be among"),
    ({"enum": []}, "guided_json.enum must be a list that is not empty"),
    ({"$ref": "http://a/b"}, "guided_json.$ref must be a reference inside the schema"),
    ({"$ref": "file:///etc/passwd"}, "guided_json.$ref must be a reference inside the schema"),
    ({"$ref": "#/$defs/none"}, "guided_json.$ref points at nothing in the schema"),
    ({"$ref": "#"}, "guided_json has no value that ever ends"),
    ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "has no value that ever ends"),
    ({"items": {"$ref": "#"}, "minItems": 1}, "has no value that ever ends"),
    (
        {
            "type": ["array", "object"],
            "items": {"$ref": "#"},
            "minItems": 1,
            "properties": {"a": {"$ref": "#"}},
            "required": ["a"],
        },
        "has no value that ever ends",
    ),
    ({"pattern": "(?=a)"}, "guided_json.pattern cannot be used as a regular expression"),
    ({"pattern": "["}, "guided_json.pattern cannot be used as a regular expression"),
    ({"type": "string", "format": "iban"}, "guided_json.format must be one of date"),
    ({"type": "string", "format": ["date"]}, "guided_json.format must be one of date"),
    ({"maxLength": 10001}, "guided_json.maxLength must be at most 10000"),
    ({"minItems": -1}, "guided_json.minItems must be an integer of at least 0"),
    ({"minimum": "3"}, "guided_json.minimum must be a number"),
    ({"type": "integer", "multipleOf": 1000003}, "guided_json.multipleOf must have digits"),
    ({"type": "integer", "minimum": 2**70}, "guided_json.minimum is further from zero"),
    ({"enum": [1, 2**53 + 1]}, "guided_json.enum holds an integer past 2**53"),
    ({"const": {"a": [-(2**60)]}}, "guided_json.const holds an integer past 2**53"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "guided_json cannot be used: nothing fits"),
    ({"anyOf": []}, "guided_json.anyOf must not be empty"),
    ({"properties": []}, "guided_json.properties must be an object of schemas"),
    ({"required": "a"}, "guided_json.required must be a list of strings"),
    ({"items": 3}, "guided_json.items must be a schema"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "do not exclude each other"),
    ({"type": "object", "minProperties": 2}, "guided_json.minProperties can be enforced"),
    (False, "guided_json allows no value"),
    ([], "guided_json must be a schema"),
    (
        {"enum": list(range(LIMITS.max_enum_values + 1))},
        f"past {LIMITS.max_enum_values} enum values",
    ),
    (
        {"properties": {str(i): {} for i in range(LIMITS.max_schema_properties + 1)}},
        f"past {LIMITS.max_schema_properties} properties",
    ),
    (
        {"description": "d" * LIMITS.max_schema_bytes},
        f"larger than {LIMITS.max_schema_bytes} bytes",
    ),
]


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "maxItems": 1}
    return schema


def check(schema: Any, answer: str) -> None:
    Draft202012Validator(schema).validate(json.loads(answer))


@pytest.mark.parametrize("schema", BOUNDED + OPEN, ids=str)
def test_random_answers_fit_the_schema(reader: ConstraintReader, babbler: Babbler, schema: Any):
    spec = reader.read({"guided_json": schema})
    assert spec is not None
    if schema == {"minimum": 3, "exclusiveMinimum": True}:  # draft 4
        schema = {"exclusiveMinimum": 3}
    if isinstance(schema, dict) and isinstance(schema.get("items"), list):
        schema = {"prefixItems": schema["items"], "items": schema["additionalItems"]}
    for seed in range(15):
        check(schema, babbler.answer(spec, random.Random(seed), free_tokens=30))


@pytest.mark.parametrize("schema", BOUNDED, ids=str)
def test_a_bounded_schema_ends_whatever_the_model_writes(
    reader: ConstraintReader, babbler: Babbler, schema: Any
):
    spec = reader.read({"guided_json": schema})
    assert spec is not None
    token_bytes = babbler.vocabulary.token_bytes
    spaces = (i for i, text in enumerate(token_bytes) if text.isspace())
    space_ids = set(spaces)

    def likes_spaces(ids: list[int]) -> int:
        return next((i for i in ids if i in space_ids), ids[0])

    def likes_zeros(ids: list[int]) -> int:
        return next((i for i in ids if token_bytes[i] == b"0"), ids[-1])

    for pick in (min, max, likes_spaces, likes_zeros, random.Random(0).choice):
        answer = babbler.stubborn(spec, pick)
        if "exclusiveMinimum" not in schema:
            check(schema, answer)


@pytest.mark.parametrize(("schema", "message"), WHAT_IS_WRONG)
def test_what_cannot_be_enforced_is_refused_by_its_path(
    reader: ConstraintReader, schema: Any, message: str
):
    with pytest.raises(BadRequest) as refusal:
        reader.read({"guided_json": schema})
    assert message in refusal.value.message
    assert refusal.value.param == "guided_json"
    assert refusal.value.status == 400
    assert len(refusal.value.message) < 300


def test_depth_is_bounded():
    normalized(nested(LIMITS.max_schema_depth), path="json")
    with pytest.raises(BadRequest, match="nested deeper than 64"):
        normalized(nested(LIMITS.max_schema_depth + 1), path="json")


def test_long_chains_of_references_are_followed(checker: GrammarChecker):
    count = 1500
    defs: dict[str, Any] = {
        f"n{i}": {"anyOf": [{"$ref": f"#/$defs/n{i + 1}"}, {"$ref": "#/$defs/n0"}]}
        for i in range(count)
    }
    defs[f"n{count}"] = {"type": "null"}
    schema = normalized({"$ref": "#/$defs/n0", "$defs": defs}, path="json")
    assert len(schema["$defs"]) == count + 1
    del defs[f"n{count}"]
    defs[f"n{count}"] = {"$ref": "#/$defs/n0"}
    with pytest.raises(BadRequest, match="no value that ever ends"):
        normalized({"$ref": "#/$defs/n0", "$defs": defs}, path="json")


def test_a_long_path_is_cut_in_the_message(reader: ConstraintReader):
    with pytest.raises(BadRequest) as refusal:
        reader.read({"guided_json": {"properties": {"k" * 5000: {"not": {"minimum": 3}}}}})
    assert "guided_json.properties" in refusal.value.message
    assert "not is not supported" in refusal.value.message
    assert len(refusal.value.message) < 250


def test_keys_come_in_the_order_of_the_schema(reader: ConstraintReader, babbler: Babbler):
    names = ["zeta", "alpha", "mid", "beta"]
    schema = {"properties": {name: {"type": "null"} for name in names}, "required": names[::-1]}
    spec = reader.read({"guided_json": schema})
    assert spec is not None
    for seed in range(5):
        answer = babbler.answer(spec, random.Random(seed), free_tokens=100)
        assert list(json.loads(answer)) == names


@pytest.mark.parametrize("indent", [None, 1, 2, 4])
def test_usual_ways_to_lay_out_json_are_allowed(
    reader: ConstraintReader, babbler: Babbler, indent: int | None
):
    spec = reader.read({"guided_json": {"type": "array", "items": PERSON}})
    assert spec is not None
    value = [{"name": "Ada", "age": 36, "tags": ["a", 3]}] * 2
    assert babbler.accepts(spec, json.dumps(value, indent=indent))
    assert babbler.accepts(spec, json.dumps(value, separators=(",", ":")))
    assert not babbler.accepts(spec, "[" + " " * 40 + "]")
    assert not babbler.accepts(spec, "[\n\n]")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"f{i}": {"type": "integer"} for i in range(2000)}},
        {"enum": [f"value {i} {i * 7919}" for i in range(9000)]},
        {"type": "array", "items": PERSON, "maxItems": 10_000, "minItems": 2},
        {"type": "string", "minLength": 5, "maxLength": 10_000},
        nested(60),
    ],
    ids=["properties", "enum", "array", "string", "depth"],
)
def test_schemas_near_the_limits_are_served(
    reader: ConstraintReader, babbler: Babbler, schema: Any
):
    spec = reader.read({"guided_json": schema})
    assert spec is not None
    check(schema, babbler.answer(spec, random.Random(1), free_tokens=20))


KEPT = st.integers(-(2**53), 2**53)  # integers that a literal may hold


def scalars() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.integers(-50, 50), st.integers(0, 40))
    return st.one_of(
        st.sampled_from([{"type": t} for t in ("integer", "number", "boolean", "null")]),
        bounds.map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1]}),
        bounds.map(lambda b: {"type": "number", "exclusiveMinimum": b[0] / 4}),
        bounds.map(lambda b: {"type": "string", "maxLength": b[1]}),
        st.lists(st.text(max_size=4) | KEPT | st.none(), min_size=1, max_size=4).map(
            lambda values: {"enum": values}
        ),
        st.sampled_from(["^a+$", "[0-9]", "^(x|yz){1,2}", r"\w\.$"]).map(
            lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 9}
        ),
    )


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    def extend(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        members = st.dictionaries(st.text(min_size=1, max_size=3), inner, min_size=1, max_size=4)
        return st.one_of(
            st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
                lambda p: {
                    "type": "array",
                    "items": p[0],
                    "minItems": p[1],
                    "maxItems": p[1] + p[2],
                }
            ),
            st.tuples(members, st.randoms(use_true_random=False)).map(
                lambda p: {
                    "type": "object",
                    "properties": p[0],
                    "required": p[1].sample(sorted(p[0]), p[1].randrange(len(p[0]) + 1)),
                }
            ),
            st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
            inner.map(lambda schema: {"$ref": "#/$defs/it", "$defs": {"it": schema}}),
        )

    return st.recursive(scalars(), extend, max_leaves=6)


@given(schemas(), st.integers(0, 99))
@settings(deadline=None, max_examples=120)
def test_any_bounded_schema_is_fitted_by_an_end_to_every_answer(
    reader: ConstraintReader, babbler: Babbler, schema: dict[str, Any], seed: int
):
    schema = gathered({"properties": {"it": schema}, "required": ["it"]})
    spec = reader.read({"guided_json": schema})
    assert spec is not None
    check(schema, babbler.stubborn(spec, random.Random(seed).choice))


def gathered(schema: dict[str, Any]) -> dict[str, Any]:
    """With the definitions that were generated next to their references in one place, renamed."""
    defs: dict[str, Any] = {}

    def move(node: Any) -> Any:
        if isinstance(node, list):
            return [move(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" not in node:
            return {key: move(value) for key, value in node.items()}
        name = f"def {len(defs)}"
        defs[name] = True
        defs[name] = move(node["$defs"]["it"])
        return {"$ref": f"#/$defs/{name}"}

    return {**move(schema), "$defs": defs}
