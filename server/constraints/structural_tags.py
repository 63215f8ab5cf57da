"""Structural tags: free text in which some strings begin what has to have a shape.

The notation is xgrammar's, as vLLM and SGLang take it in `response_format`: the newer
`{"format": {...}}`, and the older `{"structures": [...], "triggers": [...]}`, which is
`triggered_tags` of JSON. A format becomes rules and terminals of a grammar:

- what is regular (constants, expressions, free text) is one terminal, however it is put together,
  for two terminals side by side would let the lexer choose where one ends;
- free text ends where the first of the strings that may follow it is complete: a trigger, or the
  end of a tag around it. Where nothing may follow it runs to the end of the answer;
- `at_least_one` begins with a tag at once, without text before it.

Formats that speak of token ids are refused, as are EBNF grammars inside (a grammar alone is
`structured_outputs.grammar`), and JSON in another style than JSON. `any_order` is met by the order
of the schema, which is one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import msgspec

from server.constraints.effort import Effort, param_of
from server.constraints.grammar_text import (
    GrammarText,
    Part,
    constant,
    one_of,
    quoted,
    up_to,
    without,
)
from server.constraints.regex import UnsupportedRegex, whole
from server.constraints.schema import normalized
from server.constraints.strings import ANY_TEXT
from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS, Limits

MAX_STRINGS = 128  # triggers, ends or excludes of one format
FORMATS = (
    *("const_string", "json_schema", "regex", "any_text", "sequence", "or", "tag"),
    *("triggered_tags", "tags_with_separator", "dispatch"),
    *("optional", "plus", "star", "repeat"),
)
_REPEATS = {"optional": "?", "plus": "+", "star": "*"}
_REFUSED = {"exclude_token", "any_tokens", "token", "token_triggered_tags", "token_dispatch"}

Format = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Place:
    path: str
    depth: int = 0

    def __truediv__(self, step: str | int) -> "_Place":
        return _Place(f"{self.path}.{step}", self.depth + 1)


class StructuralGrammar:
    """The lines of a grammar whose rule `content` is what a structural tag describes."""

    def __init__(
        self, tag: Format, path: str, *, whitespace: Format, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        """`whitespace` is what the grammar engine is told of the blanks in JSON."""
        self._whitespace = whitespace
        self._limits = limits
        self._effort = Effort(limits)
        self._path = path
        self._text = GrammarText("tag", path)
        self.schemas: dict[str, str] = {}  # by path, as JSON: what JSON in it has to fit
        place = _Place(path)
        if len(msgspec.json.encode(tag)) > limits.max_schema_bytes:
            self._refuse(place, f"is larger than {limits.max_schema_bytes} bytes")
        if tag.get("format") is not None:
            part = self._part(tag["format"], place / "format", ())
        else:
            part = self._triggered(tag, _legacy_tags(tag), place, (), "structures")
        self._text.add(f"content: {self._text.in_rule(part)}")

    @property
    def lines(self) -> str:
        return self._text.text

    def _part(self, node: Any, place: _Place, ends: tuple[str, ...]) -> Part:
        """What `node` describes, and behind it one of `ends`, if there are any."""
        most = self._limits.max_schema_depth
        if place.depth > 2 * most:
            self._refuse(_Place(self._path), f"is nested deeper than {most} formats")
        fields = self._object(node, place)
        kind = fields.get("type")
        if not isinstance(kind, str):
            self._refuse(place / "type", f"must be one of {', '.join(FORMATS)}")
        match kind:
            case "any_text":
                return self._free_text(fields, place, ends)
            case "sequence":
                *first, last = self._formats(fields, "elements", place)
                parts = [self._part(element, at, ()) for element, at in first]
                return self._text.joined([*parts, self._part(last[0], last[1], ends)])
            case "or":
                return self._text.either(
                    [self._part(f, at, ends) for f, at in self._formats(fields, "elements", place)]
                )
            case "triggered_tags":
                tags = [f for f, _ in self._formats(fields, "tags", place)]
                return self._triggered(fields, tags, place, ends, "tags")
            case "dispatch":
                return self._dispatched(fields, place, ends)
            case _:
                return self._text.joined([self._limited(kind, fields, place), one_of(ends)])

    def _limited(self, kind: str, fields: Format, place: _Place) -> Part:
        """A format that says itself where it ends."""
        match kind:
            case "const_string":
                return constant(self._string(fields, "value", place))
            case "json_schema":
                return self._json(fields, place)
            case "regex":
                return self._regex(fields, place)
            case "tag":
                return self._tag(fields, place, begun="")
            case "tags_with_separator":
                return self._separated(fields, place)
            case "optional" | "plus" | "star" | "repeat":
                times = _REPEATS[kind] if kind in _REPEATS else self._times(fields, place)
                part = self._part(fields.get("content"), place / "content", ())
                return Part(f"({self._text.nested(part)}){times}", part.regular)
            case _ if kind in _REFUSED:
                self._refuse(place / "type", f"{kind} is not supported: it speaks of tokens")
            case _:
                self._refuse(place / "type", f"must be one of {', '.join(FORMATS)}")

    def _free_text(self, fields: Format, place: _Place, ends: tuple[str, ...]) -> Part:
        if fields.get("max_tokens") is not None:
            self._refuse(place / "max_tokens", "is not supported: use max_chars")
        text = ANY_TEXT
        most = fields.get("max_chars")
        if most is not None:
            limit = self._limits.max_repeat
            if type(most) is not int or not 0 <= most <= limit:
                self._refuse(place / "max_chars", f"must be an integer from 0 to {limit}")
            text = f"/(?s:.{{0,{most}}})/"
        excluded = self._strings(fields, "excludes", place)
        if not ends or (most is not None and not any(ends)):
            return Part(without(text, excluded), regular=True)
        stops = self._stops((), ends, place)
        return Part(up_to(stops, stops, excluded, text), regular=True)

    def _json(self, fields: Format, place: _Place) -> Part:
        if fields.get("style", "json") != "json":
            self._refuse(place / "style", 'must be "json"')
        if fields.get("excludes"):
            self._refuse(place / "excludes", "is not supported for JSON")
        if fields.get("json_schema") is None:
            self._refuse(place / "json_schema", "is required")
        whitespace = self._whitespace
        if fields.get("max_whitespace_cnt") is not None:
            whitespace = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
        at = place / "json_schema"
        normal = normalized(
            fields["json_schema"], path=at.path, limits=self._limits, effort=self._effort
        )
        schema = {"x-guidance": whitespace, **normal}
        self.schemas[at.path] = msgspec.json.encode(fields["json_schema"]).decode()
        return Part(self._text.rule(f"%json {msgspec.json.encode(schema).decode()}"), regular=False)

    def _regex(self, fields: Format, place: _Place) -> Part:
        try:
            return Part(
                f"/{whole(self._string(fields, 'pattern', place), self._limits.max_repeat)}/",
                regular=True,
            )
        except UnsupportedRegex as error:
            self._refuse(place / "pattern", f"cannot be used: {error}")

    def _tag(self, node: Any, place: _Place, *, begun: str) -> Part:
        """A tag, `begun` of whose begin is there already."""
        fields = self._object(node, place)
        if fields.get("type", "tag") != "tag":
            self._refuse(place / "type", 'must be "tag"')
        begin = self._string(fields, "begin", place).removeprefix(begun)
        end = fields.get("end")
        ends = tuple(self._strings({"end": [end] if isinstance(end, str) else end}, "end", place))
        if not ends:
            self._refuse(place / "end", "must be a string or a list of strings")
        content = self._part(fields.get("content"), place / "content", ends)
        return self._text.joined([constant(begin), content])

    def _separated(self, fields: Format, place: _Place) -> Part:
        separator = constant(self._string(fields, "separator", place))
        tags = [self._tag(f, at, begun="") for f, at in self._formats(fields, "tags", place)]
        tag = self._text.either(tags)
        part = tag
        if not self._flag(fields, "stop_after_first", place):
            more = self._text.joined([separator, tag])
            part = self._text.joined([tag, Part(f"({self._text.nested(more)})*", more.regular)])
        if self._flag(fields, "at_least_one", place):
            return part
        return Part(f"({self._text.nested(part)})?", part.regular)

    def _triggered(
        self,
        fields: Format,
        tags: Sequence[Any],
        place: _Place,
        ends: tuple[str, ...],
        name: str,
    ) -> Part:
        triggers = self._strings(fields, "triggers", place)
        if not triggers or not all(triggers):
            self._refuse(place / "triggers", "must be a list of strings that are not empty")
        if not tags:
            self._refuse(place / name, "must not be empty")
        bodies: dict[str, list[Part]] = {trigger: [] for trigger in triggers}
        for index, tag in enumerate(tags):
            at = place / name / index
            begin = self._string(self._object(tag, at), "begin", at)
            matching = [trigger for trigger in triggers if begin.startswith(trigger)]
            if len(matching) != 1:
                self._refuse(at / "begin", "must begin with exactly one of the triggers")
            bodies[matching[0]].append(self._tag(tag, at, begun=matching[0]))
        return self._loop(
            {trigger: self._text.either(parts) for trigger, parts in bodies.items() if parts},
            triggers,
            fields,
            place,
            ends,
            loops=not self._flag(fields, "stop_after_first", place),
            at_least_one=self._flag(fields, "at_least_one", place),
        )

    def _dispatched(self, fields: Format, place: _Place, ends: tuple[str, ...]) -> Part:
        listed = fields.get("rules")
        if not isinstance(listed, list) or not listed:
            self._refuse(place / "rules", "must be a list of a string and a format each")
        bodies: dict[str, Part] = {}
        for index, rule in enumerate(cast(list[Any], listed)):
            at = place / "rules" / index
            if not isinstance(rule, list) or len(cast(list[Any], rule)) != 2:
                self._refuse(at, "must be a string and a format")
            pattern, node = cast(list[Any], rule)
            if not isinstance(pattern, str) or not pattern or pattern in bodies:
                self._refuse(at / 0, "must be a string of its own that is not empty")
            bodies[pattern] = self._part(node, at / 1, ())
        loops = fields.get("loop") is None or self._flag(fields, "loop", place)
        return self._loop(
            bodies, list(bodies), fields, place, ends, loops=loops, at_least_one=False
        )

    def _loop(
        self,
        bodies: dict[str, Part],
        triggers: list[str],
        fields: Format,
        place: _Place,
        ends: tuple[str, ...],
        *,
        loops: bool,
        at_least_one: bool,
    ) -> Part:
        """Free text in which a trigger is followed by its body, up to one of `ends` if any."""
        excluded = self._strings(fields, "excludes", place)
        if not all(excluded):
            self._refuse(place / "excludes", "must not hold an empty string")
        stops = self._stops(tuple(triggers), ends, place)
        text_stops = tuple(stop for stop in stops if stop not in triggers)
        triggered: list[str] = []
        first: list[str] = []
        for trigger, body in bodies.items():
            opener = self._text.lazy(up_to((trigger,), stops, excluded, ANY_TEXT))
            triggered.append(f"{opener} {self._text.in_rule(body)}")
            first.append(f"{quoted(trigger)} {self._text.in_rule(body)}")
        one = self._text.rule(" | ".join(triggered))
        if ends:
            tail = self._text.lazy(up_to(text_stops, stops, excluded, ANY_TEXT))
            after = self._text.in_rule(one_of(ends))
        else:
            tail = self._text.terminal(without(ANY_TEXT, [*stops, *excluded]))
            after = ""
        looped = f"{one}* {tail}" if loops else f"({one} {after} | {tail})"
        if not at_least_one:
            return Part(self._text.rule(looped), regular=False)
        begun = self._text.rule(" | ".join(first))
        return Part(self._text.rule(f"{begun} {looped if loops else after}"), regular=False)

    def _stops(
        self, triggers: tuple[str, ...], ends: tuple[str, ...], place: _Place
    ) -> tuple[str, ...]:
        """The strings that end free text: none may be hidden in another."""
        stops = tuple(dict.fromkeys((*triggers, *(end for end in ends if end))))
        if ends and not any(ends):
            self._refuse(place, "has no end: the tag around it ends with an empty string")
        for stop in stops:
            if any(stop in other for other in stops if other != stop):
                self._refuse(place, "has triggers or ends of which one contains another")
        if len(stops) < len(set(triggers)) + len({end for end in ends if end}):
            self._refuse(place, "has a trigger that is also the end of a tag around it")
        return stops

    def _times(self, fields: Format, place: _Place) -> str:
        least, most = fields.get("min"), fields.get("max")
        for name, value, lowest in (("min", least, 0), ("max", most, -1)):
            limit = self._limits.max_repeat
            if type(value) is not int or not lowest <= value <= limit:
                self._refuse(place / name, f"must be an integer from {lowest} to {limit}")
        assert type(least) is int
        assert type(most) is int
        if 0 <= most < least:
            self._refuse(place / "max", "must be at least min, or -1")
        return f"{{{least},{'' if most < 0 else most}}}"

    def _object(self, value: Any, place: _Place) -> Format:
        if not isinstance(value, dict):
            self._refuse(place, "must be an object")
        return cast(Format, value)

    def _formats(self, fields: Format, name: str, place: _Place) -> list[tuple[Any, _Place]]:
        listed = fields.get(name)
        if not isinstance(listed, list) or not listed:
            self._refuse(place / name, "must be a list that is not empty")
        at = place / name
        return [(node, at / index) for index, node in enumerate(cast(list[Any], listed))]

    def _string(self, fields: Format, name: str, place: _Place) -> str:
        value = fields.get(name)
        if not isinstance(value, str):
            self._refuse(place / name, "must be a string")
        return value

    def _strings(self, fields: Format, name: str, place: _Place) -> list[str]:
        value = fields.get(name)
        listed = cast(list[Any], value) if isinstance(value, list) else None
        if value is not None and (
            listed is None or not all(isinstance(text, str) for text in listed)
        ):
            self._refuse(place / name, "must be a list of strings")
        found = list(dict.fromkeys(cast(list[str], listed or [])))
        if len(found) > MAX_STRINGS:
            self._refuse(place / name, f"must have at most {MAX_STRINGS} strings")
        return found

    def _flag(self, fields: Format, name: str, place: _Place) -> bool:
        value = fields.get(name)
        if not isinstance(value, bool | None):
            self._refuse(place / name, "must be true or false")
        return bool(value)

    def _refuse(self, place: _Place, rule: str) -> NoReturn:
        raise BadRequest(f"{place.path} {rule}", param=param_of(place.path))


def _legacy_tags(tag: Format) -> list[Any]:
    """`structures` as tags; what is no list of objects is told by the one who reads them."""
    listed = tag.get("structures")
    if not isinstance(listed, list):
        return []
    return [
        {
            **cast(Format, item),
            "type": "tag",
            "content": {
                "type": "json_schema",
                "json_schema": cast(Format, item).get("schema") or {},
            },
        }
        if isinstance(item, dict)
        else item
        for item in cast(list[Any], listed)
    ]
