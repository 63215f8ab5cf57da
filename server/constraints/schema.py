"""A client's JSON schema, checked and rewritten into the one the grammar engine gets.

What comes out means the same or less: every value that fits it fits the client's schema. It says
nothing the engine would not enforce, refers only to its own `$defs`, and is bounded where JSON
Schema leaves things open that no caller wants open:

- an object that names its `properties` and says nothing of others has no others;
- a schema without `type` whose keywords speak of one type is of that type;
- integer bounds are moved inwards to doubles, which is what the engine reckons in;
- `oneOf` becomes `anyOf` where no value can fit two branches;
- keywords that the engine lacks are said in others where that is exact: see `rewrite`.

What cannot be enforced is refused by its path, never ignored; keywords that are no part of JSON
Schema say nothing. Walks follow references through a queue, so loops end and depth is bounded.
"""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn, cast

import msgspec

from server.constraints.disjoint import are_disjoint
from server.constraints.effort import Effort, param_of, shortened
from server.constraints.finite import has_finite_value
from server.constraints.formats import FORMATS
from server.constraints.refs import resolved
from server.constraints.regex import UnsupportedRegex, found
from server.constraints.rewrite import rewritten
from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS, Limits

MAX_FACTOR = 10_000  # significant digits of a `multipleOf`: it costs an automaton of that size

# A blank or a line break with some indentation, once between two tokens of JSON: a grammar allows
# `whitespace_pattern` at most once in a place, so the whitespace of a bounded schema is bounded.
WHITESPACE = {"whitespace_pattern": r" |\n {0,24}"}  # what the engine is told of it

TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))

_LARGEST = 2**63 - 1  # the engine's integers
_SMALLEST = -(2**63) + 1024  # the first double above their end
_LARGE = 10**15  # the engine's bounds of numbers with fractions

_NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LENGTHS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_COMBINING = ("anyOf", "oneOf", "allOf")
_UNSUPPORTED = (
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
    "unevaluatedItems",
    "$dynamicRef",
    "$recursiveRef",
)
# Keywords that speak of values of one type only.
_OF_TYPE = {
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties"),
        *("minProperties", "maxProperties"),
    ),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": _NUMERIC,
}
_ON_OBJECTS = (*_OF_TYPE["object"], *_COMBINING, "$ref")

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a subschema stands, and how deep."""

    path: str
    depth: int

    def __truediv__(self, step: str | int) -> "_Place":
        return _Place(f"{self.path}.{step}", self.depth)

    def inner(self) -> "_Place":
        return _Place(self.path, self.depth + 1)


def normalized(
    schema: Any,
    *,
    path: str,
    root: Any = None,
    root_path: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    effort: Effort | None = None,
) -> Schema:
    """The schema for the engine. `root` is what references point into: by default `schema`, else
    one whose size was checked, at `root_path`. `effort` is that of all schemas of the request.

    Raises BadRequest, which names the part by its path from `path` on.
    """
    if root is None:
        check_size(schema, path, limits)
    effort = effort or Effort(limits)
    if root is None:
        root, root_path = schema, path
    result = _Normalizer(root, root_path or path, path, limits, effort).run(schema)
    if not has_finite_value(result, effort, path):
        raise BadRequest(f"{path} has no value that ever ends", param=param_of(path))
    return result


def check_size(schema: Any, path: str, limits: Limits) -> None:
    most = limits.max_schema_bytes
    if len(msgspec.json.encode(schema)) > most:
        raise BadRequest(f"{path} is larger than {most} bytes", param=param_of(path))


class _Normalizer:
    def __init__(
        self, root: Any, root_path: str, path: str, limits: Limits, effort: Effort
    ) -> None:
        self._limits = limits
        self._effort = effort
        self._root = root
        self._root_path = root_path
        self._path = path
        self._num_properties = 0
        self._num_values = 0
        # (id of a target, combined) -> name in `$defs`; what is in the root keeps its id
        self._names: dict[tuple[int, bool], str] = {}
        self._todo: list[tuple[str, Any, str, bool]] = []

    def run(self, schema: Any) -> Schema:
        result = self._schema(schema, _Place(self._path, 0), combined=False)
        if result is False:
            self._refuse(_Place(self._path, 0), "allows no value")
        body = {} if isinstance(result, bool) else result
        defs: Schema = {}
        while self._todo:
            name, target, path, combined = self._todo.pop()
            defs[name] = self._schema(target, _Place(path, 0), combined=combined)
        return {**body, "$defs": defs} if defs else body

    def _schema(self, node: Any, place: _Place, *, combined: bool) -> Schema | bool:
        """`combined`: the same value has to fit other schemas as well."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            self._refuse(place, "must be a schema: an object, true or false")
        most = self._limits.max_schema_depth
        if place.depth > most:
            self._refuse(place, f"is nested deeper than {most} schemas")
        self._effort.spend(1 + _size(cast(Schema, node)) / 32, place.path)
        schema = {k: v for k, v in cast(Schema, node).items() if v is not None or k == "const"}
        simpler = rewritten(schema, self._root)
        if isinstance(simpler, bool):
            return simpler
        schema = simpler
        self._refuse_unsupported(schema, place)
        types = self._types(schema, place, combined)
        result: Schema = {}
        if types:
            result["type"] = types[0] if len(types) == 1 else types
        for keyword, value in schema.items():
            at = place / keyword
            match keyword:
                case "properties" | "patternProperties":
                    result[keyword] = self._members(keyword, value, at)
                case "required":
                    result[keyword] = self._strings(value, at)
                case "additionalProperties" | "items" | "prefixItems" | "additionalItems":
                    self._items(keyword, value, schema, at, result)
                case "anyOf" | "oneOf" | "allOf":
                    self._combination(keyword, value, schema, at, result, combined)
                case "$ref":
                    result[keyword] = self._ref(value, schema, at, combined)
                case "enum" | "const":
                    self._count_values(keyword, value, at)
                    result[keyword] = value
                case "pattern":
                    result[keyword] = self._pattern(value, at)
                case "format":
                    if not types or "string" in types:
                        self._format(value, schema, at, result)
                case _ if keyword in _LENGTHS:
                    result[keyword] = self._length(value, at)
                case _:
                    pass  # numbers come below; the rest says nothing
        self._numbers(schema, types, place, result)
        self._close(schema, place, combined, result)
        return result

    def _refuse_unsupported(self, schema: Schema, place: _Place) -> None:
        for keyword in _UNSUPPORTED:
            if keyword in schema:
                self._refuse(place / keyword, "is not supported")
        if schema.get("uniqueItems") not in (None, False):
            self._refuse(place / "uniqueItems", "is not supported")

    def _types(self, schema: Schema, place: _Place, combined: bool) -> list[str]:
        declared = schema.get("type")
        if declared is None:
            if combined or any(k in schema for k in (*_COMBINING, "$ref", "enum", "const")):
                return []
            spoken = [t for t, keywords in _OF_TYPE.items() if any(k in schema for k in keywords)]
            return spoken if len(spoken) == 1 else []
        listed = cast(list[Any], declared) if isinstance(declared, list) else [declared]
        if not listed or not all(isinstance(name, str) and name in TYPES for name in listed):
            self._refuse(place / "type", f"must be among {', '.join(sorted(TYPES))}")
        return list(dict.fromkeys(listed))

    def _members(self, keyword: str, value: Any, at: _Place) -> Schema:
        if not isinstance(value, dict):
            self._refuse(at, "must be an object of schemas")
        members = cast(Schema, value)
        self._num_properties += len(members)
        most = self._limits.max_schema_properties
        if self._num_properties > most:
            self._refuse(at, f"brings the schema past {most} properties")
        if keyword == "properties":
            return {k: self._schema(v, at.inner() / k, combined=False) for k, v in members.items()}
        return {
            self._pattern(k, at): self._schema(v, at.inner() / k, combined=False)
            for k, v in members.items()
        }

    def _items(self, keyword: str, value: Any, schema: Schema, at: _Place, result: Schema) -> None:
        """What the other members of an object or array look like; older drafts' tuples too."""
        if keyword == "additionalItems":
            if isinstance(schema.get("items"), list):
                result["items"] = self._schema(value, at.inner(), combined=False)
        elif keyword == "prefixItems" or (keyword == "items" and isinstance(value, list)):
            listed = self._schemas(value, at)
            result["prefixItems"] = [
                self._schema(item, at.inner() / i, combined=False) for i, item in enumerate(listed)
            ]
        else:
            result[keyword] = self._schema(value, at.inner(), combined=False)

    def _combination(
        self, keyword: str, value: Any, schema: Schema, at: _Place, result: Schema, combined: bool
    ) -> None:
        branches = self._schemas(value, at)
        if not branches:
            self._refuse(at, "must not be empty")
        others = any(k in schema for k in _ON_OBJECTS if k != keyword)
        one_of = keyword == "oneOf" and len(branches) > 1
        if one_of and are_disjoint(branches, self._root):
            keyword, one_of = "anyOf", False
            if "anyOf" in schema:
                self._refuse(at, "is not supported beside anyOf")
        inner = combined or others or one_of or (keyword == "allOf" and len(branches) > 1)
        if keyword == "oneOf" and len(branches) == 1:
            keyword = "allOf"
            if "allOf" in schema:
                self._refuse(at, "is not supported beside allOf")
        result[keyword] = [
            self._schema(branch, at.inner() / i, combined=inner)
            for i, branch in enumerate(branches)
        ]

    def _ref(self, value: Any, schema: Schema, at: _Place, combined: bool) -> str:
        if not isinstance(value, str):
            self._refuse(at, "must be a string")
        if not value.startswith("#"):
            self._refuse(at, "must be a reference inside the schema")
        inner = combined or any(k in schema for k in _ON_OBJECTS if k != "$ref")
        try:
            target = resolved(self._root, value)
        except KeyError:
            self._refuse(at, "points at nothing in the schema")
        key = (id(target), inner)
        if key not in self._names:
            self._names[key] = f"d{len(self._names)}"
            path = ".".join((self._root_path, *value.split("/")[1:]))
            self._todo.append((self._names[key], target, path, inner))
        return f"#/$defs/{self._names[key]}"

    def _count_values(self, keyword: str, value: Any, at: _Place) -> None:
        self._effort.spend(len(msgspec.json.encode(value)) / 256, at.path)
        if not _is_kept_exactly(value):
            self._refuse(at, "holds an integer past 2**53, which would lose digits")
        if keyword == "const":
            return
        if not isinstance(value, list) or not value:
            self._refuse(at, "must be a list that is not empty")
        self._num_values += len(cast(list[Any], value))
        most = self._limits.max_enum_values
        if self._num_values > most:
            self._refuse(at, f"brings the schema past {most} enum values")

    def _pattern(self, value: Any, at: _Place) -> str:
        if not isinstance(value, str):
            self._refuse(at, "must be a regular expression")
        self._effort.spend(len(value) / 16, at.path)
        try:
            return f"^(?:{found(value, self._limits.max_repeat)})$"
        except UnsupportedRegex as error:
            self._refuse(at, f"cannot be used as a regular expression: {error}")

    def _format(self, value: Any, schema: Schema, at: _Place, result: Schema) -> None:
        if not isinstance(value, str) or value not in FORMATS:
            self._refuse(at, f"must be one of {', '.join(sorted(FORMATS))}")
        if "pattern" in schema:
            result["format"] = value  # as the engine reads it: both have to hold
        else:
            result["pattern"] = f"^(?:{FORMATS[value]})$"

    def _length(self, value: Any, at: _Place) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or value < 0:
            self._refuse(at, "must be an integer of at least 0")
        if value > self._limits.max_repeat:
            self._refuse(at, f"must be at most {self._limits.max_repeat}")
        return value

    def _strings(self, value: Any, at: _Place) -> list[str]:
        listed = cast(list[Any], value) if isinstance(value, list) else None
        if listed is None or not all(isinstance(name, str) for name in listed):
            self._refuse(at, "must be a list of strings")
        return list(dict.fromkeys(listed))

    def _schemas(self, value: Any, at: _Place) -> list[Any]:
        if not isinstance(value, list):
            self._refuse(at, "must be a list of schemas")
        listed = cast(list[Any], value)
        most = self._limits.max_enum_values
        if len(listed) > most:
            self._refuse(at, f"has more than {most} schemas")
        return listed

    def _numbers(self, schema: Schema, types: list[str], place: _Place, result: Schema) -> None:
        bounds = {k: schema[k] for k in _NUMERIC if k in schema}
        for end in ("Minimum", "Maximum"):  # draft 4: a flag on the plain bound
            flag = bounds.get(f"exclusive{end}")
            if isinstance(flag, bool):
                del bounds[f"exclusive{end}"]
                if flag and end.lower() in bounds:
                    bounds[f"exclusive{end}"] = bounds.pop(end.lower())
        for keyword, value in bounds.items():
            at = place / keyword
            if type(value) not in (int, float) or (type(value) is float and math.isinf(value)):
                self._refuse(at, "must be a number")
            if keyword == "multipleOf":
                digits = Decimal(repr(value)).normalize().as_tuple().digits
                if not 0 < value <= _LARGEST or int("".join(map(str, digits))) > MAX_FACTOR:
                    self._refuse(at, f"must have digits that make at most {MAX_FACTOR}")
                result[keyword] = value
            else:
                self._bound(keyword, value, "number" in types or not types, at, result)
        if "multipleOf" in result:  # else its digits would have no end
            if "minimum" not in result and "exclusiveMinimum" not in result:
                result["minimum"] = -_LARGE if result.get("maximum", 0) > -_LARGE else _SMALLEST
            if "maximum" not in result and "exclusiveMaximum" not in result:
                result["maximum"] = _LARGE if result.get("minimum", 0) < _LARGE else _LARGEST

    def _bound(
        self, keyword: str, value: float, fractions: bool, at: _Place, result: Schema
    ) -> None:
        """A bound as the engine can keep it: never further out."""
        low = keyword in ("minimum", "exclusiveMinimum")
        least, most = (-_LARGE, _LARGE) if fractions else (_SMALLEST, _LARGEST)
        if value > most if low else value < least:
            self._refuse(at, "is further from zero than can be enforced")
        if least <= value <= most:
            result[keyword] = _inwards(value, up=low)
        else:
            result["minimum" if low else "maximum"] = least if low else most

    def _close(self, schema: Schema, place: _Place, combined: bool, result: Schema) -> None:
        """Settle which properties an object has besides those it names, and how many."""
        names = cast(Schema, result.get("properties", {}))
        required = cast(list[str], result.get("required", []))
        if result.get("minProperties", 0) <= len(required):
            result.pop("minProperties", None)
        elif result["minProperties"] > len(required) + 1:
            self._refuse(place / "minProperties", "can be enforced to one more than required only")
        said = ("additionalProperties", "patternProperties", *_COMBINING, "$ref")
        if (
            names
            and not combined
            and not any(k in schema for k in said)
            and names.keys() >= set(required)
        ):
            result["additionalProperties"] = False

    def _refuse(self, place: _Place, rule: str) -> NoReturn:
        raise BadRequest(f"{shortened(place.path)} {rule}", param=param_of(self._path))


def _size(node: Schema) -> int:
    """How much there is to read in a schema itself, besides the schemas in it."""
    return len(node) + sum(len(cast(Any, v)) for v in node.values() if isinstance(v, list | dict))


def _is_kept_exactly(value: Any) -> bool:
    """Whether all integers in a literal are doubles: the engine keeps literals as such."""
    if type(value) is int:
        return abs(value) <= 2**53
    if isinstance(value, dict):
        value = list(cast(dict[str, Any], value).values())
    return not isinstance(value, list) or all(map(_is_kept_exactly, cast(list[Any], value)))


def _inwards(value: float, *, up: bool) -> float:
    """The nearest number that is a double and not outside the bound."""
    if isinstance(value, float) or abs(value) <= 2**53 or value == _LARGEST:
        return value
    near = float(value)
    if (near < value) if up else (near > value):
        near = math.nextafter(near, math.inf if up else -math.inf)
    return int(near)
