"""The format read by someone who has the whole text: regular expressions, no states, no streaming.

Written from the rules alone, to check the machine against. It is quadratic, and knows no cut.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

NAME = r"[^<>\s]{1,256}"
KEY = r"[^<>\n]{1,256}"
OPENER = rf"<tool_call>\s*<function=({NAME})>"
REASONING_END = re.compile(rf"</think>|{OPENER}")
CONTENT_TAG = re.compile(
    rf"{OPENER}|<function=({NAME})>|</think>|</tool_call>|</function>|</parameter>"
)
BETWEEN_TAG = re.compile(rf"<parameter=({KEY})>|</?tool_call>|</function>|<function=(?:{NAME})>")
VALUE_END = re.compile(
    r"</parameter>(?=\s*(?:<parameter=|</function>|</tool_call>|\Z))"
    rf"|(?<=\n)<parameter=({KEY})>"
    r"|</function>(?=\s*(?:</tool_call>|<tool_call>|<function=|\Z))"
)


@dataclass
class Parsed:
    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    skipped: str = ""  # text and nameless parameters between the values of calls
    repeats: bool = False  # a key comes twice in one call


def parse(text: str, *, thinking: bool, declared: Mapping[str, Collection[str]] | None) -> Parsed:
    """`declared` has the parameters of each tool."""
    parsed = Parsed()
    at = 0
    leading = re.match(r"\n*<think>", text)
    framed = thinking or leading is not None
    if leading:
        at = leading.end()
    if framed:
        pattern = re.compile(r"</think>") if declared is None else REASONING_END
        end = pattern.search(text, at)
        stop = end.start() if end else len(text)
        block = text[at:stop].lstrip("\n")
        is_call = end is not None and end[0] != "</think>"
        parsed.reasoning = block.rstrip() if is_call else block.rstrip("\n")
        if end is None:
            return parsed
        at = stop if is_call else end.end()
    if declared is None:
        rest = text[at:]
        parsed.content = rest.replace("</think>", "").lstrip("\n") if framed else rest
        return parsed
    _content(text, at, parsed, framed, declared)
    return parsed


def _content(
    text: str,
    at: int,
    parsed: Parsed,
    framed: bool,
    declared: Mapping[str, Collection[str]],
) -> None:
    segments = [""]  # of content, with a call between each two
    in_block = False
    while tag := CONTENT_TAG.search(text, at):
        segments[-1] += text[at : tag.start()]
        at = tag.end()
        after_call = len(segments) > 1 and not segments[-1].strip()
        wrapped, bare = tag[1], tag[2]
        if wrapped or (bare and (bare in declared or (in_block and after_call))):
            in_block = in_block or bool(wrapped)
            name = wrapped or bare
            at = _call(text, at, name, parsed, declared.get(name, ()))
            segments.append("")
        elif tag[0] == "</think>" and framed:
            pass
        elif tag[0] in ("</tool_call>", "</function>", "</parameter>") and after_call:
            segments[-1] = ""
            in_block = in_block and tag[0] != "</tool_call>"
        elif tag[0] == "</tool_call>" and in_block:
            in_block = False
        else:
            segments[-1] += tag[0]
    segments[-1] += text[at:]

    if framed:
        segments[0] = segments[0].lstrip("\n")
    for i, segment in enumerate(segments):
        if i < len(segments) - 1:
            segment = segment.rstrip()
        elif i > 0 and not segment.strip():
            segment = ""
        parsed.content += segment.lstrip() if i > 0 and not parsed.content else segment


def _call(text: str, at: int, name: str, parsed: Parsed, keys: Collection[str]) -> int:
    """Read a call from behind its opening tag; returns where content goes on."""
    values: dict[str, str] = {}
    parsed.calls.append((name, values))
    while tag := BETWEEN_TAG.search(text, at):
        parsed.skipped += text[at : tag.start()]
        key = tag[1]
        if not key:
            return tag.end() if tag[0] == "</function>" else tag.start()
        at = tag.end()
        if not _is_key(key, keys):
            parsed.skipped += tag[0]
            continue
        parsed.repeats |= key in values
        ends = VALUE_END.finditer(text, at)
        end = next((e for e in ends if e[1] is None or _is_key(e[1], keys)), None)
        stop = end.start() if end else len(text)
        values[key] = text[at:stop].removeprefix("\n").removesuffix("\n")
        if end is None:
            return len(text)
        at = stop if end[1] else end.end()
        if end[0] == "</function>":
            return at
    parsed.skipped += text[at:]
    return len(text)


def _is_key(key: str, keys: Collection[str]) -> bool:
    return not re.search(r"\s", key) or key in keys
