"""Whether a schema that may refer to itself has any value that ends.

`{"properties": {"next": {"$ref": "#"}}, "required": ["next"]}` has none: a grammar of it would let
the model write on for ever. The answer is the least fixed point of "this definition has a finite
value"; definitions are visited last found first, in which order chains settle in one pass.
"""

from collections.abc import Mapping
from typing import Any, cast

from server.constraints.effort import Effort

Schema = dict[str, Any]


def has_finite_value(schema: Schema, effort: Effort, path: str) -> bool:
    """`schema` is normalised: its references are names in its own `$defs`."""
    defs = cast(Schema, schema.get("$defs", {}))
    open_names = list(reversed(defs))
    reader = _Reader(effort, path)
    while True:
        num_known = len(reader.finite)
        for name in open_names:
            if reader.is_finite(defs[name]):
                reader.finite.add(name)
        if len(reader.finite) == num_known:
            return reader.is_finite(schema)
        open_names = [name for name in open_names if name not in reader.finite]


class _Reader:
    def __init__(self, effort: Effort, path: str) -> None:
        self._effort = effort
        self._path = path
        self.finite: set[str] = set()  # definitions known to have a finite value

    def is_finite(self, schema: Any) -> bool:
        """Whether there is a finite value, by what is known."""
        self._effort.spend(1 / 16, self._path)
        if isinstance(schema, bool):
            return schema
        node = cast(Schema, schema)
        if "$ref" in node and node["$ref"].removeprefix("#/$defs/") not in self.finite:
            return False
        for keyword in ("anyOf", "oneOf"):
            if keyword in node and not any(map(self.is_finite, node[keyword])):
                return False
        if not all(map(self.is_finite, node.get("allOf", ()))):
            return False
        if "enum" in node or "const" in node:
            return True
        types = node.get("type")
        listed = types if isinstance(types, list) else [types]
        return any(self._is_finite_of(name, node) for name in listed)

    def _is_finite_of(self, type_name: str | None, node: Schema) -> bool:
        if type_name == "object":
            properties: Mapping[str, Any] = node.get("properties", {})
            rest = node.get("additionalProperties", True)
            return all(self.is_finite(properties.get(k, rest)) for k in node.get("required", ()))
        if type_name == "array":
            prefix = cast(list[Any], node.get("prefixItems", []))
            least = cast(int, node.get("minItems", 0))
            needed = [*prefix[:least], *([node.get("items", True)] if least > len(prefix) else [])]
            return all(map(self.is_finite, needed))
        return True  # a scalar, or any type
