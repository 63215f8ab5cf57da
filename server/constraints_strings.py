"""Strings that stand in the answer as raw text, without quotes or escapes: values of tool calls.

A JSON schema of a string becomes a terminal of the grammar: an intersection of expressions for its
keywords. Schemas here are normalised ones (`constraints_schema`). Formats are written out, as the
engine knows them inside quotes only; each expression allows a part of its format that covers what
is in use, so that no reader refuses it.
"""

from typing import Any, cast

from server.constraints_regex import ANYTHING, literal
from server.constraints_schema import Schema, param_of
from server.errors import BadRequest

ANY = ""  # every string
NONE = None  # no string

_N = "[0-9]{1,9}"
_DATE = (
    "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    "|[1-9][0-9](?:0[48]|[2468][048]|[13579][26])-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_CLOCK = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_CALENDAR = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9A-Fa-f]{1,4}"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,28}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,7}}"
_ATOM = "[A-Za-z0-9_+-]{1,20}"
_IN_URI = r"(?:[A-Za-z0-9._~!$'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_CALENDAR}(?:{_CLOCK})?|{_CLOCK}|{_N}W)",
    "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": "|".join(
        (
            f"(?:{_HEX}:){{7}}{_HEX}",
            *(f"(?:{_HEX}:){{1,{i}}}(?::{_HEX}){{1,{7 - i}}}" for i in range(1, 7)),
            f"(?:{_HEX}:){{1,7}}:",
            f":(?::{_HEX}){{1,7}}",
            "::",
        )
    ),
    "hostname": _HOST,
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,2}}@{_LABEL}(?:\.{_LABEL}){{1,5}}",
    "uri": (
        rf"[A-Za-z][A-Za-z0-9+.-]{{0,19}}:(?:\/\/{_HOST}(?::[0-9]{{1,4}})?\/)?"
        rf"{_IN_URI}+(?:\/{_IN_URI}+)*\/?(?:\?{_IN_URI}*)?(?:#{_IN_URI}*)?"
    ),
}


def terminal_of_strings(schema: Schema, path: str) -> str | None:
    """A terminal's expression for the strings that fit `schema`; `ANY` and `NONE` as above."""
    return _Reader(cast(Schema, schema.get("$defs", {})), path).strings(schema, ())


def terminal_of_literals(values: frozenset[str] | list[str]) -> str:
    return f"/{'|'.join(map(literal, sorted(values)))}/"


class _Reader:
    def __init__(self, defs: Schema, path: str) -> None:
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
            if part is NONE:
                return NONE
            if part != ANY:
                parts.append(part)
        return " & ".join(dict.fromkeys(parts))

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
                return f"/{_FORMATS[value]}/"
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
        choices = [c for b in branches if (c := self.strings(b, inside)) is not NONE]
        if keyword == "oneOf" and len(choices) > 1:
            raise BadRequest(
                f"{self._path} has a oneOf whose branches do not exclude each other",
                param=param_of(self._path),
            )
        if not choices:
            return NONE
        return ANY if ANY in choices else f"({' | '.join(f'({c})' for c in choices)})"

    def _intersection(self, parts: list[str | None]) -> str | None:
        said = [part for part in parts if part is not NONE]
        if len(said) < len(parts):
            return NONE
        return " & ".join(part for part in said if part != ANY)


def is_text(schema: Schema) -> bool:
    """Whether nothing is said of the strings of a schema."""
    return terminal_of_strings(schema, "") == ANY


ANY_TEXT = f"/{ANYTHING}/"
