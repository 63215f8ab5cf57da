"""A client's grammar in Lark's notation, read token by token and written anew.

What the engine gets is what was understood here: nothing in it can be one thing to us and another
to the engine. On the way

- the schemas of `%json` are brought into the form of every other schema, within the same limits;
- repetitions of rules, and those inside regular expressions, are bounded as they are elsewhere;
- options that change what texts are (`%llguidance`) are refused, and so are other grammars (`@it`).

Comments are dropped and lines keep their numbers, so that what the engine says of a line is true
of the client's.
"""

import json
import re
from typing import Any, NoReturn, cast

from server.constraints.calls import json_text
from server.constraints.schema import normalized
from server.errors import BadRequest
from server.json_body import decode_object
from server.limits import DEFAULT_LIMITS, Limits

OPTIONS = frozenset(("no_forcing", "allow_initial_skip"))

# The engine's tokens. Possessive throughout: no backtracking.
_TOKEN = re.compile(
    r"""
      (?P<blank> [ \t]++ | (?:\#|//)[^\n]*+ )
    | (?P<newline> (?:\r?\n)++ )
    | (?P<embedded> %(?:json|regex|llguidance)(?![a-z]) )
    | (?P<keyword> %(?:ignore|import|override|declare|lark|if)(?![a-z]) )
    | (?P<hex> 0[xX][0-9a-fA-F]++ )
    | (?P<number> [+-]?[0-9]++(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)? )
    | (?P<text> "(?:\\(?:["\\/bfnrt]|u[a-fA-F0-9]{4}|x[a-fA-F0-9]{2})
                   |[^"\\\x00-\x1f\x7f])*+"i? )
    | (?P<regex> /(?:\\[^\n]|[^/\\])++/[imslux]*+ )
    | (?P<control> <[^<>\s]++> )
    | (?P<name> !?[_?]?[a-z][_a-z0-9\-]*+ | _?[A-Z][_A-Z0-9\-]*+ )
    | (?P<grammar> @[a-zA-Z0-9_\-]++ )
    | (?P<sign> -> | :: | \.\. | [:,.()\[\]{}~|&=_+*?] )
    """,
    re.VERBOSE,
)
# What may stand in an expression where braces are no repetition, and what a repetition may be:
# blanks, and comments where an `x` flag allows them, are taken for parts of it.
_IN_REGEX = re.compile(
    r"""
      \\[xuUpP]\{[^{}]*+\}
    | \\.
    | \{ (?P<bounds> [^{}]*+ ) \}
    | [^\\{]++
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_DIGITS = re.compile(r"[0-9]++")


class UnusableGrammar(ValueError):
    """The message says what is wrong in `line`, in words of ours."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def rewritten_lark(
    text: str, *, whitespace: dict[str, Any], limits: Limits = DEFAULT_LIMITS
) -> str:
    """The grammar for the engine; `whitespace` is what it is told of the blanks in JSON.

    Raises `UnusableGrammar`.
    """
    return _Rewriter(text, whitespace, limits).run()


class _Rewriter:
    def __init__(self, text: str, whitespace: dict[str, Any], limits: Limits) -> None:
        self._text = text
        self._whitespace = whitespace
        self._limits = limits
        self._at = 0
        self._line = 1
        self._written: list[str] = []
        self._last = ""  # the token before
        self._open: list[str] = []  # brackets, and `%lark` for its brace

    def run(self) -> str:
        while self._at < len(self._text):
            match = _TOKEN.match(self._text, self._at)
            if match is None:
                self._refuse("it is malformed")
            self._at = match.end()
            kind, token = match.lastgroup, match[0]
            if kind == "blank":
                continue
            match kind:
                case "newline":
                    self._written.append("\n" * token.count("\n"))
                case "embedded":
                    self._written.append(self._embedded(token))
                case "grammar":
                    self._refuse("it refers to another grammar, and there is none")
                case "number" | "hex":
                    self._check_bound(token)
                    self._written.append(token)
                case "regex":
                    self._check_regex(token)
                    self._written.append(token)
                case "sign":
                    self._note_bracket(token)
                    self._written.append(token)
                case _:
                    self._written.append(token)
            self._last = token
            self._line += token.count("\n")
        return " ".join(self._written)

    def _note_bracket(self, sign: str) -> None:
        if sign in ("{", "(", "["):
            self._open.append(self._last if self._last == "%lark" else sign)
        elif sign in ("}", ")", "]") and self._open:
            self._open.pop()

    def _check_bound(self, number: str) -> None:
        in_braces = bool(self._open) and self._open[-1] == "{"
        is_bound = self._last in ("{", "~", "..") or (in_braces and self._last == ",")
        most = self._limits.max_repeat
        if is_bound and (len(number) > 9 or not number.isdecimal() or int(number) > most):
            self._refuse(f"it has a repetition that is not bounded by at most {most}")

    def _check_regex(self, regex: str) -> None:
        end = regex.rindex("/")
        at = 1
        while at < end:
            match = _IN_REGEX.match(regex, at, end)
            assert match is not None, "the last branch takes any character"
            if any(
                len(digits) > 9 or int(digits) > self._limits.max_repeat
                for digits in _DIGITS.findall(match["bounds"] or "")
            ):
                self._refuse(
                    f"it has a repetition bounded by more than {self._limits.max_repeat}"
                    f" at character {at} of a regular expression"
                )
            at = match.end()

    def _embedded(self, keyword: str) -> str:
        """The JSON behind a keyword, checked; it takes as many lines as before."""
        begin = self._at
        try:
            _, self._at = json.JSONDecoder().raw_decode(self._text, self._past_blanks(begin))
        except (ValueError, RecursionError):
            self._refuse(f"it has a {keyword} that is not followed by JSON")
        said = self._text[begin : self._at]
        try:
            value: dict[str, Any] = decode_object(said.encode(), what=keyword, param=None)
            if keyword == "%json":
                schema = normalized(value, path=keyword, limits=self._limits)
                value = {"x-guidance": self._whitespace, **schema}
        except BadRequest as refusal:
            self._refuse(f"it has a schema that cannot be used: {refusal.message}")
        if keyword == "%llguidance" and not set(value) <= OPTIONS:
            self._refuse(f"it may set {' and '.join(sorted(OPTIONS))} only")
        if keyword == "%regex" and not _is_substring(value):
            self._refuse("it has a %regex that is not one of texts")
        num_lines = said.count("\n")
        self._line += num_lines
        return f"{keyword} {{{chr(10) * num_lines}{json_text(value)[1:]}"

    def _past_blanks(self, at: int) -> int:
        while self._text[at : at + 1] in (" ", "\t", "\r", "\n"):
            at += 1
        return at

    def _refuse(self, why: str) -> NoReturn:
        raise UnusableGrammar(self._line, why)


def _is_substring(value: dict[str, Any]) -> bool:
    match value:
        case {"substring_words": str()} | {"substring_chars": str()}:
            return len(value) == 1
        case {"substring_chunks": list() as chunks}:
            listed = cast(list[Any], chunks)
            return len(value) == 1 and all(isinstance(chunk, str) for chunk in listed)
        case _:
            return False
