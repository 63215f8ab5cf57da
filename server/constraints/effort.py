"""How much work reading the schemas of one request may be.

A schema of a few kilobytes can refer to its parts in so many ways that reading it would take for
ever. So steps are counted, over all schemas of the request: about one for each subschema, each time
it is come by. Paths are told as they are to clients, for whom they may hold names of theirs.
"""

from server.errors import BadRequest
from server.limits import DEFAULT_LIMITS, Limits

MAX_PATH_CHARS = 150


class Effort:
    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._most = limits.max_schema_steps
        self._left = float(self._most)

    def spend(self, steps: float, path: str) -> None:
        """Raises BadRequest, which names the part at `path`, when all is spent."""
        self._left -= steps
        if self._left < 0:
            raise BadRequest(
                f"{shortened(path)} is too complex: the schemas of a request may take"
                f" {self._most} steps to read (max_schema_steps)",
                param=param_of(path),
            )


def param_of(path: str) -> str:
    """The request field that a path begins with."""
    return path.split(".", 1)[0]


def shortened(path: str) -> str:
    """A path as it is told: it may hold names of the client's."""
    return path if len(path) <= MAX_PATH_CHARS else f"{path[:40]}...{path[-MAX_PATH_CHARS + 43 :]}"
