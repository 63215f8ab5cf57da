"""Which JSON types a tool's schema allows for each of its parameters.

The schema comes from a client and was checked for size and depth, not for sense: whatever in it
is not understood says nothing about the type. Every local reference is read once, so loops end and
the work is linear in the schema.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

_MAX_DEPTH = 64  # of references and combinators inside each other
_STRING = frozenset({"string"})
_NULLABLE_STRING = frozenset({"string", "null"})
_TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})
_SAYING = ("enum", "const", "$ref", "anyOf", "oneOf", "allOf")
_OF_TYPE = {
    frozenset({"object"}): {"properties", "required", "additionalProperties", "patternProperties"},
    frozenset({"array"}): {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    _STRING: {"pattern", "format", "minLength", "maxLength"},
    frozenset({"integer", "number"}): {
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    },
}


class Types(msgspec.Struct, frozen=True):
    """The types a value may have. A declared `number` brings `integer` with it."""

    names: frozenset[str]  # never empty
    literals: frozenset[str] = frozenset()  # the strings that an enum or const spells out

    @property
    def is_string(self) -> bool:
        return self.names == _STRING

    @property
    def is_nullable_string(self) -> bool:
        return self.names == _NULLABLE_STRING


STRING = Types(_STRING)


class Parameters:
    """The parameters of one tool. With None: of a tool nobody declared, all strings."""

    def __init__(self, schema: Any) -> None:
        self.num_read = 0  # subschemas that were looked at, each as often as it was
        self._schema = schema
        self._types: dict[str, Types | None] = {}

    def __contains__(self, key: str) -> bool:
        return self._lookup(key) is not None

    def types(self, key: str) -> Types:
        """The types of one parameter; a string when it is undeclared, untyped or contradictory."""
        return self._lookup(key) or STRING

    def _lookup(self, key: str) -> Types | None:
        if key not in self._types:
            reader = _Reader(self._schema)
            found = list(reader.properties(self._schema, key))
            names = reader.names({"anyOf": found}) or _STRING
            self._types[key] = Types(names, frozenset(reader.literals)) if found else None
            self.num_read += reader.num_read
        return self._types[key]


class _Reader:
    """Looks up one parameter in the schema `root`."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self.num_read = 0
        self._searched: set[str] = set()  # references
        self._names: dict[str, frozenset[str] | None] = {}  # by reference
        self.literals: set[str] = set()  # the strings met in enums by `names`

    def properties(self, schema: Any, key: str, depth: int = 0) -> Iterator[Any]:
        """What the properties of `schema`, however combined, say of `key`."""
        self.num_read += 1
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and key in properties:
            yield properties[key]
        ref = schema.get("$ref")
        if isinstance(ref, str) and ref not in self._searched:
            self._searched.add(ref)
            yield from self.properties(self._target(ref), key, depth + 1)
        for keyword in ("allOf", "anyOf", "oneOf"):
            for branch in _branches(schema, keyword):
                yield from self.properties(branch, key, depth + 1)

    def names(self, schema: Any, depth: int = 0) -> frozenset[str] | None:
        """The type names that every keyword of `schema` allows. None: it does not say."""
        self.num_read += 1
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return None
        said = [names for names in self._each_keyword(schema, depth) if names is not None]
        if not said:
            return None
        null = {"null"} if schema.get("nullable") is True else frozenset[str]()
        return frozenset.intersection(*said) | null

    def _each_keyword(
        self, schema: Mapping[str, Any], depth: int
    ) -> Iterator[frozenset[str] | None]:
        yield _declared(schema.get("type")) if "type" in schema else _spoken_of(schema)
        if isinstance(values := schema.get("enum"), list):
            yield self._listed(values)
        if "const" in schema:
            yield self._listed([schema["const"]])
        if isinstance(ref := schema.get("$ref"), str):
            if ref not in self._names:
                self._names[ref] = frozenset()  # a schema that is itself allows nothing by that
                self._names[ref] = self.names(self._target(ref), depth + 1)
            yield self._names[ref]
        for keyword in ("anyOf", "oneOf"):
            if branches := _branches(schema, keyword):
                choices = [self.names(branch, depth + 1) for branch in branches]
                known = [names for names in choices if names is not None]
                yield frozenset[str]().union(*known) if len(known) == len(choices) else None
        for branch in _branches(schema, "allOf"):
            yield self.names(branch, depth + 1)

    def _target(self, ref: str) -> Any:
        """What a local reference (`#`, `#/$defs/Name`) points at; None for any other."""
        head, *path = ref.split("/")
        node = self._root if head == "#" else None
        for part in path:
            step = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping):
                node = node.get(step)
            elif isinstance(node, list) and step.isdecimal() and int(step[:9]) < len(node):
                node = node[int(step[:9])]
            else:
                return None
        return node

    def _listed(self, values: list[Any]) -> frozenset[str]:
        self.literals.update(value for value in values if isinstance(value, str))
        return frozenset(map(_type_of, values))


def _branches(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    branches = schema.get(keyword)
    return branches if isinstance(branches, list) else []


def _declared(declared: Any) -> frozenset[str] | None:
    listed = declared if isinstance(declared, list) else [declared]
    names = {name for name in listed if isinstance(name, str)} & _TYPES
    if "number" in names:
        names.add("integer")
    return frozenset(names) or None


def _spoken_of(schema: Mapping[str, Any]) -> frozenset[str] | None:
    """The one type whose keywords a schema has that declares none, and says nothing else."""
    if any(keyword in schema for keyword in _SAYING):
        return None
    spoken = [names for names, keywords in _OF_TYPE.items() if keywords & schema.keys()]
    return spoken[0] if len(spoken) == 1 else None


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
