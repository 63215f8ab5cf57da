"""A schema that the engine cannot serve is refused by the part that is at fault."""

from typing import Any

import pytest

from server.constraints import ConstraintReader
from server.constraints.blame import faulty_part
from server.errors import BadRequest

NOTHING: dict[str, Any] = {"type": "string", "pattern": "^a+$", "maxLength": 3, "minLength": 7}
FINE: dict[str, Any] = {"type": "string", "maxLength": 9}


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        (NOTHING, ""),
        (an_object(a=FINE, b=NOTHING), ".properties.b"),
        (an_object(a=FINE, b=an_object(c={"oneOf": [{}, {}]}, d=FINE)),
         ".properties.b.properties.c"),
        ({"type": "array", "minItems": 1, "items": NOTHING}, ".items"),
        ({"type": "array", "minItems": 2, "prefixItems": [FINE, NOTHING]}, ".prefixItems.1"),
        ({"$ref": "#/$defs/it", "$defs": {"fine": FINE, "it": an_object(b=NOTHING)}},
         ".$defs.it.properties.b"),
        (an_object(a=NOTHING, b=NOTHING), ""),  # neither alone
    ],
    ids=str,
)  # fmt: skip
def test_the_part_is_named(reader: ConstraintReader, schema: Any, part: str):
    with pytest.raises(BadRequest) as refusal:
        reader.read({"guided_json": schema})
    assert refusal.value.param == "guided_json"
    assert refusal.value.message.startswith(f"guided_json{part} cannot be used: ")


def a_tool(name: str, schema: Any, *, strict: bool = False) -> dict[str, Any]:
    function = {"name": name, "strict": strict, "parameters": an_object(list=schema, other=FINE)}
    return {"type": "function", "function": function}


IMPOSSIBLE: dict[str, Any] = {"type": "array", "minItems": 1, "items": NOTHING}
TOOLS = [a_tool("fine", {"type": "array"}), a_tool("bad", IMPOSSIBLE, strict=True)]
AT_FAULT = "tools.1.function.parameters.properties.list.items"


@pytest.mark.parametrize(
    "request_",
    [
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "bad"}}},
        {"tools": TOOLS},
        {"tools": TOOLS, "response_format": {"type": "json_object"}},
    ],
    ids=["required", "named", "auto", "or content"],
)
def test_the_part_of_a_tool_is_named(reader: ConstraintReader, request_: dict[str, Any]):
    with pytest.raises(BadRequest) as refusal:
        reader.read(request_)
    assert refusal.value.message.startswith(f"{AT_FAULT} cannot be used: ")
    assert refusal.value.param == "tools"


def test_a_raw_text_that_nothing_fits_is_named_by_its_tool(reader: ConstraintReader):
    named = {"type": "function", "function": {"name": "bad"}}
    tools = [a_tool("fine", FINE), a_tool("bad", NOTHING)]
    with pytest.raises(BadRequest) as refusal:
        reader.read({"tools": tools, "tool_choice": named})
    path = "tools.1.function.parameters.properties.list"
    assert refusal.value.message == f"{path} allows no value"


def test_the_tool_that_is_not_called_is_not_looked_at(reader: ConstraintReader):
    named = {"type": "function", "function": {"name": "fine"}}
    assert reader.read({"tools": [TOOLS[1], TOOLS[0]], "tool_choice": named}) is not None


def test_the_part_of_a_structural_tag_is_named(reader: ConstraintReader):
    elements = [
        {"type": "json_schema", "json_schema": an_object(a=FINE)},
        {"type": "json_schema", "json_schema": an_object(a=FINE, b=NOTHING)},
    ]
    with pytest.raises(BadRequest) as refusal:
        reader.read({"structural_tag": {"format": {"type": "sequence", "elements": elements}}})
    at_fault = "structural_tag.format.elements.1.json_schema.properties.b"
    assert refusal.value.message.startswith(f"{at_fault} cannot be used: ")
    assert refusal.value.param == "structural_tag"


def test_names_are_told_in_short(reader: ConstraintReader):
    with pytest.raises(BadRequest) as refusal:
        reader.read({"guided_json": an_object(**{"n" * 5000: NOTHING})})
    assert len(refusal.value.message) < 250


def test_it_ends_with_its_time():
    asked: list[Any] = []

    def compiles(schema: Any) -> bool:
        asked.append(schema)
        return True

    schema = an_object(a=an_object(b=FINE))
    assert faulty_part(schema, compiles, limit_s=-1.0) == ()
    assert asked == []
    assert faulty_part(schema, compiles, limit_s=60.0) == ("properties", "a", "properties", "b")
    assert asked[0] == an_object(a=True)
    assert schema == an_object(a=an_object(b=FINE)), "it is left as it is"
