"""The text of a grammar as it is put together: rules and terminals in the engine's notation.

A part is an expression that is regular, and then one terminal however many parts it is joined from,
or one of a rule. Regular neighbours become one terminal, because between two the lexer would choose
where the first ends. An empty expression is the empty text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from server.constraints.effort import param_of
from server.constraints.regex import literal
from server.errors import BadRequest

MAX_GRAMMAR_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """An expression of the notation: of a terminal if it is `regular`, else of a rule."""

    expression: str
    regular: bool


class GrammarText:
    """Lines of a grammar. Names in it begin with `prefix`."""

    def __init__(self, prefix: str, path: str) -> None:
        """`path` names the part of the request that a grammar too large is blamed on."""
        self._prefix = prefix
        self._path = path
        self._lines: list[str] = []
        self._num_chars = 0
        self._terminals: dict[str, str] = {}  # expression -> name

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def joined(self, parts: list[Part]) -> Part:
        """One after the other; regular neighbours become one terminal."""
        said = [part for part in parts if part.expression]
        if all(part.regular for part in said):
            return Part(" ".join(f"({part.expression})" for part in said), regular=True)
        runs: list[Part] = []
        for part in said:
            if runs and runs[-1].regular and part.regular:
                runs[-1] = Part(f"({runs[-1].expression}) ({part.expression})", regular=True)
            else:
                runs.append(part)
        return Part(" ".join(map(self.in_rule, runs)), regular=False)

    def either(self, parts: list[Part]) -> Part:
        if len(parts) == 1:
            return parts[0]
        regular = all(part.regular for part in parts)
        if regular:
            said = [part.expression for part in parts if part.expression]
            expression = f"({' | '.join(f'({one})' for one in said)})"
            return Part(expression if len(said) == len(parts) else f"{expression}?", regular=True)
        return Part(self.rule(" | ".join(map(self.in_rule, parts))), regular=False)

    def nested(self, part: Part) -> str:
        return part.expression if part.regular else self.in_rule(part)

    def in_rule(self, part: Part) -> str:
        if not part.regular:
            return part.expression
        return self.terminal(part.expression) if part.expression else '""'

    def terminal(self, expression: str) -> str:
        name = self._terminals.get(expression)
        if name is None:
            name = f"{self._prefix.upper()}_TEXT_{len(self._terminals)}"
            self._terminals[expression] = name
            self.add(f"{name}: {expression}")
        return name

    def lazy(self, expression: str) -> str:
        """A rule that takes as little text as possible."""
        return self.rule(self.terminal(expression), mark="[lazy]")

    def rule(self, expression: str, *, mark: str = "") -> str:
        name = f"{self._prefix}_{len(self._lines)}"
        self.add(f"{name}{mark}: {expression}")
        return name

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._num_chars += len(line)
        if self._num_chars > MAX_GRAMMAR_CHARS:
            raise BadRequest(
                f"{self._path} makes a grammar that is too large", param=param_of(self._path)
            )


def constant(text: str) -> Part:
    return Part(quoted(text) if text else "", regular=True)


def one_of(texts: tuple[str, ...]) -> Part:
    """Any of these strings, one of which may be empty; none at all is nothing."""
    said = [quoted(text) for text in dict.fromkeys(texts) if text]
    if not said:
        return Part("", regular=True)
    return Part(f"({' | '.join(said)}){'?' if '' in texts else ''}", regular=True)


def up_to(
    stops: tuple[str, ...], all_stops: tuple[str, ...], excluded: list[str], text: str
) -> str:
    """A terminal: `text` and one of `stops`, the first of `all_stops` that is complete."""
    ends = f"({' | '.join(map(quoted, stops))})"
    earlier = f"/(?s:.*)(?:{'|'.join(map(literal, all_stops))})(?s:.+)/"
    bans = "".join(f" & ~(/(?s:.*){literal(one)}(?s:.*)/ {ends})" for one in excluded if one)
    return f"({text} {ends}) & ~{earlier}{bans}"


def without(text: str, banned: Sequence[str]) -> str:
    return text + "".join(f" & ~/(?s:.*){literal(one)}(?s:.*)/" for one in banned if one)


def quoted(text: str) -> str:
    """A string of the grammar notation."""
    return msgspec.json.encode(text).decode()
