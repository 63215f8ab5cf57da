"""What is fuzzed: functions of bytes that raise when something is wrong, and else return nothing.

answer      the output parser on text with markup: read as the oracle reads it, however it is split
constraint  the reader of constraints on JSON of its words: a grammar or a BadRequest, no third
schema      JSON schemas built from the bytes: what was accepted yields answers that fit
stream      the events of an answer, of any bytes: see `stream_target.py`
url, image, video   see `media_targets.py`

Bytes are taken from the front and mean small choices, so that one changed byte is one changed
choice; past their end every choice is the first.
"""

import functools
import json
import random
from collections.abc import Callable
from typing import Any, cast

import jsonschema
import msgspec
from jsonschema import Draft202012Validator

from engine import GrammarError
from server.constraints import ConstraintReader, GrammarChecker
from server.constraints.checker import Checks, Question
from server.constraints.worker import Ask, byte_compiler, compiled
from server.errors import BadRequest
from tests.engine.grammar.sampling import Babbler, NoEnd
from tests.fuzz import media_targets
from tests.fuzz.choices import Choices
from tests.fuzz.stream_target import stream
from tests.server.parse.answers import Answer, events_of, gather, split_at
from tests.server.parse.oracle import parse
from tests.server.parse.test_oracle import DECLARED, SPACES, TAGS, TOOLS, WELL_FORMED

PIECES = [*TAGS, *SPACES, *WELL_FORMED, "x", "yz", '"', "\\", "é", "😀", "\x07", "&"]
MAX_PIECES = 60
CALL = {"name": "f", "parameters": {"properties": {"a": {"enum": ["x", 1]}, "b": {}}}}


def answer(data: bytes) -> None:
    choices = Choices(data)
    flags = choices.number(8)
    thinking, with_tools, cut = bool(flags & 1), bool(flags & 2), bool(flags & 4)
    places = [choices.number(256) for _ in range(4)]
    pieces: list[str] = []
    while not choices.is_empty and len(pieces) < MAX_PIECES:
        pieces.append(choices.one_of(PIECES))
    text = "".join(pieces)
    options: dict[str, Any] = {"thinking": thinking, "tools": TOOLS if with_tools else None}
    whole = events_of([text], cut=cut, **options)
    assert events_of(split_at(text, places), cut=cut, **options) == whole
    assert events_of(text, cut=cut, **options) == whole
    if cut:
        return
    expected = parse(text, thinking=thinking, declared=DECLARED if with_tools else None)
    found = gather(whole)
    assert found == Answer(
        expected.reasoning or None, expected.content or None, found.calls, len(found.calls)
    )
    assert found.arguments == expected.calls


class _InProcess(Checks):
    """Stands where a `GrammarChecker` does, without processes: takes what it is given."""

    def answer(self, question: Question) -> str:
        return question.ask.grammar


class _Compiling(Checks):
    def answer(self, question: Question) -> str:
        ask = Ask(question.ask.grammar, question.ask.terminals)
        found = compiled(byte_compiler(), ask)
        if found.error is not None:
            raise BadRequest(f"{question.path} cannot be used", param="json")
        return question.ask.grammar


@functools.cache
def _reader(kind: type[_InProcess]) -> ConstraintReader:
    return ConstraintReader(cast(GrammarChecker, kind()))


@functools.cache
def _babbler() -> Babbler:
    return Babbler()


WORDS = (
    *("type", "properties", "required", "additionalProperties", "items", "enum", "const"),
    *("anyOf", "allOf", "oneOf", "not", "if", "then", "else", "contains", "uniqueItems"),
    *("propertyNames", "pattern", "dependentRequired", "dependentSchemas", "dependencies"),
    *("minItems", "maxItems", "minLength", "minContains", "maxContains", "prefixItems", "$ref"),
    *("unevaluatedProperties", "unevaluatedItems", "$defs", "json_schema", "schema", "format"),
    *("structures", "triggers", "begin", "end", "content", "tags", "elements", "value", "rules"),
    *("separator", "excludes", "max_chars", "min", "max", "at_least_one", "json", "regex"),
    *("choice", "structural_tag", "grammar", "strict", "a", "b", "x"),
)
TEXTS = (
    *("object", "array", "string", "integer", "null", "boolean", "number", "json_object"),
    *("structural_tag", "json_schema", "triggered_tags", "tag", "sequence", "or", "any_text"),
    *("const_string", "regex", "tags_with_separator", "dispatch", "repeat", "star", "token"),
    *("a", "b", "x", "<x", "<x>", "</x>", "", "#/$defs/a", "#", "(a+)+$", "[", "😀"),
)


def _json(choices: Choices, depth: int = 0) -> Any:
    """Any JSON, of words that mean something somewhere."""
    kind = choices.number(12)
    if depth > 6 or kind > 8:
        kind %= 6
    match kind:
        case 0:
            return choices.one_of(TEXTS)
        case 1:
            return choices.number(6) - 2
        case 2:
            return choices.one_of([True, False, None])
        case 3:
            return choices.one_of([0.5, 2.0, -1e300, 2**70])
        case 4 | 5 | 6:
            keys = [choices.one_of(WORDS) for _ in range(choices.number(5))]
            return {key: _json(choices, depth + 1) for key in keys}
        case _:
            return [_json(choices, depth + 1) for _ in range(choices.number(4))]


def constraint(data: bytes) -> None:
    """The first byte says which field the rest is."""
    choices = Choices(data)
    kind = choices.number(8)
    text = data[1:].decode("utf-8", "replace")
    value = {**_object(choices, 0), "x": 0} if kind == 6 and choices.number(2) else _json(choices)
    if isinstance(value, dict) and kind in (2, 4):
        value["type"] = choices.one_of(["structural_tag", "json_schema", "structural_tag", []])
    requests: list[dict[str, Any]] = [
        {"guided_json": value},
        {"guided_regex": text},
        {"response_format": value},
        {"structured_outputs": value},
        {"structural_tag": value},
        {"guided_choice": value},
        {
            "tools": [{"type": "function", "function": {**CALL, "parameters": value}}],
            "tool_choice": "required",
        },
        {
            "tools": [{"type": "function", "function": {**CALL, "strict": True}}],
            "response_format": value,
        },
    ]
    refusal: BadRequest | None = None
    try:
        msgspec.msgpack.encode(_reader(_InProcess).read(requests[kind]))
    except BadRequest as refused:
        refusal = refused
    if refusal is not None:
        assert refusal.status == 400
        assert len(refusal.message) < 600
        refusal.message.encode()


def schema(data: bytes) -> None:
    made = _object(Choices(data), 0)
    try:
        spec = _reader(_Compiling).read({"guided_json": made})
    except BadRequest:
        return
    assert spec is not None
    validator = Draft202012Validator(made)
    for seed in range(3):
        try:
            said = _babbler().answer(spec, random.Random(seed), free_tokens=8, max_tokens=400)
        except (NoEnd, GrammarError):  # it is long, or was refused on the way: no answer
            continue
        try:
            validator.validate(json.loads(said))
        except jsonschema.ValidationError as error:
            raise AssertionError(f"{said} of {json.dumps(made)}: {error.message}") from None


NAMES = ("a", "b", "kind")
SCALARS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 0, "maximum": 9},
    {"enum": ["x", "y"]},
    {"enum": ["x", "y", 1, None]},
    {"const": "x"},
    {"type": "boolean"},
    {"type": "string", "maxLength": 3},
    {"type": ["integer", "null"], "maximum": 5},
    {"type": "null"},
]


def _any(choices: Choices, depth: int) -> Any:
    kind = choices.number(12)
    if depth > 3 or kind < 8:
        return dict(SCALARS[kind % 8])
    return (_object, _array, _combined, lambda *_: choices.one_of([True, False, {}]))[kind - 8](
        choices, depth + 1
    )


def _object(choices: Choices, depth: int) -> Any:
    made: dict[str, Any] = {"type": "object"}
    names = NAMES[: choices.number(4)]
    if names:
        made["properties"] = {name: _any(choices, depth + 1) for name in names}
    made["required"] = [name for name in NAMES if choices.number(3) == 1]
    for _ in range(choices.number(4)):
        name, other = choices.one_of(NAMES), choices.one_of(NAMES)
        match choices.number(12):
            case 0:
                made["additionalProperties"] = choices.one_of([False, True, SCALARS[0]])
            case 1:
                made["dependentRequired"] = {name: [other], other: [choices.one_of(NAMES)]}
            case 2:
                made["dependentSchemas"] = {name: _demand(choices, depth)}
            case 3:
                made["propertyNames"] = choices.one_of(
                    [{"enum": ["a", "kind"]}, {"maxLength": 1}, {"pattern": "^[ab]"}, True, False]
                )
            case 4:
                made["not"] = choices.one_of([{"required": [name]}, {"type": "null"}, False, {}])
            case 5:
                made["unevaluatedProperties"] = choices.one_of([False, True, SCALARS[1]])
            case 6:
                made["allOf"] = [_condition(choices, depth) for _ in range(1 + choices.number(2))]
            case 7:
                made["minProperties"] = choices.number(3)
            case 8:
                made["maxProperties"] = choices.number(3)
            case 9:
                made["patternProperties"] = {"^[ab]$": _any(choices, depth + 1)}
            case _:
                made |= _condition(choices, depth)
    return made


def _condition(choices: Choices, depth: int) -> dict[str, Any]:
    name = choices.one_of(NAMES[::-1])
    test: dict[str, Any] = {"properties": {name: choices.one_of([*SCALARS[1:5], True])}}
    if choices.number(2):
        test["required"] = [name]
    made: dict[str, Any] = {"if": test}
    if choices.number(3):
        made["then"] = _demand(choices, depth)
    if choices.number(3) == 1:
        made["else"] = _demand(choices, depth)
    return made


def _demand(choices: Choices, depth: int) -> Any:
    name = choices.one_of(NAMES)
    match choices.number(4):
        case 0:
            return {"required": [name]}
        case 1:
            return {"properties": {name: _any(choices, depth + 1)}}
        case 2:
            return {"properties": {name: _any(choices, depth + 1)}, "required": [name]}
        case _:
            return choices.one_of([False, True])


def _array(choices: Choices, depth: int) -> Any:
    made: dict[str, Any] = {"type": "array", "maxItems": choices.number(4)}
    if choices.number(3):
        made["items"] = _any(choices, depth + 1)
    if choices.number(3) == 1:
        made["prefixItems"] = [_any(choices, depth + 1)]
    match choices.number(6):
        case 0:
            made["uniqueItems"] = True
        case 1:
            made |= {"contains": choices.one_of([{}, True, SCALARS[0]]), "minContains": 2}
        case 2:
            made["unevaluatedItems"] = choices.one_of([False, SCALARS[0]])
        case 3:
            made["minItems"] = choices.number(3)
        case _:
            pass
    return made


def _combined(choices: Choices, depth: int) -> Any:
    keyword = choices.one_of(["anyOf", "oneOf", "allOf"])
    made: dict[str, Any] = {keyword: [_any(choices, depth + 1) for _ in range(2)]}
    if choices.number(3) == 1:
        made["not"] = choices.one_of([{"type": "null"}, {"const": "x"}, {"enum": ["x", 1]}])
    return made


TARGETS: dict[str, Callable[[bytes], None]] = {
    "answer": answer,
    "constraint": constraint,
    "schema": schema,
    "stream": stream,
    "url": media_targets.url,
    "image": media_targets.image,
    "video": media_targets.video,
}
