"""Whether a Messages request marks something with `cache_control`.

The prefix cache needs no marks: it keeps what is likely to come again. A request with marks is told
in its usage what was written to the cache, as Anthropic's API does.
"""

from collections.abc import Iterator
from typing import Any, cast


def marks_cache(request: dict[str, Any]) -> bool:
    """`request` is a valid one, as decoded. Marks stand at the top, on tools and on blocks."""
    return any(part.get("cache_control") is not None for part in _markable(request))


def _markable(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield request
    yield from _objects(request.get("tools"))
    yield from _objects(request.get("system"))
    for turn in _objects(request.get("messages")):
        for block in _objects(turn.get("content")):
            yield block
            yield from _objects(block.get("content"))  # of a tool's result


def _objects(value: Any) -> list[dict[str, Any]]:
    items = cast(list[Any], value) if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)]
