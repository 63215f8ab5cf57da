"""Keywords of JSON Schema that the grammar engine lacks, said in those it has.

A schema is rewritten where the result means the same, and takes a bounded number of branches:

- `if`/`then`/`else` (also several in `allOf`) by a property whose values the schema lists: one
  branch for each way the conditions can come out;
- `dependentRequired`, `dependentSchemas`, `dependencies`: a branch with the property, one without;
- `propertyNames` by `enum`, `const`, lengths, or `pattern` where no names are given besides;
- `not` of types, of values that the schema lists, and of one required property;
- `uniqueItems` of items that have a few values: the arrays they can make;
- `unevaluatedProperties` and `unevaluatedItems` where nothing but the schema itself evaluates;
- `contains` that asks for no more than items.

Everything else is left as it is, for `schema` to refuse it with a 400, `strict` or not: a keyword
is never ignored, and never approximated, since an answer that is promised to fit has to. Tools
without `strict` that are called of the model's own accord are not bound at all.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from math import perm
from typing import Any, cast

from server.constraints.refs import followed

MAX_BRANCHES = 64
MAX_DEPENDENCIES = 256
MAX_ARRAYS = 2000  # arrays that unique items may make

Schema = dict[str, Any]

_TYPES = ("array", "boolean", "null", "number", "object", "string")
_CONDITION = ("if", "then", "else")
_EVALUATING = ("$ref", "allOf", "anyOf", "oneOf", *_CONDITION, "dependentSchemas", "$dynamicRef")
_SILENT = ("title", "description", "$comment", "examples", "default", "deprecated")


def rewritten(schema: Schema, root: Any) -> Schema | bool:
    """The same schema with fewer of these keywords; the very one if nothing can be done."""
    if not _is_sound(schema):
        return schema
    result: Schema | bool = schema
    for keyword, rewrite in _REWRITES:
        if isinstance(result, dict) and keyword in result:
            found = rewrite(result, root)
            result = result if found is None else found
    return result


def _is_sound(schema: Schema) -> bool:
    """Whether the keywords that are read and written here have values of their types."""
    return (
        isinstance(schema.get("properties", {}), dict)
        and isinstance(schema.get("allOf", []), list)
        and _is_names(schema.get("required", []))
    )


# Each returns None where the keyword cannot be rewritten.


def _not(schema: Schema, root: Any) -> Schema | bool | None:
    rest, banned = _without(schema, "not"), schema["not"]
    if isinstance(banned, bool):
        return rest if not banned else False
    said = {k: v for k, v in followed(root, banned).items() if k not in _SILENT}
    if not isinstance(banned, dict):
        return None
    match list(said):
        case []:
            return None if banned.get("$ref") is not None else False
        case ["type"]:
            return _without_types(rest, said["type"])
        case ["enum"] | ["const"]:
            values = said["enum"] if "enum" in said else [said["const"]]
            kept = None if not isinstance(values, list) else _values(rest, root)
            if kept is None:
                return None
            texts = set(map(_text, values))
            return _only(rest, [value for value in kept if _text(value) not in texts])
        case ["required"] | ["required", "type"] | ["type", "required"]:
            names = said["required"]
            if said.get("type", "object") != "object" or not _is_names(names) or len(names) != 1:
                return None
            if "type" in said:  # values of other types are fine
                return None if rest.get("type") != "object" else _absent(rest, names[0])
            types = rest.get("type", "object")
            if "object" not in (types if isinstance(types, list) else [types]):
                return False
            return _absent({**rest, "type": "object"}, names[0])
        case _:
            return None


def _without_types(schema: Schema, banned: Any) -> Schema | bool | None:
    names = cast(list[Any], banned) if isinstance(banned, list) else [banned]
    if not _is_names(names):
        return None
    declared = schema.get("type", list(_TYPES))
    own = cast(list[Any], declared) if isinstance(declared, list) else [declared]
    if "integer" in names and "number" not in names and "number" in own:
        return None  # numbers that are not integers
    if "number" in names:
        names = [*names, "integer"]
    kept = [name for name in own if name not in names]
    return {**schema, "type": kept} if kept else False


def _conditions(schema: Schema, root: Any) -> Schema | bool | None:
    """One schema for each value of the property that the conditions are about."""
    own = [{k: schema[k] for k in _CONDITION if k in schema}] if "if" in schema else []
    listed = cast(list[Any], schema.get("allOf") or [])
    inner = [b for b in listed if isinstance(b, dict) and "if" in b and set(b) <= {*_CONDITION}]
    conditions = [c for c in (*own, *cast(list[Schema], inner)) if len(c) > 1]
    if len(conditions) > MAX_BRANCHES:
        return None
    rest = _without(schema, *_CONDITION)
    if inner:
        taken = set(map(id, cast(list[Schema], inner)))
        others = [branch for branch in listed if id(branch) not in taken]
        rest = {**rest, "allOf": others} if others else _without(rest, "allOf")
    elif not own:
        return schema
    if not conditions:
        return rest
    tests = [_test(condition["if"], root) for condition in conditions]
    name = tests[0][0] if tests[0] is not None else None
    if name is None or any(test is None or test[0] != name for test in tests):
        return None
    values = _values(_members(rest).get(name, True), root)
    if values is None or rest.get("type") != "object":
        return None
    branches: dict[tuple[bool, ...], list[Any]] = {}
    for value in values:
        text = _text(value)
        came = tuple(text in test[1] for test in tests if test is not None)
        branches.setdefault(came, []).append(value)
        if len(branches) > MAX_BRANCHES:
            return None
    made: list[Schema] = []
    for came, some in branches.items():
        base = _requiring({**rest, "properties": {**_members(rest), name: {"enum": some}}}, name)
        made.append(base)
        if not _apply(made, conditions, came):
            return None
    if name not in (rest.get("required") or ()):
        made.append(_absent(rest, name))
        if not _apply(made, conditions, [not test[2] for test in tests if test is not None]):
            return None
    return _any_of(made)


def _apply(made: list[Schema], conditions: list[Schema], came: Any) -> bool:
    """Add what each condition demands to the last schema. False: it cannot be."""
    for condition, is_met in zip(conditions, came, strict=True):
        merged = _merged(made[-1], condition.get("then" if is_met else "else", True))
        if merged is None:
            return False
        if merged is False:
            made.pop()
            return True
        made[-1] = cast(Schema, merged)
    return True


def _test(condition: Any, root: Any) -> tuple[str, frozenset[str], bool] | None:
    """The property that a condition is about, its values as text, and if it has to be there."""
    said = {k: v for k, v in followed(root, condition).items() if k not in (*_SILENT, "type")}
    members, required = said.get("properties"), said.get("required", [])
    if set(said) - {"properties", "required"} or not isinstance(members, dict):
        return None
    if len(cast(Schema, members)) != 1 or not _is_names(required):
        return None
    ((name, schema),) = cast(Schema, members).items()
    said_of_it = followed(root, schema)
    if set(said_of_it) - {"const", "enum", "type", *_SILENT} or set(required) - {name}:
        return None
    values = _values(said_of_it, root)
    return None if values is None else (name, frozenset(map(_text, values)), bool(required))


def _dependencies(keyword: str) -> Callable[[Schema, Any], Schema | bool | None]:
    def rewrite(schema: Schema, root: Any) -> Schema | bool | None:
        listed = schema[keyword]
        if not isinstance(listed, dict) or len(cast(Schema, listed)) > MAX_DEPENDENCIES:
            return None
        branches: list[Schema] = [_without(schema, keyword)]
        for name, demand in cast(Schema, listed).items():
            if isinstance(demand, list):
                demand = {"required": demand}
            grown: list[Schema] = []
            for branch in branches:
                if name not in (branch.get("required") or ()):
                    grown.append(_absent(branch, name))
                if _members(branch).get(name, True) is False:
                    continue
                merged = _merged(_requiring(branch, name), demand)
                if merged is None:
                    return None
                if merged is not False:
                    grown.append(cast(Schema, merged))
            branches = grown
            if len(branches) > MAX_BRANCHES:
                return None
        if schema.get("type") != "object" and listed:
            return None  # other types would not be asked
        return _any_of(branches)

    return rewrite


def _property_names(schema: Schema, root: Any) -> Schema | bool | None:
    rest, names = _without(schema, "propertyNames"), schema["propertyNames"]
    if isinstance(names, bool):
        return rest if names else {**rest, "maxProperties": 0}
    if not isinstance(names, dict):
        return None
    said = {k: v for k, v in followed(root, names).items() if k not in _SILENT}
    if said.get("type", "string") != "string":
        return None
    said.pop("type", None)
    if not said:
        return None if "$ref" in names else rest
    if "patternProperties" in schema or any(k in schema for k in _EVALUATING):
        return None
    others: Any = rest.get("additionalProperties", not _members(rest))
    if set(said) in ({"enum"}, {"const"}):
        allowed = said["enum"] if "enum" in said else [said["const"]]
        if not isinstance(allowed, list):
            return None
        listed = [name for name in cast(list[Any], allowed) if isinstance(name, str)]
        members = {k: v for k, v in _members(rest).items() if k in listed}
        if others is not False:
            members |= {name: others for name in listed if name not in members}
        return _named(rest, members, lambda name: name in listed)
    if set(said) == {"pattern"}:
        if _members(rest) or rest.get("required") or not isinstance(said["pattern"], str):
            return None  # whose expressions those names fit is not for us to run
        pattern, fits = said["pattern"], _never
    else:
        bounds = _lengths(said)
        if bounds is None:
            return None
        least, most = bounds
        pattern = rf"^[\s\S]{{{least},{'' if most is None else most}}}$"

        def fits(name: str) -> bool:
            return least <= len(name) and (most is None or len(name) <= most)

    members = {k: v for k, v in _members(rest).items() if fits(k)}
    closed = _named(rest, members, fits)
    if others is False or isinstance(closed, bool):
        return closed
    if members:
        return None  # the engine wants patterns apart from names
    return {**closed, "patternProperties": {pattern: others}}


def _never(name: str) -> bool:
    del name
    return False


def _lengths(said: Schema) -> tuple[int, int | None] | None:
    least, most = said.get("minLength", 0), said.get("maxLength")
    if set(said) - {"minLength", "maxLength"} or type(least) is not int:
        return None
    if most is not None and type(most) is not int:
        return None
    return least, most


def _named(rest: Schema, members: Schema, fits: Callable[[str], bool]) -> Schema | bool:
    """An object with no properties but these; False if one that is required does not fit."""
    required = rest.get("required") or []
    if _is_names(required) and not all(map(fits, required)):
        return False if rest.get("type") == "object" else {**rest, "maxProperties": 0}
    return {**rest, "properties": members, "additionalProperties": False}


def _unique_items(schema: Schema, root: Any) -> Schema | bool | None:
    rest = _without(schema, "uniqueItems")
    most, least = schema.get("maxItems"), schema.get("minItems", 0)
    if schema["uniqueItems"] is False or (type(most) is int and most <= 1):
        return rest
    items = schema.get("items")
    if schema["uniqueItems"] is not True or schema.get("type") != "array":
        return None
    if type(least) is not int or least < 0:
        return None
    said = {"type", "items", "uniqueItems", "minItems", "maxItems", "$defs", "definitions"}
    if set(schema) - {*said, *_SILENT} or not isinstance(items, dict):
        return None
    values = _values(followed(root, items), root)
    if values is None or not (most is None or type(most) is int):
        return None
    most = min(len(values), len(values) if most is None else most)
    num_arrays = 0
    for k in range(least, most + 1):
        num_arrays += perm(len(values), k)
        if num_arrays > MAX_ARRAYS:
            return None
    arrays = [
        list(items) for k in range(least, most + 1) for items in itertools.permutations(values, k)
    ]
    return {"enum": arrays} if arrays else False


def _unevaluated(keyword: str, plain: str) -> Callable[[Schema, Any], Schema | bool | None]:
    def rewrite(schema: Schema, root: Any) -> Schema | bool | None:
        rest = _without(schema, keyword)
        if schema[keyword] is True or plain in schema:
            return rest  # all are allowed, or all are evaluated
        if any(k in schema for k in _EVALUATING):
            return None
        if plain == "items" and "contains" in schema:
            return None
        return {**rest, plain: schema[keyword]}

    return rewrite


def _contains(schema: Schema, root: Any) -> Schema | bool | None:
    rest = _without(schema, "contains", "minContains", "maxContains")
    least = schema.get("minContains", 1)
    if least == 0 and "maxContains" not in schema:
        return rest
    everything = schema["contains"] is True or schema["contains"] == {}
    if not everything or schema.get("type") != "array":
        return None
    lower, most = rest.get("minItems", 0), schema.get("maxContains", rest.get("maxItems", 0))
    upper = rest.get("maxItems", most)
    if any(type(number) is not int for number in (least, lower, most, upper)):
        return None
    rest["minItems"] = max(least, lower)
    if "maxContains" in schema:
        rest["maxItems"] = min(most, upper)
    return rest


_UNEVALUATED = (
    ("unevaluatedProperties", _unevaluated("unevaluatedProperties", "additionalProperties")),
    ("unevaluatedItems", _unevaluated("unevaluatedItems", "items")),
)
# In this order. What is not evaluated is told before properties are added, or once all that may
# evaluate them is gone.
_REWRITES: Sequence[tuple[str, Callable[[Schema, Any], Schema | bool | None]]] = (
    *_UNEVALUATED,
    ("not", _not),
    ("propertyNames", _property_names),
    ("dependentRequired", _dependencies("dependentRequired")),
    ("dependentSchemas", _dependencies("dependentSchemas")),
    ("dependencies", _dependencies("dependencies")),
    ("if", _conditions),
    ("then", lambda schema, root: _without(schema, "then") if "if" not in schema else None),
    ("else", lambda schema, root: _without(schema, "else") if "if" not in schema else None),
    ("allOf", _conditions),
    ("uniqueItems", _unique_items),
    ("contains", _contains),
    *_UNEVALUATED,
)


def _without(schema: Schema, *keywords: str) -> Schema:
    return {k: v for k, v in schema.items() if k not in keywords}


def _members(schema: Schema) -> Schema:
    members = schema.get("properties")
    return cast(Schema, members) if isinstance(members, dict) else {}


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in cast(list[Any], value))


def _requiring(schema: Schema, name: str) -> Schema:
    required = schema.get("required") or []
    return schema if name in required else {**schema, "required": [*required, name]}


def _absent(schema: Schema, name: str) -> Schema:
    """The schema of the same objects without one property."""
    result = {**schema, "properties": {**_members(schema), name: False}}
    if not _members(schema) and "unevaluatedProperties" not in schema:
        result.setdefault("additionalProperties", True)
    return result


def _merged(schema: Schema, demand: Any) -> Schema | bool | None:
    """Objects that fit both, if what is demanded speaks of properties only."""
    if isinstance(demand, bool):
        return schema if demand else False
    if not isinstance(demand, dict):
        return None
    said = {k: v for k, v in cast(Schema, demand).items() if k not in _SILENT}
    if set(said) - {"properties", "required", "type"} or said.get("type", "object") != "object":
        return None
    required = said.get("required", [])
    if not isinstance(said.get("properties", {}), dict) or not _is_names(required):
        return None
    members = dict(_members(schema))
    open_ended = not members and "additionalProperties" not in schema
    if _members(said) and "patternProperties" in schema:
        return None
    for name, wanted in _members(said).items():
        own = members.get(name, schema.get("additionalProperties", True))
        members[name] = _both(own, wanted)
    result: Schema = {**schema, "properties": members} if members else schema
    if open_ended and members and "unevaluatedProperties" not in schema:
        result = {**result, "additionalProperties": True}
    for name in cast(list[str], required):
        if members.get(name) is False:
            return False
        result = _requiring(result, name)
    return result


def _both(one: Any, other: Any) -> Any:
    if one is True or one == other:
        return other
    if one is False or other is True:
        return one
    return False if other is False else {"allOf": [one, other]}


def _any_of(branches: list[Schema]) -> Schema | bool:
    if not branches:
        return False
    return branches[0] if len(branches) == 1 else {"anyOf": branches}


def _values(schema: Any, root: Any) -> list[Any] | None:
    """All values that a schema allows, each once, if it lists them."""
    said = followed(root, schema)
    if set(said) - {"enum", "const", "type", *_SILENT}:
        return None
    kinds = said.get("type")
    if "const" in said or "enum" in said:
        listed = [said["const"]] if "const" in said else said["enum"]
        if not isinstance(listed, list) or ("const" in said and "enum" in said):
            return None
        values = cast(list[Any], listed)
        if any(isinstance(value, dict | list | float) for value in values):
            return None
        if kinds is not None:
            names = cast(list[Any], kinds) if isinstance(kinds, list) else [kinds]
            if not _is_names(names):
                return None
            values = [v for v in values if any(name in names for name in _type_names(v))]
        return list({_text(value): value for value in values}.values())
    return {"boolean": [False, True], "null": [None]}.get(kinds) if isinstance(kinds, str) else None


def _only(schema: Schema, values: list[Any]) -> Schema | bool:
    return {**_without(schema, "const"), "enum": values} if values else False


def _type_names(value: Any) -> set[str]:
    match value:
        case bool():
            return {"boolean"}
        case None:
            return {"null"}
        case str():
            return {"string"}
        case _:
            return {"integer", "number"}


def _text(value: Any) -> str:
    """Equal for values that JSON Schema takes for equal."""
    whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if whole else value, sort_keys=True)
