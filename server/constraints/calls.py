"""The grammar of the model's tool calls: its XML markup, with each value typed by its schema.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

Forced markup has no free whitespace. Parameters come in the order of the schema; required ones must
come, others may. A value that the parser of answers takes for a string is raw text, any other is
JSON. What a value is, is asked of that parser (`server.parse.schema`), so the two cannot differ;
and raw text never holds what the parser would take for the value's end, or for another type. In
JSON that is bound here the parser knows that a string ends at its quote, whatever is in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

import msgspec

from server.constraints.effort import Effort, param_of
from server.constraints.refs import followed
from server.constraints.regex import literal
from server.constraints.schema import Schema, check_size, normalized
from server.constraints.strings import (
    ANY,
    ANY_TEXT,
    terminal_of_literals,
    terminal_of_strings,
)
from server.constraints.value_text import VALUE_TEXT
from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS, Limits
from server.parse.schema import Parameters, Types

MAX_CALLS = 32  # in one answer, where calls are forced
MAX_GRAMMAR_CHARS = 1 << 20
MAX_KEY_CHARS = 256  # what the parser of answers reads

# Text that is nothing but a string, whatever else a value may be: it begins with a letter, and is
# no word of JSON or Python.
_ONLY_STRING = (
    r"/\p{L}(?s:.*)/ & ~/(?i:true|false|null|none)(?s:.*)/"
    r""" & ~/[bBfFrRuU]{1,2}['"](?s:.*)/"""
)
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# Keywords of `parameters` that speak of several parameters at once.
_JOINT = (
    *("anyOf", "oneOf", "allOf", "patternProperties", "enum", "const", "not", "if"),
    *("dependentRequired", "dependentSchemas", "dependencies", "propertyNames"),
)


class CallGrammar:
    """Rules for calls of `tools`, OpenAI definitions that were checked for shape.

    `bound` are the names of tools whose arguments have to fit their schema; calls of the others may
    hold anything, except a call of a bound one.
    """

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]],
        bound: frozenset[str],
        limits: Limits = DEFAULT_LIMITS,
        *,
        only: str | None = None,
    ) -> None:
        """`only`: the tool of that name is the only one that may be called."""
        self._limits = limits
        self._effort = Effort(limits)
        self._lines: list[str] = []
        self._num_chars = 0
        self._terminals: dict[str, str] = {}  # expression -> name
        self.texts: dict[str, str] = {}  # terminal that may turn out to be empty -> its path
        self.schemas: dict[str, str] = {}  # by path, as JSON: what bound arguments have to fit
        self._num_json = 0
        self._bound = sorted(bound)
        self._functions: list[str] = []
        schemas = [
            cast(Mapping[str, Any], tool["function"]).get("parameters")
            for tool in tools
            if tool["function"]["name"] in bound
        ]
        check_size(schemas, "tools", limits)
        for index, tool in enumerate(tools):
            function = cast(Mapping[str, Any], tool["function"])
            if only not in (None, function["name"]):
                continue
            path = f"tools.{index}.function.parameters"
            if function["name"] in bound:
                body = self._bound_body(function.get("parameters"), path)
            else:
                body = self._lazy(f"({self._free_text()}) {_quoted('</tool_call>')}")
            name = f"function_{index}"
            opener = _quoted(f"<function={function['name']}>\n")
            self._add(f"{name}: {opener} {body}")
            self._functions.append(name)
        self._add(f"call: {_quoted('<tool_call>')} call_body")
        self._add(f"call_body: {_quoted(chr(10))} ({' | '.join(self._functions)})")

    def calls(self, *, at_most: int = MAX_CALLS) -> str:
        """The lines of a grammar whose rule `calls` is one call or more, and nothing besides."""
        more = f" ({_quoted(chr(10))} call){{0,{at_most - 1}}}" if at_most > 1 else ""
        return "\n".join((*self._lines, f"calls: call{more}"))

    def free_text_and_calls(self, *, at_most: int | None) -> str:
        """The same with a rule `answer`: any text, in which every call is as it has to be."""
        free = self._free_text()
        opener = self._lazy(f"({free}) {_quoted('<tool_call>')}")
        tail = self._terminal(f"{free} & ~{_containing('<tool_call>')}")
        self._add(f"text_and_call: {opener} call_body")
        times = "*" if at_most is None else f"{{0,{at_most}}}"
        return "\n".join((*self._lines, f"answer: text_and_call{times} {tail}"))

    def _free_text(self) -> str:
        """Text without a call of a bound function, which needs no `<tool_call>` to be one."""
        bans = (f" & ~{_containing(f'<function={name}>')}" for name in self._bound)
        return ANY_TEXT + "".join(bans)

    def _bound_body(self, parameters: Any, path: str) -> str:
        schema = self._object(parameters, path)
        self.schemas[path] = json_text(parameters or {})
        types = Parameters(parameters)
        required = _required(schema, path)
        properties = dict(_members(schema, path))
        for key in required:
            if key not in properties:
                if schema.get("additionalProperties") not in (None, True):
                    _refuse(path, "requires a parameter that it does not declare")
                properties[key] = True
        _check_counts(schema, len(required), len(properties), path)
        most = self._limits.max_schema_properties
        if len(properties) > most:
            _refuse(f"{path}.properties", f"has more than {most} properties")
        parts: list[str] = []
        for key, value_schema in properties.items():
            if value_schema is False and key not in required:
                continue
            _check_key(key, path)
            place = f"{path}.properties.{key}"
            before = types.num_read
            names = types.types(key)
            self._effort.spend((types.num_read - before) / 4, place)
            value = self._value(value_schema, parameters, names, path, place)
            part = f"{_quoted(f'<parameter={key}>{chr(10)}')} {value}"
            parts.append(part if key in required else f"({part})?")
            self._count(part, path)
        return " ".join((*parts, _quoted("</function>\n</tool_call>")))

    def _object(self, parameters: Any, path: str) -> Schema:
        """The object schema of all parameters, behind its references."""
        if parameters is None:
            return {}
        schema = followed(parameters, parameters)
        if "$ref" in schema or (not schema and parameters):
            _refuse(f"{path}.$ref", "points at nothing in the schema")
        for keyword in _JOINT:
            if schema.get(keyword) is not None:
                _refuse(f"{path}.{keyword}", "is not supported for a tool that has to be followed")
        if schema.get("type", "object") not in ("object", ["object"]):
            _refuse(f"{path}.type", 'must be "object"')
        return schema

    def _value(self, schema: Any, root: Any, types: Types, root_path: str, path: str) -> str:
        """What stands between a parameter's tag and the next tag."""
        normal = normalized(
            schema,
            path=path,
            root=root,
            root_path=root_path,
            limits=self._limits,
            effort=self._effort,
        )
        closer = _quoted("\n</parameter>\n")
        if "string" not in types.names:
            return f"{self._json(normal)} {closer}"
        text = terminal_of_strings(normal, path, self._effort)
        others = sorted(types.names - {"string"})
        choices: list[str] = []
        if text is not None:
            if set(others) - {"null"}:
                plain = f"({_ONLY_STRING})"
                if types.literals:
                    plain = f"({plain} | {terminal_of_literals(types.literals)})"
                text = plain if text == ANY else f"{text} & {plain}"
            choices.append(self._raw(text, closer, path))
        if others and text != ANY:
            choices.append(f"{self._json(_without_strings(normal, others))} {closer}")
        if not choices:
            _refuse(path, "has no type, so its value is text, and allows no text")
        return choices[0] if len(choices) == 1 else f"({' | '.join(choices)})"

    def _raw(self, text: str, closer: str, path: str) -> str:
        said = f" & {text}" if text != ANY else ""
        expression = f"({VALUE_TEXT}{said}) {closer}"
        if said:
            self.texts.setdefault(expression, path)
        return self._terminal(expression)

    def _json(self, schema: Schema) -> str:
        self._num_json += 1
        name = f"json_{self._num_json}"
        self._add(f"{name}: %json {json_text({'x-guidance': _COMPACT, **schema})}")
        return name

    def _terminal(self, expression: str) -> str:
        """The name of a terminal, which is one for equal expressions."""
        name = self._terminals.get(expression)
        if name is None:
            name = self._terminals[expression] = f"TEXT_{len(self._terminals)}"
            self._add(f"{name}: {expression}")
        return name

    def _lazy(self, expression: str) -> str:
        """A rule that takes as little text as possible."""
        terminal = self._terminal(expression)
        line = f"{terminal.lower()}[lazy]: {terminal}"
        if line not in self._lines:
            self._add(line)
        return terminal.lower()

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._count(line, "tools")

    def _count(self, text: str, path: str) -> None:
        self._num_chars += len(text)
        if self._num_chars > MAX_GRAMMAR_CHARS:
            _refuse(path, "makes a grammar that is too large")


def json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _quoted(text: str) -> str:
    """A string of the grammar notation."""
    return json_text(text)


def _containing(text: str) -> str:
    return f"/(?s:.*){literal(text)}(?s:.*)/"


def _without_strings(schema: Schema, types: list[str]) -> Schema:
    body = {k: v for k, v in schema.items() if k != "$defs"}
    names = [name for name in types if name != "integer" or "number" not in types]
    result: Schema = {"allOf": [body, {"type": names}]}
    return {**result, "$defs": schema["$defs"]} if "$defs" in schema else result


def _members(schema: Schema, path: str) -> Mapping[str, Any]:
    members = schema.get("properties")
    if members is None:
        return {}
    if not isinstance(members, dict):
        _refuse(f"{path}.properties", "must be an object of schemas")
    return cast(Schema, members)


def _required(schema: Schema, path: str) -> list[str]:
    listed = schema.get("required") or []
    if not isinstance(listed, list):
        _refuse(f"{path}.required", "must be a list of strings")
    names = [name for name in cast(list[Any], listed) if isinstance(name, str)]
    if len(names) < len(cast(list[Any], listed)):
        _refuse(f"{path}.required", "must be a list of strings")
    return list(dict.fromkeys(names))


def _check_counts(schema: Schema, least: int, most: int, path: str) -> None:
    """`minProperties` and `maxProperties` have to follow from the rest."""
    lower, upper = schema.get("minProperties", 0), schema.get("maxProperties", most)
    for keyword, value in (("minProperties", lower), ("maxProperties", upper)):
        if type(value) is not int:
            _refuse(f"{path}.{keyword}", "must be an integer")
    if lower > least:
        _refuse(f"{path}.minProperties", "can be enforced as far as parameters are required only")
    if upper < most:
        _refuse(f"{path}.maxProperties", "can be enforced if all parameters may be given only")


def _check_key(key: str, path: str) -> None:
    if not 0 < len(key) <= MAX_KEY_CHARS or any(char in key for char in "<>\n"):
        _refuse(path, "has a parameter whose name cannot be written in a call")


def _refuse(path: str, rule: str) -> NoReturn:
    raise BadRequest(f"{path} {rule}", param=param_of(path))
