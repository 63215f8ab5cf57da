"""Whole answers from the parser, each read in every way it can be split."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from server.parse import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    OutputParser,
    Reasoning,
    joined,
)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


STRING = {"type": "string"}
INTEGER = {"type": "integer"}
TOOLS = [
    tool("write", path=STRING, text=STRING, mode=INTEGER),
    tool("look"),
]


@dataclass
class Answer:
    reasoning: str | None = None
    content: str | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)  # name, arguments as JSON text
    num_finished: int = 0

    @property
    def arguments(self) -> list[tuple[str, dict[str, Any]]]:
        return [(name, strict(text)) for name, text in self.calls]


def strict(text: str) -> dict[str, Any]:
    """The object that `text` is, which must be JSON to the letter."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {text!r}")

    text.encode()  # no unpaired surrogates
    value = json.loads(text, parse_constant=refuse)
    assert isinstance(value, dict)
    return value


def gather(events: Iterable[Event]) -> Answer:
    """What a client puts together; asserts that the order of events makes sense to it."""
    answer = Answer()
    is_open = False
    for event in events:
        match event:
            case Reasoning(text):
                assert text
                assert not answer.calls
                assert answer.content is None
                answer.reasoning = (answer.reasoning or "") + text
            case Content(text):
                assert text
                assert not is_open
                answer.content = (answer.content or "") + text
            case CallStart(index, name):
                assert not is_open
                assert index == len(answer.calls)
                is_open = True
                answer.calls.append((name, ""))
            case CallArguments(index, text):
                assert text
                assert is_open
                assert index == len(answer.calls) - 1
                name, arguments = answer.calls[index]
                answer.calls[index] = name, arguments + text
            case CallEnd(index):
                assert is_open
                assert index == len(answer.calls) - 1
                is_open = False
                answer.num_finished += 1
    return answer


def events_of(pieces: Iterable[str], *, cut: bool = False, **options: Any) -> list[Event]:
    """The joined events of a text that comes in `pieces`."""
    parser = OutputParser(**({"thinking": False, "tools": TOOLS} | options))
    events = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.finish(cut=cut)
    answer = gather(events)
    assert parser.num_calls == len(answer.calls)
    assert parser.has_finished_call == (answer.num_finished > 0)
    return joined(events)


def read(text: str, **options: Any) -> Answer:
    """The answer in `text`: the same whole, character by character and split at every position."""
    whole = events_of([text], **options)
    assert events_of(text, **options) == whole
    for i in range(1, len(text)):
        assert events_of([text[:i], text[i:]], **options) == whole, (text[:i], text[i:])
    return gather(whole)


def call(name: str, *parameters: tuple[str, str]) -> str:
    """A call as the template writes it."""
    inside = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in parameters)
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


def split_at(text: str, places: Sequence[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]
