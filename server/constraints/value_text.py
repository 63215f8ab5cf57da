"""Raw text that holds nothing the parser of answers would take for the end of a value.

A value of a call ends before `</parameter>`, before a line that begins with `<parameter=NAME>`, and
before `</function>` where call markup follows. Text without these could be said by a complement,
but not to the grammar engine: to learn that a complement allows nothing more, it tries all that
might follow, and beside a length of some hundred characters that ends in its limits. So it is said
positively here. Each tag begins with a character that it does not hold a second time; so text is a
sequence of other characters and of tags that break off, `failed` by another character or `cut` by
the next beginning or the end of the text.
"""

from collections.abc import Iterable

from server.constraints.regex import literal

_SPACES = r"[\s\x1c-\x1f]*"
_NAME = r"[^<>\n]"


def _prefixes(tags: Iterable[str]) -> dict[str, str]:
    """What tags begin with, short of all of one, and the characters that go on with it."""
    found: dict[str, str] = {}
    for tag in tags:
        for length in range(len(tag)):
            begun, following = tag[:length], tag[length]
            if following not in found.setdefault(begun, ""):
                found[begun] += following
    return found


def _cut(begin: str, tags: Iterable[str]) -> str:
    return _either(begin + literal(begun) for begun in _prefixes(tags))


def _failed(begin: str, tags: Iterable[str], banned: str) -> str:
    """`banned` are the characters by which a tag is cut, not failed."""
    return _either(
        f"{begin}{literal(begun)}[^{_in_class(following)}{banned}]"
        for begun, following in _prefixes(tags).items()
    )


def _either(choices: Iterable[str]) -> str:
    return f"(?:{'|'.join(choices)})"


def _in_class(chars: str) -> str:
    return "".join(f"\\x{ord(char):02x}" for char in chars)


def _closers() -> str:
    """Text without `</parameter>`, and without `</function>` that call markup follows."""
    anywhere = ("/parameter>", "/function>")
    behind = (*anywhere, "/tool_call>", "tool_call>", "function=")  # a `</function>`
    function = rf"(?:<\/function>{_SPACES})+"
    cut = _either((_cut("<", anywhere), f"{function}{_cut('<', behind)}"))
    failed = _failed("<", anywhere, "<")
    ended = rf"{function}(?:[^<\s\x1c-\x1f]|{_failed('<', behind, '<')})"
    return f"(?:[^<]|{cut}*(?:{failed}|{ended}))*{cut}*(?:{function})?"


def _next_parameter() -> str:
    """Text without a `<parameter=NAME>` at its beginning or that of a line."""
    tag = "<parameter="
    unnamed = f"{tag}{_NAME}*"
    failed_name = f"{tag}(?:[<>]|{_NAME}+<)"
    cut = _either((_cut(r"\n", (tag,)), rf"\n{unnamed}"))
    failed = _either((_failed(r"\n", (tag,), r"\n"), rf"\n{failed_name}"))
    rest = rf"(?:[^\n]|{cut}*{failed})*{cut}*"
    # The text begins as a line does.
    first_failed = _either((_failed("", (tag,), r"\n"), failed_name))
    first_cut = _either((_cut("", (tag,)), unnamed))
    return rf"(?:{first_failed}{rest}|{first_cut}{cut}*(?:{failed}{rest})?)"


CLOSERS, NEXT_PARAMETER = _closers(), _next_parameter()

VALUE_TEXT = f"/{CLOSERS}/ & /{NEXT_PARAMETER}/"
