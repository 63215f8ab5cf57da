"""The text of an answer to its parts: reasoning, content, tool calls. Knows no token ids.

lexer      text pieces -> tags and the text between them
machine    tags and text -> events: the states of an answer
call       the inside of one call: where values begin and end
arguments  values -> the JSON text of the arguments
schema     what types a tool's schema allows      convert  text of a value -> JSON of such a type
"""

from server.parse.events import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    Reasoning,
    joined,
)
from server.parse.machine import OutputParser

__all__ = [
    "CallArguments",
    "CallEnd",
    "CallStart",
    "Content",
    "Event",
    "OutputParser",
    "Reasoning",
    "joined",
]
