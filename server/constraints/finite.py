"""Whether a schema that may refer to itself has any value that ends.

`{"properties": {"next": {"$ref": "#"}}, "required": ["next"]}` has none: a grammar of it would let
the model write on for ever. The answer is the least fixed point of "this definition has a finite
value"; definitions are visited last found first, in which order chains settle in one pass.
"""

from collections.abc import Mapping
from typing import Any, cast

Schema = dict[str, Any]


def has_finite_value(schema: Schema) -> bool:
    """`schema` is normalised: its references are names in its own `$defs`."""
    defs = cast(Schema, schema.get("$defs", {}))
    open_names = list(reversed(defs))
    finite: set[str] = set()
    while True:
        found = {name for name in open_names if _is_finite(defs[name], finite)}
        if not found:
            return _is_finite(schema, finite)
        finite |= found
        open_names = [name for name in open_names if name not in found]


def _is_finite(schema: Any, finite: set[str]) -> bool:
    """Whether there is a finite value, given the definitions known to have one."""
    if isinstance(schema, bool):
        return schema
    node = cast(Schema, schema)
    if "$ref" in node and node["$ref"].removeprefix("#/$defs/") not in finite:
        return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in node and not any(_is_finite(branch, finite) for branch in node[keyword]):
            return False
    if not all(_is_finite(branch, finite) for branch in node.get("allOf", ())):
        return False
    if "enum" in node or "const" in node:
        return True
    types = node.get("type")
    listed = types if isinstance(types, list) else [types]
    return any(_is_finite_of(name, node, finite) for name in listed)


def _is_finite_of(type_name: str | None, node: Schema, finite: set[str]) -> bool:
    if type_name == "object":
        properties: Mapping[str, Any] = node.get("properties", {})
        rest = node.get("additionalProperties", True)
        return all(_is_finite(properties.get(k, rest), finite) for k in node.get("required", ()))
    if type_name == "array":
        prefix = cast(list[Any], node.get("prefixItems", []))
        least = cast(int, node.get("minItems", 0))
        needed = [*prefix[:least], *([node.get("items", True)] if least > len(prefix) else [])]
        return all(_is_finite(item, finite) for item in needed)
    return True  # a scalar, or any type
