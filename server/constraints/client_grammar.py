"""A client's grammar, Lark or with `root ::=`, as the engine gets it, and the lines of the two.

The second notation is turned into the first by the engine's own converter, rule by rule in their
order; so a line of the result is told of by the line on which its rule begins.
"""

import re

from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark, is_lark_syntax

from server.constraints.lark import UnusableGrammar, rewritten_lark
from server.constraints.schema import WHITESPACE
from server.limits import DEFAULT_LIMITS, Limits

# The engine looks ahead for text that is forced, without end where a client's grammar has none
# (`T: /a+/` before what matches nothing). The grammars that we write all have an end.
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'

_RULE = re.compile(r"^[ \t]*([\w-]+)\s*::=", re.MULTILINE)
_CONVERTED_RULE = re.compile(r"^[\w]+:", re.MULTILINE)
_DANGLING = re.compile(r"Rule '([\w-]*)' not found")


class ClientGrammar:
    def __init__(self, text: str, limits: Limits = DEFAULT_LIMITS) -> None:
        """Raises `UnusableGrammar`, or RecursionError for one that is nested too deeply."""
        self._text = text
        self._converted: str | None = None
        if not is_lark_syntax(text):
            self._converted = _converted(text)
        try:
            lark = rewritten_lark(self._converted or text, whitespace=WHITESPACE, limits=limits)
            self.lark = lark + _NO_FORCING
        except UnusableGrammar as error:
            raise UnusableGrammar(self.line_of(error.line), str(error)) from None

    def line_of(self, line: int) -> int:
        """The client's line for one of `lark`."""
        if self._converted is None:
            return min(line, self._text.count("\n") + 1)
        before = "\n".join(self._converted.split("\n")[:line])
        index = max(0, len(_CONVERTED_RULE.findall(before)) - 1)
        begins = [match.start() for match in _RULE.finditer(self._text)]
        return self._text.count("\n", 0, begins[min(index, len(begins) - 1)]) + 1 if begins else 1


def _converted(text: str) -> str:
    """Raises `UnusableGrammar`, or RecursionError."""
    names: set[str] = set()
    for rule in _RULE.finditer(text):
        if rule[1] in names:  # the converter would forget the first
            line = text.count("\n", 0, rule.start(1)) + 1
            raise UnusableGrammar(line, "it has a rule of that name already")
        names.add(rule[1])
    try:
        return gbnf_to_lark(text)
    except GbnfToLarkError as error:
        line = text.count("\n", 0, error.pos.pos) + 1
        raise UnusableGrammar(line, "it is malformed") from None
    except IndexError:
        raise UnusableGrammar(text.count("\n") + 1, "it is malformed: it ends too early") from None
    except (RecursionError, MemoryError):
        raise
    except Exception as error:  # the converter has no other kind for what is wrong with rules
        dangling = _DANGLING.fullmatch(str(error))
        if dangling is not None:
            used = re.search(rf"(?<![\w-]){re.escape(dangling[1])}(?![\w-])", text)
            line = text.count("\n", 0, used.start() if used else 0) + 1
            raise UnusableGrammar(
                line, "it is malformed: it names a rule that is not there"
            ) from None
        twice = "exists" in str(error)
        why = "two rules have nearly the same name" if twice else "no rule is named root"
        raise UnusableGrammar(1, f"it begins, and {why}") from None
