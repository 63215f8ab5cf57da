"""The arguments of one call, as JSON text that grows while the values come in.

A string is written as it arrives, whatever else a value may be when it is complete. So what has
been written stands, and a repeated key cannot take its first value back: its last value waits for
the end of the call and is written as one more member of that name, which JSON readers take for the
first (RFC 8259, section 4). Where the repetition says the same, nothing is written; where the
token limit cuts the call, the repetition is missing.
"""

from server.parse.convert import escaped, may_be_null, quoted, to_json
from server.parse.schema import STRING, Parameters


class Arguments:
    """Every method returns the JSON text that its news adds, which may be empty."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._values: dict[str, str] = {}  # as the model wrote them
        self._repeated: dict[str, str] = {}  # the last value of a key that was there before
        self._key = ""
        self._types = STRING
        self._pieces: list[str] = []  # of the value in progress
        self._streams = False

    def open(self) -> str:
        return "{"

    def start(self, key: str) -> str:
        self._key = key
        self._types = self._parameters.types(key)
        self._pieces = []
        self._streams = self._types.is_string and key not in self._values
        return self._member(key) + '"' if self._streams else ""

    def add(self, text: str) -> str:
        self._pieces.append(text)
        if self._streams:
            return escaped(text)
        if self._types.is_nullable_string and self._key not in self._values:
            so_far = "".join(self._pieces)  # short: this is over once it cannot be null
            if not may_be_null(so_far):
                self._streams = True
                return f'{self._member(self._key)}"{escaped(so_far)}'
        return ""

    def end(self) -> str:
        """The value in progress is complete."""
        value = "".join(self._pieces)
        if self._key in self._values:
            self._repeated[self._key] = value
            return ""
        json = '"' if self._streams else self._member(self._key) + to_json(value, self._types)
        self._values[self._key] = value
        return json

    def close(self) -> str:
        changed = {k: v for k, v in self._repeated.items() if v != self._values[k]}
        members = (
            self._member(k) + to_json(v, self._parameters.types(k)) for k, v in changed.items()
        )
        return "".join(members) + "}"

    def _member(self, key: str) -> str:
        return f"{', ' if self._values else ''}{quoted(key)}: "
