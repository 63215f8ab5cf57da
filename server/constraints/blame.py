"""Which part of a JSON schema keeps the whole from being served, where the engine does not say.

The part is the smallest one without which the rest would compile: subschemas are left out one by
one, from the outside in. That takes a few compilations, so it is done for quick schemas only.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("prefixItems", "anyOf", "oneOf", "allOf")
_SINGLE = ("items", "additionalProperties", "then", "else")

Steps = tuple[str | int, ...]


def faulty_part(schema: Any, compiles: Callable[[Any], bool], *, limit_s: float) -> Steps:
    """The steps to the part, none if it is the whole; what is known when the time is up."""
    deadline = time.monotonic() + limit_s
    found: Steps = ()
    while True:
        inner = None
        for steps in _parts(_at(schema, found)):
            if time.monotonic() > deadline:
                return found
            if compiles(_without(schema, (*found, *steps))):
                inner = steps
                break
        if inner is None:
            return found
        found = (*found, *inner)


def _parts(node: Any) -> Iterator[Steps]:
    """The steps to each schema right inside this one."""
    if not isinstance(node, dict):
        return
    for keyword, value in cast(dict[str, Any], node).items():
        if keyword in _NAMED and isinstance(value, dict):
            yield from ((keyword, name) for name in cast(dict[str, Any], value))
        elif keyword in (*_LISTED, "items") and isinstance(value, list):
            yield from ((keyword, index) for index in range(len(cast(list[Any], value))))
        elif keyword in _SINGLE and isinstance(value, dict):
            yield (keyword,)


def _at(schema: Any, steps: Steps) -> Any:
    for step in steps:
        schema = schema[step]
    return schema


def _without(schema: Any, steps: Steps) -> Any:
    """A copy in which the schema at `steps` allows everything."""
    if not steps:
        return True
    step, *rest = steps
    copy = schema.copy()
    copy[step] = _without(copy[step], tuple(rest))
    return copy
