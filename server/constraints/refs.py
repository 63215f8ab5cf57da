"""References inside a JSON schema: where a pointer such as `#/$defs/Name` leads."""

from typing import Any, cast
from urllib.parse import unquote

Schema = dict[str, Any]

_MAX_STEPS = 64


def resolved(root: Any, ref: str) -> Any:
    """What a local reference points at. Raises KeyError if it is none, or dangles."""
    head, *steps = ref.split("/")
    if head != "#":
        raise KeyError(ref)
    node = root
    for step in steps:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict):
            node = cast(Schema, node)[name]
        elif isinstance(node, list) and name.isascii() and name.isdecimal():
            items = cast(list[Any], node)
            if int(name[:6]) >= len(items):
                raise KeyError(ref)
            node = items[int(name[:6])]
        else:
            raise KeyError(ref)
    return node


def followed(root: Any, node: Any) -> Schema:
    """The schema at the end of a chain of references; an empty one if the chain leads nowhere."""
    for _ in range(_MAX_STEPS):
        if not isinstance(node, dict):
            return {}
        schema = cast(Schema, node)
        if not isinstance(ref := schema.get("$ref"), str):
            return schema
        try:
            node = resolved(root, ref)
        except KeyError:
            return {}
    return {}
