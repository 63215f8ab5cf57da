"""From the fields of a request to the grammar of its answer.

Three families of fields say what an answer has to look like: `response_format`, the structured
outputs (`structured_outputs` and the older names of its parts), and `tool_choice` with the tools
that are called. At most one of the first two; with tools that may but need not be called the answer
is either that or calls.

Where the model thinks first, the grammar begins behind `</think>`, and with the blank line that the
model writes there. Before, ends of the answer are banned, and `<tool_call>`, since a call would end
the thinking. With nothing but strict tools there is no content to
bind: then the grammar covers the thinking too, and leaves all text free up to a call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from engine import GrammarSpec
from server.constraints.calls import MAX_CALLS, CallGrammar, json_text
from server.constraints.checker import Checks
from server.constraints.effort import param_of
from server.constraints.regex import UnsupportedRegex, whole
from server.constraints.schema import WHITESPACE, normalized
from server.constraints.structural_tags import StructuralGrammar
from server.errors import BadRequest
from server.json_body import decode_object
from server.limits import DEFAULT_LIMITS, Limits

# The request fields that `ConstraintReader.read` looks at; absent and null are the same.
FIELDS = (
    *("response_format", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("json_schema", "regex", "ebnf", "structural_tag"),
    *("tools", "tool_choice", "parallel_tool_calls"),
)

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_ALIASES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
    "structural_tag": "structural_tag",
}
_BLANK_LINE = r'"\n\n"'  # what the model writes behind `</think>`


@dataclass(frozen=True, slots=True)
class _Content:
    """What the content of an answer has to be: the lines of a grammar with a rule `content`."""

    path: str
    lines: str
    is_json: bool = False
    schemas: Mapping[str, str] = field(default_factory=dict[str, str])  # in it, JSON by path
    is_grammar: bool = False  # the client's: has a `start` of its own


class ConstraintReader:
    """May be used from several threads. Reading takes as long as `checker` does."""

    def __init__(self, checker: Checks, limits: Limits = DEFAULT_LIMITS) -> None:
        self._checker = checker
        self._limits = limits

    def read(
        self,
        request: Mapping[str, Any],
        *,
        after_token_id: int | None = None,
        call_token_id: int | None = None,
    ) -> GrammarSpec | None:
        """The grammar that the fields of a request ask for; None: they ask for none.

        `after_token_id` is that of `</think>` where the prompt ends inside a think block, and
        `call_token_id` that of `<tool_call>`. `tools` and `tool_choice` were checked for shape.
        Raises BadRequest, which names the field.
        """
        content = self._content(request)
        tools = cast(Sequence[Mapping[str, Any]], request.get("tools") or ())
        choice = request.get("tool_choice") or "auto"
        if not tools or choice == "none":
            return None if content is None else self._of_content(content, after_token_id)
        bound = bound_calls(request)
        one_call = request.get("parallel_tool_calls") is False
        banned = () if call_token_id is None or after_token_id is None else (call_token_id,)
        if choice == "auto":
            at_most = 1 if one_call else None
            if content is not None:
                spec = self._either(
                    content, CallGrammar(tools, bound, self._limits), at_most, after_token_id
                )
                return _banning(spec, banned)
            if not bound:
                return None
            calls = CallGrammar(tools, bound, self._limits)
            grammar = f"start: answer\n{calls.free_text_and_calls(at_most=at_most)}"
            return self._spec(grammar, "tools", None, calls=calls)
        only = None if choice == "required" else cast(str, choice["function"]["name"])
        calls = CallGrammar(tools, bound, self._limits, only=only)
        lines = calls.calls(at_most=1 if one_call or only is not None else MAX_CALLS)
        grammar = f"start: {_begin(after_token_id)}calls\n{lines}"
        return _banning(self._spec(grammar, "tools", after_token_id, calls=calls), banned)

    def _of_content(self, content: _Content, after_token_id: int | None) -> GrammarSpec:
        if content.is_grammar:
            grammar = self._checker.from_ebnf(content.lines, content.path, self._limits)
            if after_token_id is not None:
                grammar = _nested(f"start: {_BLANK_LINE} @client", grammar)
            return GrammarSpec(grammar=grammar, after_token_id=after_token_id)
        grammar = f"start: {_begin(after_token_id)}content\n{content.lines}"
        spec = self._spec(grammar, content.path, after_token_id, schemas=content.schemas)
        return msgspec.structs.replace(spec, bounds_numbers=content.is_json)

    def _either(
        self, content: _Content, calls: CallGrammar, at_most: int | None, after_token_id: int | None
    ) -> GrammarSpec:
        lines = calls.calls(at_most=at_most or MAX_CALLS)
        if content.is_grammar:
            client = self._checker.from_ebnf(content.lines, content.path, self._limits)
            start = f"start: {_begin(after_token_id)}(@client | calls)\n{lines}"
            grammar = _nested(start, client)
            spec = self._spec(grammar, content.path, after_token_id, calls=calls)
            return msgspec.structs.replace(spec, bounds_numbers=False)
        grammar = f"start: {_begin(after_token_id)}(content | calls)\n{content.lines}\n{lines}"
        return self._spec(
            grammar, content.path, after_token_id, calls=calls, schemas=content.schemas
        )

    def _spec(
        self,
        grammar: str,
        path: str,
        after_token_id: int | None,
        *,
        calls: CallGrammar | None = None,
        schemas: Mapping[str, str] | None = None,
    ) -> GrammarSpec:
        texts = calls.texts if calls is not None else None
        schemas = {**(schemas or {}), **(calls.schemas if calls is not None else {})}
        return GrammarSpec(
            grammar=self._checker.check(grammar, path, texts, schemas=schemas),
            after_token_id=after_token_id,
            bounds_numbers=True,
        )

    def _content(self, request: Mapping[str, Any]) -> _Content | None:
        found = [
            content
            for content in (
                _response_format(request.get("response_format"), self._limits),
                _structured_outputs(request.get("structured_outputs"), self._limits),
                *(_of_kind(kind, request.get(f), f, self._limits) for f, kind in _ALIASES.items()),
            )
            if content is not None
        ]
        if len(found) > 1:
            raise BadRequest(
                f"{found[0].path} and {found[1].path} cannot be combined",
                param=param_of(found[1].path),
            )
        return found[0] if found else None


def _response_format(value: Any, limits: Limits) -> _Content | None:
    path = "response_format"
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadRequest(f"{path} must be an object", param=path)
    fields = cast(dict[str, Any], value)
    match fields.get("type"):
        case "text":
            return None
        case "json_object":
            return _json({"type": "object"}, path, limits)
        case "json_schema":
            described = fields.get("json_schema")
            if not isinstance(described, dict):
                raise BadRequest(f"{path}.json_schema must be an object", param=path)
            schema = cast(dict[str, Any], described).get("schema")
            if schema is None:
                raise BadRequest(f"{path}.json_schema.schema is required", param=path)
            if not isinstance(cast(dict[str, Any], described).get("strict"), bool | None):
                raise BadRequest(f"{path}.json_schema.strict must be true or false", param=path)
            return _json(schema, f"{path}.json_schema.schema", limits)
        case "structural_tag":
            return _structural_tag(fields, path, limits)
        case _:
            raise BadRequest(
                f"{path}.type must be one of text, json_object, json_schema, structural_tag",
                param=path,
            )


def _structured_outputs(value: Any, limits: Limits) -> _Content | None:
    path = "structured_outputs"
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadRequest(f"{path} must be an object", param=path)
    fields = cast(dict[str, Any], value)
    given = [kind for kind in KINDS if fields.get(kind) not in (None, False)]
    if len(given) != 1:
        raise BadRequest(f"{path} must have exactly one of {', '.join(KINDS)}", param=path)
    return _of_kind(given[0], fields[given[0]], f"{path}.{given[0]}", limits)


def _of_kind(kind: str, value: Any, path: str, limits: Limits) -> _Content | None:
    if value is None:
        return None
    match kind:
        case "json":
            if isinstance(value, str):
                value = _decoded(value, path, limits)
            return _json(value, path, limits)
        case "json_object":
            if value is not True:
                raise BadRequest(f"{path} must be true or false", param=param_of(path))
            return _json({"type": "object"}, path, limits)
        case "regex":
            return _regex(_text(value, path, limits), path, limits.max_repeat)
        case "choice":
            return _choice(value, path, limits)
        case "grammar":
            return _Content(path, _text(value, path, limits), is_grammar=True)
        case _:
            if isinstance(value, str):
                value = _decoded(value, path, limits)
            return _structural_tag(value, path, limits)


def _decoded(text: str, path: str, limits: Limits) -> dict[str, Any]:
    """An object that was written as a string."""
    _check_length(text, path, limits.max_schema_bytes)
    depth = limits.max_json_depth
    return decode_object(text.encode(), what=path, param=param_of(path), max_depth=depth)


def _structural_tag(value: Any, path: str, limits: Limits) -> _Content:
    if not isinstance(value, dict):
        raise BadRequest(f"{path} must be an object", param=param_of(path))
    fields = cast(dict[str, Any], value)
    if fields.get("type", "structural_tag") != "structural_tag":
        raise BadRequest(f'{path}.type must be "structural_tag"', param=param_of(path))
    grammar = StructuralGrammar(fields, path, whitespace=WHITESPACE, limits=limits)
    is_json = bool(grammar.schemas)
    return _Content(path, grammar.lines, is_json=is_json, schemas=grammar.schemas)


def _json(schema: Any, path: str, limits: Limits) -> _Content:
    body = {"x-guidance": WHITESPACE, **normalized(schema, path=path, limits=limits)}
    lines = f"content: %json {json_text(body)}"
    return _Content(path, lines, is_json=True, schemas={path: json_text(schema)})


def _regex(pattern: str, path: str, max_repeat: int) -> _Content:
    try:
        return _Content(path, f"content: /{whole(pattern, max_repeat)}/")
    except UnsupportedRegex as error:
        raise BadRequest(f"{path} cannot be used: {error}", param=param_of(path)) from None


def _choice(value: Any, path: str, limits: Limits) -> _Content:
    choices = cast(list[Any], value) if isinstance(value, list) else []
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise BadRequest(f"{path} must be a list of strings", param=param_of(path))
    most = limits.max_enum_values
    if len(choices) > most:
        raise BadRequest(f"{path} has more than {most} choices", param=param_of(path))
    _check_length("".join(choices), path, limits.max_schema_bytes)
    return _Content(path, f"content: {' | '.join(map(json_text, dict.fromkeys(choices)))}")


def _text(value: Any, path: str, limits: Limits) -> str:
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{path} must be a string that is not empty", param=param_of(path))
    _check_length(value, path, limits.max_schema_bytes)
    return value


def _check_length(text: str, path: str, max_bytes: int) -> None:
    if len(text.encode("utf-8", "replace")) > max_bytes:
        raise BadRequest(f"{path} is larger than {max_bytes} bytes", param=param_of(path))


def _begin(after_token_id: int | None) -> str:
    return "" if after_token_id is None else f"{_BLANK_LINE} "


def _nested(start: str, client: str) -> str:
    """A grammar that holds a client's, which has a `start` and names of its own."""
    inner = {"name": "client", "lark_grammar": client}
    return json_text({"grammars": [{"lark_grammar": start}, inner]})


def binds_content(request: Mapping[str, Any]) -> bool:
    """Whether valid fields bind all of an answer's text, and not only tags in it."""
    wanted = {kind: request.get(field) for field, kind in _ALIASES.items()}
    wanted |= cast(dict[str, Any], request.get("structured_outputs") or {})
    kind = cast(dict[str, Any], request.get("response_format") or {}).get("type")
    binds = {name for name, value in wanted.items() if value not in (None, False)} & set(KINDS)
    return kind in ("json_object", "json_schema") or bool(binds - {"structural_tag"})


def bound_calls(request: Mapping[str, Any]) -> frozenset[str]:
    """The tools whose calls have to fit their schemas, in valid fields."""
    tools = cast(Sequence[Mapping[str, Any]], request.get("tools") or ())
    match request.get("tool_choice") or "auto":
        case "none":
            return frozenset()
        case "auto":
            return frozenset(_name(tool) for tool in tools if tool["function"].get("strict"))
        case "required":
            return frozenset(map(_name, tools))
        case named:
            return frozenset((cast(str, named["function"]["name"]),))


def _banning(spec: GrammarSpec, token_ids: tuple[int, ...]) -> GrammarSpec:
    return msgspec.structs.replace(spec, banned_before=token_ids)


def _name(tool: Mapping[str, Any]) -> str:
    return tool["function"]["name"]
