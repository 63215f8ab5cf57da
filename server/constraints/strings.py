"""Strings that stand in the answer as raw text, without quotes or escapes: values of tool calls.

A JSON schema of a string becomes a terminal of the grammar: an intersection of expressions for its
keywords. Schemas here are normalised ones (see `schema`).
"""

from typing import Any, cast

from server.constraints.effort import Effort, param_of
from server.constraints.formats import FORMATS
from server.constraints.regex import ANYTHING, literal
from server.constraints.schema import Schema
from server.errors import BadRequest

ANY = ""  # every string
NONE = None  # no string
ANY_TEXT = f"/{ANYTHING}/"


def terminal_of_strings(schema: Schema, path: str, effort: Effort) -> str | None:
    """A terminal's expression for the strings that fit `schema`; `ANY` and `NONE` as above."""
    return _Reader(cast(Schema, schema.get("$defs", {})), path, effort).strings(schema, ())


def terminal_of_literals(values: frozenset[str] | list[str]) -> str:
    return f"/{'|'.join(map(literal, sorted(values)))}/"


class _Reader:
    def __init__(self, defs: Schema, path: str, effort: Effort) -> None:
        self._effort = effort
        self._defs = defs
        self._path = path

    def strings(self, schema: Any, inside: tuple[str, ...]) -> str | None:
        """`inside` are the references we are in: by itself a schema allows nothing."""
        if isinstance(schema, bool):
            return ANY if schema else NONE
        node = cast(Schema, schema)
        types = node.get("type", "string")
        if "string" not in (types if isinstance(types, list) else [types]):
            return NONE
        parts: list[str] = []
        for keyword, value in node.items():
            part = self._part(keyword, value, node, inside)
            if part is None:
                return NONE
            if part != ANY:
                parts.append(part)
        text = " & ".join(dict.fromkeys(parts))
        self._effort.spend(0.25 + len(text) / 512, self._path)
        return text

    def _part(self, keyword: str, value: Any, node: Schema, inside: tuple[str, ...]) -> str | None:
        match keyword:
            case "enum" | "const":
                listed = cast(list[Any], value if keyword == "enum" else [value])
                texts = [v for v in listed if isinstance(v, str)]
                return terminal_of_literals(texts) if texts else NONE
            case "minLength":
                return f"/(?s:.{{{value},}})/" if value else ANY
            case "maxLength":
                return f"/(?s:.{{0,{value}}})/"
            case "pattern":
                return f"/{value.removeprefix('^').removesuffix('$')}/"
            case "format":
                return f"/{FORMATS[value]}/"
            case "anyOf" | "oneOf":
                return self._union(keyword, value, inside)
            case "allOf":
                return self._intersection([self.strings(branch, inside) for branch in value])
            case "$ref":
                name = value.removeprefix("#/$defs/")
                return NONE if name in inside else self.strings(self._defs[name], (*inside, name))
            case _:
                return ANY

    def _union(self, keyword: str, branches: list[Any], inside: tuple[str, ...]) -> str | None:
        choices = [c for b in branches if (c := self.strings(b, inside)) is not None]
        if keyword == "oneOf" and len(choices) > 1:
            raise BadRequest(
                f"{self._path} has a oneOf whose branches do not exclude each other",
                param=param_of(self._path),
            )
        if not choices:
            return NONE
        return ANY if ANY in choices else f"({' | '.join(f'({c})' for c in choices)})"

    def _intersection(self, parts: list[str | None]) -> str | None:
        said = [part for part in parts if part is not None]
        if len(said) < len(parts):
            return NONE
        return " & ".join(part for part in said if part != ANY)
