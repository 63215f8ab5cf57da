"""From the text of a value to JSON, by the tool's schema."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.parse.convert import to_json
from server.parse.schema import STRING, Parameters, Types
from tests.server.parse.answers import call, read, tool

NAMES = ("string", "integer", "number", "boolean", "object", "array", "null")


def json_of(text, schema, **root):
    return to_json(text, Parameters({"properties": {"x": schema}, **root}).types("x"))


def names_of(schema, **root):
    return set(Parameters({"properties": {"x": schema}, **root}).types("x").names)


@pytest.mark.parametrize(
    ("declared", "text", "expected"),
    [
        # Integers, with all their digits.
        ("integer", "5", "5"),
        ("integer", " -12 \n", "-12"),
        ("integer", "+7", "7"),
        ("integer", "007", "7"),
        ("integer", "-0", "-0"),
        ("integer", "12345678901234567890123456789", "12345678901234567890123456789"),
        ("integer", "9" * 5000, "9" * 5000),
        ("integer", "5.0", "5"),
        ("integer", "5.5", '"5.5"'),
        ("integer", "1e3", '"1e3"'),
        ("integer", "1,000", '"1,000"'),
        ("integer", "1_000", '"1_000"'),
        ("integer", "0x10", '"0x10"'),
        ("integer", "٣", '"٣"'),
        ("integer", "five", '"five"'),
        ("integer", "", '""'),
        ("integer", "true", '"true"'),
        ("integer", "[5]", '"[5]"'),
        # Numbers, as they were written where JSON can say it so.
        ("number", "5", "5"),
        ("number", "9" * 400, "9" * 400),
        ("number", "5.0", "5.0"),
        ("number", "3.1415926535897932384626433832", "3.1415926535897932384626433832"),
        ("number", "1e3", "1e3"),
        ("number", "-1.5E-7", "-1.5E-7"),
        ("number", ".5", "0.5"),
        ("number", "5.", "5.0"),
        ("number", "+1.5", "1.5"),
        ("number", "NaN", '"NaN"'),
        ("number", "-Infinity", '"-Infinity"'),
        ("number", "inf", '"inf"'),
        ("number", "1e999", '"1e999"'),
        ("number", "1.2.3", '"1.2.3"'),
        # Booleans in any case.
        ("boolean", "true", "true"),
        ("boolean", "False", "false"),
        ("boolean", " TRUE\n", "true"),
        ("boolean", "1", "true"),
        ("boolean", "0", "false"),
        ("boolean", "yes", '"yes"'),
        ("boolean", "", '""'),
        # Objects and arrays: JSON, then a Python literal.
        ("object", '{"a": [1, 2.50, "x"], "b": null}', '{"a": [1, 2.50, "x"], "b": null}'),
        ("object", ' {"a":1}\n', '{"a": 1}'),
        ("object", "{}", "{}"),
        ("object", "{'a': True, 'b': None, 'c': (1, 2)}", '{"a": true, "b": null, "c": [1, 2]}'),
        ("object", "{1: 'x'}", '{"1": "x"}'),
        ("object", '{"n": 1234567890123456789012}', '{"n": 1234567890123456789012}'),
        ("object", '{"n": %s}' % ("9" * 5000), '{"n": %s}' % ("9" * 5000)),
        ("object", '{"a": 1, "a": 2}', '{"a": 2}'),
        ("object", '{"text": "two\nlines"}', '{"text": "two\\nlines"}'),
        ("object", "[1]", '"[1]"'),
        ("object", '{"a": 1', '"{\\"a\\": 1"'),
        ("object", '{"a": NaN}', '"{\\"a\\": NaN}"'),
        ("object", '{"a": -Infinity}', '"{\\"a\\": -Infinity}"'),
        ("object", "{'a': 1e999}", "\"{'a': 1e999}\""),
        ("object", "{1.5: 2}", '"{1.5: 2}"'),
        ("object", "{[]: 1}", '"{[]: 1}"'),
        ("array", "[1, 'two', \"three\"]", '[1, "two", "three"]'),
        ("array", "(1, 2)", "[1, 2]"),
        ("array", "[1e999]", '"[1e999]"'),
        ("array", "[1e400, 'x']", "\"[1e400, 'x']\""),
        ("array", "{1, 2}", '"{1, 2}"'),
        ("array", "[b'x']", "\"[b'x']\""),
        ("array", "[1+2j]", '"[1+2j]"'),
        ("array", "[...]", '"[...]"'),
        ("array", "[x]", '"[x]"'),
        ("array", "[f()]", '"[f()]"'),
        ("array", "['\\d']", '["\\\\d"]'),
        ("array", "a, b", '"a, b"'),
        ("array", '{"a": 1}', '"{\\"a\\": 1}"'),
        ("array", "['é\U0001f600']", '["é\U0001f600"]'),
        ("array", '["\\ud83d\\ude00 \\ud83d"]', '["\U0001f600 \ufffd"]'),
        ("array", "['\\ud83d\\ude00 \\ud83d']", '["\U0001f600 \ufffd"]'),
        ("array", "['\x00']", '"[\'\\u0000\']"'),
        # null, for whatever is not a string.
        *((name, "null", "null") for name in NAMES if name != "string"),
        *((name, "None", "null") for name in NAMES if name != "string"),
        ("integer", " NULL ", "null"),
        ("null", "x", '"x"'),
        ("null", "", '""'),
        # Strings are never looked at.
        *(("string", text, f'"{text}"') for text in ("5", "true", "null", "None", " [1] ", "")),
        (["string", "null"], "null", "null"),
        (["string", "null"], "None", "null"),
        (["string", "null"], "none", '"none"'),
        (["string", "null"], " null", '" null"'),
        (["string", "null"], "5", '"5"'),
        # Of several types the one that fits.
        (["string", "integer"], "5", "5"),
        (["string", "integer"], "five", '"five"'),
        (["string", "integer"], "null", '"null"'),
        (["string", "integer", "null"], "null", "null"),
        (["integer", "boolean"], "1", "1"),
        (["integer", "boolean"], "true", "true"),
        (["string", "object"], '{"a": 1}', '{"a": 1}'),
        (["string", "object"], "[1]", '"[1]"'),
        (["object", "array"], "[1]", "[1]"),
        (["string", "number", "boolean", "object", "array", "null"], "False", "false"),
    ],
)  # fmt: skip
def test_a_value_becomes_what_the_schema_declares(declared, text, expected):
    assert json_of(text, {"type": declared}) == expected


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ({}, {"string"}),
        (True, {"string"}),
        (False, {"string"}),
        ({"description": "x"}, {"string"}),
        ({"type": "unheard of"}, {"string"}),
        ({"type": 5}, {"string"}),
        ({"type": []}, {"string"}),
        ({"type": "number"}, {"number", "integer"}),
        ({"type": ["integer", "null", 3]}, {"integer", "null"}),
        ({"type": "string", "nullable": True}, {"string", "null"}),
        ({"enum": [1, 2]}, {"integer"}),
        ({"enum": [1.5, None, True, [], {}]}, {"number", "null", "boolean", "array", "object"}),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"enum": ["auto", 1]}, {"string", "integer"}),
        ({"const": 5}, {"integer"}),
        ({"type": ["integer", "string"], "enum": [1, 2]}, {"integer"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}),
        ({"oneOf": [{"type": "object"}, {"type": "array"}]}, {"object", "array"}),
        ({"anyOf": [{"type": "integer"}, {}]}, {"string"}),
        ({"anyOf": []}, {"string"}),
        ({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"object"}),
        ({"allOf": [{"type": "integer"}, {"minimum": 0}]}, {"integer"}),
        ({"allOf": [{"type": "number"}, {"type": ["integer", "string"]}]}, {"integer"}),
        ({"allOf": [{"type": "integer"}, {"type": "boolean"}]}, {"string"}),
        ({"$ref": "#/$defs/int"}, {"integer"}),
        ({"$ref": "#/definitions/int"}, {"boolean"}),
        ({"$ref": "#/$defs/to_int"}, {"integer"}),
        ({"$ref": "#/$defs/a~1b%20c"}, {"null"}),
        ({"$ref": "#/$defs/list/1"}, {"array"}),
        ({"$ref": "#/$defs/list/7"}, {"string"}),
        ({"$ref": "#"}, {"object"}),
        ({"$ref": "#/nowhere/at/all"}, {"string"}),
        ({"$ref": "https://example.com/schema"}, {"string"}),
        ({"$ref": "#/$defs/loop"}, {"string"}),
        ({"$ref": "#/$defs/tree"}, {"array", "integer"}),
        ({"anyOf": [{"$ref": "#/$defs/int"}, {"type": "null"}]}, {"integer", "null"}),
        ({"anyOf": [{"$ref": "#/$defs/int"}, {"$ref": "#/$defs/int"}]}, {"integer"}),
    ],
)
def test_types_are_read_through_combinations_and_references(schema, names):
    root = {
        "type": "object",
        "$defs": {
            "int": {"type": "integer"},
            "to_int": {"$ref": "#/$defs/int"},
            "a/b c": {"type": "null"},
            "list": [{"type": "object"}, {"type": "array"}],
            "loop": {"$ref": "#/$defs/pool"},
            "pool": {"$ref": "#/$defs/loop"},
            "tree": {"anyOf": [{"type": "array"}, {"$ref": "#/$defs/tree"}, {"type": "integer"}]},
        },
        "definitions": {"int": {"type": "boolean"}},
    }
    assert names_of(schema, **root) == names


def test_parameters_are_found_in_combined_schemas():
    root = {
        "$ref": "#/$defs/base",
        "allOf": [{"properties": {"b": {"type": "boolean"}}}],
        "anyOf": [
            {"properties": {"c": {"type": "null"}}},
            {"properties": {"c": {"type": "array"}}},
        ],
        "$defs": {"base": {"properties": {"a": {"type": "integer"}}, "allOf": [{"$ref": "#"}]}},
    }
    parameters = Parameters(root)
    assert parameters.types("a").names == {"integer"}
    assert parameters.types("b").names == {"boolean"}
    assert parameters.types("c").names == {"null", "array"}
    assert parameters.types("d") == STRING
    assert "c" in parameters
    assert "d" not in parameters


def test_a_string_that_an_enum_spells_out_stays_a_string():
    assert json_of("1", {"enum": ["1", 2]}) == '"1"'
    assert json_of("2", {"enum": ["1", 2]}) == "2"
    assert json_of("null", {"enum": ["null", None]}) == '"null"'
    assert json_of("auto", {"anyOf": [{"const": "auto"}, {"type": "integer"}]}) == '"auto"'


def test_reading_a_schema_is_linear_in_it():
    """Each of 50 definitions names the next one twice: 2**50 paths, but 100 references."""
    defs = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(50)}
    defs["d50"] = {"type": "integer"}
    assert names_of({"$ref": "#/$defs/d0"}, **{"$defs": defs}) == {"string"}  # deeper than 64
    assert names_of({"$ref": "#/$defs/d30"}, **{"$defs": defs}) == {"integer"}
    wide = {"allOf": [{"$ref": "#/$defs/d30"}] * 1000}
    assert names_of(wide, **{"$defs": defs}) == {"integer"}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 50_000 + "]" * 50_000,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        "[" * 150 + "]" * 150,
        "(" * 60_000,
        "[" + "-" * 60_000 + "1]",
        "[" + "1+" * 30_000 + "1]",
        "[" + "not " * 15_000 + "1]",
        "[a" + ".b" * 30_000 + "]",
        "[" + "1 if 1 else " * 5_000 + "1]",
        "[0x" + "f" * 30_000 + "]",
        "['" + "x" * 100_000 + "']",
        "{'a': " + "9" * 5000 + "}",
        "0" * 200_000 + "x",
        "1" * 200_000 + ".",
        "1." + "1" * 200_000 + "e",
        " " * 200_000 + "x",
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.timeout(60)
def test_what_is_too_deep_or_too_long_stays_a_string(text):
    every = Types(frozenset(NAMES))
    converted = to_json(text, every)
    assert json.loads(converted) == text


def test_depth_up_to_the_limit_is_kept():
    text = "[" * 100 + "]" * 100
    assert json_of(text, {"type": "array"}) == text
    assert json_of(f"[{text}]", {"type": "array"}) == f'"[{text}]"'


leaves = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=()))
finite_values = st.recursive(
    leaves | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
values = st.recursive(
    leaves | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
written = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",))),
    values.map(json.dumps),
    values.map(repr),
    values.map(
        lambda value: (
            json.dumps(value, ensure_ascii=False, indent=1).encode(errors="replace").decode()
        )
    ),
    st.text("0123456789+-.eE_ ", max_size=12),
    st.text("[]{}(),:'\"\\ntruefalsNo1.", max_size=20),
)


@settings(max_examples=600, deadline=None)
@given(text=written, names=st.frozensets(st.sampled_from(NAMES), min_size=1))
def test_whatever_is_written_becomes_strict_json(text, names):
    text = text.encode(errors="replace").decode()
    converted = to_json(text, Types(names))
    converted.encode()
    value = json.loads(converted, parse_constant=pytest.fail)
    assert all(math.isfinite(number) for number in _floats(value))
    if isinstance(value, str):
        assert value == text
    else:
        assert _name(value) in names | ({"null"} if "string" not in names else set()) or (
            _name(value) == "integer" and "number" in names
        )


@settings(max_examples=200, deadline=None)
@given(value=st.dictionaries(st.text(), finite_values))
def test_json_comes_through_unchanged(value):
    assert json.loads(json_of(json.dumps(value), {"type": "object"})) == _paired(value)


@settings(max_examples=300, deadline=None)
@given(schema=values, text=st.sampled_from(["5", "null", "x", "[1]", "true"]))
def test_any_schema_is_survived(schema, text):
    assert json.loads(json_of(text, schema)) in (
        5,
        None,
        "5",
        "null",
        "x",
        [1],
        "[1]",
        True,
        "true",
    )
    Parameters(schema).types("x")


KEYWORDS = ("type", "enum", "anyOf", "oneOf", "allOf", "$ref", "const", "properties", "nullable")
schemas = st.recursive(
    st.sampled_from([*NAMES, "#", "#/x", "#/properties/x", "#/anyOf/0", True, None]),
    lambda inner: (
        st.dictionaries(st.sampled_from([*KEYWORDS, "x"]), inner, max_size=4)
        | st.lists(inner, max_size=3)
    ),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(schema=schemas)
def test_any_combination_of_keywords_is_survived(schema):
    types = Parameters(schema).types("x")
    assert types.names
    assert types.names <= set(NAMES)


def test_types_reach_the_arguments():
    tools = [
        tool(
            "f",
            n={"$ref": "#/$defs/Count"},
            flag={"type": "boolean"},
            when={"anyOf": [{"type": "string"}, {"type": "null"}]},
            items={"type": "array"},
        )
    ]
    tools[0]["function"]["parameters"]["$defs"] = {"Count": {"type": "integer"}}
    text = call("f", ("n", "5"), ("flag", "True"), ("when", "None"), ("items", "['a']"), ("x", "5"))
    ((_, arguments),) = read(text, tools=tools).calls
    assert arguments == '{"n": 5, "flag": true, "when": null, "items": ["a"], "x": "5"}'


@pytest.mark.parametrize("value", ["", "n", "null", "nullx", "Non", "None ", "now", "\nnull"])
def test_nullable_strings_in_every_split(value):
    tools = [tool("f", a={"type": ["string", "null"]})]
    ((_, arguments),) = read(call("f", ("a", value), ("a", value)), tools=tools).arguments
    assert arguments == {"a": None if value == "null" else value}


def _floats(value):
    if isinstance(value, float):
        yield value
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from _floats(inner)


def _name(value):
    names = {type(None): "null", bool: "boolean", int: "integer", float: "number", list: "array"}
    return names.get(type(value), "object")


def _paired(value):
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_paired(inner) for inner in value]
    if isinstance(value, dict):
        return {_paired(k): _paired(v) for k, v in value.items()}
    return value
