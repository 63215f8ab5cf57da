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
