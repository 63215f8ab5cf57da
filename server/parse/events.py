"""What the output parser reports: the parts of an answer, in the order they were written in."""

from collections.abc import Iterable
from itertools import groupby

import msgspec


class Reasoning(msgspec.Struct, frozen=True):
    text: str  # never empty


class Content(msgspec.Struct, frozen=True):
    text: str  # never empty


class CallStart(msgspec.Struct, frozen=True):
    index: int  # counts from 0
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """More JSON text of the arguments of call `index`; the pieces of a call join to one object."""

    index: int
    text: str  # never empty


class CallEnd(msgspec.Struct, frozen=True):
    """Call `index` is complete. A call that the token limit cut has none."""

    index: int


Event = Reasoning | Content | CallStart | CallArguments | CallEnd


def joined(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbours of one kind made one: what all splits of a text agree on."""
    merged: list[Event] = []
    for _, group in groupby(events, key=_stream):
        run = tuple(group)
        first = run[0]
        if isinstance(first, CallStart | CallEnd):
            merged += run
        else:
            text = "".join(
                event.text for event in run if not isinstance(event, CallStart | CallEnd)
            )
            merged.append(msgspec.structs.replace(first, text=text))
    return merged


def _stream(event: Event) -> tuple[type[Event], int]:
    """Events with equal streams continue each other."""
    return type(event), -1 if isinstance(event, Reasoning | Content) else event.index
