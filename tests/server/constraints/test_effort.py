"""Schemas that are small, and would take for ever to read."""

from typing import Any

import pytest

from server.constraints.checker import GrammarChecker
from server.constraints.reader import ConstraintReader
from server.constraints.schema import normalized
from server.errors import BadRequest
from server.limits import Limits


@pytest.fixture
def reader() -> ConstraintReader:
    return ConstraintReader(GrammarChecker())  # no worker starts before it is asked


def too_complex(read: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(BadRequest, match="too complex") as caught:
        read(*arguments, **named)
    assert "max_schema_steps" in caught.value.message
    return caught.value.message


def spelt(name: str, number: int) -> str:
    """One of the many ways to write a name in a reference."""
    return "".join(
        f"%{ord(char):x}" if number >> bit & 1 else char for bit, char in enumerate(name)
    )


WIDE = {"anyOf": [{"type": "array", "items": {"type": "null"}} for _ in range(2000)]}


def test_a_target_is_read_once_however_its_reference_is_spelt() -> None:
    name = "abcdefghijkl"
    items = [{"$ref": f"#/$defs/{spelt(name, number)}"} for number in range(2000)]
    schema = {"prefixItems": items, "type": "array", "$defs": {name: WIDE}}
    found = normalized(schema, path="schema")
    assert len(found["$defs"]) == 1


def test_subschemas_that_are_reached_by_many_references_are_counted() -> None:
    inner: dict[str, Any] = {"type": "null"}
    refs: list[Any] = []
    pointer = "#/$defs/a"
    for _ in range(60):
        refs.append({"$ref": pointer})
        pointer += "/allOf/0"
        inner = {"allOf": [inner, {"anyOf": [{"type": "null"}, {"const": None}] * 30}]}
    schema = {"type": "array", "prefixItems": refs, "$defs": {"a": inner}}
    assert too_complex(normalized, schema, path="schema").startswith("schema.")


def test_conditions_are_told_from_other_schemas_in_one_pass() -> None:
    condition = {"if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}}
    schema = {"type": "object", "allOf": [condition, *({"title": str(i)} for i in range(9999))]}
    with pytest.raises(BadRequest):
        normalized(schema, path="schema")


def test_branches_that_are_one_and_the_same_do_not_exclude_each_other() -> None:
    properties = {f"p{i}": {"const": "x"} for i in range(1000)}
    target = {"type": "object", "properties": properties, "required": list(properties)}
    schema = {"oneOf": [{"$ref": "#/$defs/a"}] * 8000, "$defs": {"a": target}}
    assert "oneOf" in normalized(schema, path="schema")


def test_strings_that_refer_twice_to_the_next(reader: ConstraintReader) -> None:
    defs: dict[str, Any] = {
        f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]}
        for i in range(40)
    }
    defs["d40"] = {"type": "string", "pattern": "a+"}
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": defs}
    request = {"tools": [tool(parameters)], "tool_choice": "required"}
    assert too_complex(reader.read, request).startswith("tools.0.function.parameters.properties.x ")


def test_parameters_that_share_a_large_definition(reader: ConstraintReader) -> None:
    properties = {f"p{i}": {"$ref": "#/$defs/wide"} for i in range(500)}
    parameters = {"type": "object", "properties": properties, "$defs": {"wide": WIDE}}
    request = {"tools": [tool(parameters)], "tool_choice": "required"}
    assert too_complex(reader.read, request).startswith("tools.0.function.parameters.$defs")


def test_tools_are_counted_together(reader: ConstraintReader) -> None:
    parameters = {"type": "object", "properties": {"a": WIDE}}
    tools = [tool(parameters, name=f"f{i}") for i in range(20)]
    reader = ConstraintReader(GrammarChecker(), Limits(max_schema_bytes=1 << 22))
    assert "tools." in too_complex(reader.read, {"tools": tools, "tool_choice": "required"})


def test_a_chain_of_definitions_that_is_settled_last_found_first_or_not() -> None:
    """In the worst order, one definition would be settled by each pass over all of them."""
    num = 1500
    defs: dict[str, Any] = {
        f"d{i}": {"type": "array", "minItems": 1, "items": {"$ref": f"#/$defs/d{i + 1}"}}
        for i in range(num)
    }
    defs[f"d{num}"] = {"type": "null"}
    schema = {"type": "array", "items": {"$ref": "#/$defs/d0"}, "$defs": defs}
    assert len(normalized(schema, path="schema")["$defs"]) == num + 1


def tool(parameters: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_ordinary_schemas_are_far_from_the_limit(reader: ConstraintReader) -> None:
    properties = {
        f"p{i}": {"type": ["string", "null"], "description": "what it is"} for i in range(2000)
    }
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    assert normalized(schema, path="schema", limits=Limits(max_schema_steps=4000))
