"""Whether the branches of a `oneOf` exclude each other, so that it can be taken for an `anyOf`."""

from typing import Any, cast

from server.constraints.refs import Schema, followed


def are_disjoint(branches: list[Any], root: Any) -> bool:
    """Whether no value can fit two branches: by their types, or by a property that tells."""
    found = [followed(root, branch) for branch in branches]
    if len(set(map(id, found))) < len(found):  # the same, referred to twice
        return False
    types = [names for branch in found if (names := _types_of(branch)) is not None]
    if len(types) == len(found) and not _overlap(types):
        return True
    shared = frozenset[str].intersection(*(_tagging(branch) for branch in found))
    return any(
        not _overlap([_tags(branch["properties"][name]) for branch in found])
        for name in sorted(shared)
    )


def _types_of(schema: Schema) -> frozenset[str] | None:
    """The types that values of a schema have, an integer being a number; None: any."""
    declared = schema.get("type")
    listed = cast(list[Any], declared) if isinstance(declared, list) else [declared]
    names = [name for name in listed if isinstance(name, str)]
    if len(names) < len(listed):
        return None
    return frozenset("number" if name == "integer" else name for name in names)


def _tagging(schema: Schema) -> frozenset[str]:
    """The properties that an object of this schema must have, and that spell out their values."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return frozenset()
    if _types_of(schema) != frozenset({"object"}):
        return frozenset()
    named = cast(Schema, properties)
    return frozenset(
        k
        for k in cast(list[Any], required)
        if isinstance(k, str) and k in named and _tags(named[k])
    )


def _tags(schema: Any) -> frozenset[str]:
    """The strings that a schema allows, if these are all it allows."""
    if not isinstance(schema, dict):
        return frozenset()
    node = cast(Schema, schema)
    values = [node["const"]] if "const" in node else node.get("enum")
    if not isinstance(values, list) or not all(isinstance(v, str) for v in cast(list[Any], values)):
        return frozenset()
    return frozenset(cast(list[str], values))


def _overlap(sets: list[frozenset[str]]) -> bool:
    return len(frozenset[str]().union(*sets)) < sum(map(len, sets))
