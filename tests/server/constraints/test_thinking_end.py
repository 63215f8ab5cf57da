"""Grammar and parser agree where thinking ends, whichever tokens spell the tags."""

import json
import random
from typing import Any

import pytest

from server.constraints import ConstraintReader
from server.parse import CallArguments, CallEnd, CallStart, Content, OutputParser, Reasoning
from tests.engine.grammar.sampling import Babbler

PIECES = ("</think>", "<think>", "<tool_call>\n", "<function=f>", "</tool_call>", "{}", "[1]", "\n")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FORMATS: dict[str, dict[str, Any]] = {
    "json_object": {"response_format": {"type": "json_object"}},
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"enum": [1, "two"]}},
        }
    },
    "required": {"tools": [TOOL], "tool_choice": "required"},
    "named": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
}


def pieces(babbler: Babbler) -> list[int]:
    """All tokens that a spelt tag may be made of, but the tag's own to end the thinking."""
    texts = babbler.vocabulary.token_bytes
    return [i for i, text in enumerate(texts) if text and any(text in p.encode() for p in PIECES)]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(60))
def test_what_spells_tags_in_thinking_stays_reasoning(
    kind: str, seed: int, reader: ConstraintReader, babbler: Babbler
) -> None:
    request = FORMATS[kind]
    end_think, call = babbler.id_of("</think>"), babbler.id_of("<tool_call>")
    spec = reader.read(request, after_token_id=end_think, call_token_id=call)
    assert spec is not None
    rng = random.Random(f"{kind} {seed}")
    matcher = babbler.compiler.matcher(spec)
    liked = set(pieces(babbler)) - {end_think}
    thought = b""
    goal = b""
    for _ in range(rng.randrange(80)):
        # A piece of a tag, letter by letter or not: as far as that is allowed.
        goal = goal or rng.choice(PIECES).encode()
        allowed = sorted(liked & set(babbler.allowed(matcher)))
        texts = {i: babbler.vocabulary.token_bytes[i] for i in allowed}
        spelling = [i for i in allowed if goal.startswith(texts[i])] or allowed
        token_id = rng.choice(spelling)
        goal = goal[len(texts[token_id]) :] if goal.startswith(texts[token_id]) else b""
        assert matcher.accept(token_id)
        thought += texts[token_id]
    assert matcher.accept(end_think)
    text = thought.decode() + "</think>" + rest_of(babbler, matcher, rng)

    parser = OutputParser(thinking=True, tools=request.get("tools"))
    reasoning = content = arguments = ""
    num_calls = num_ends = 0
    events = [e for char in text for e in parser.feed(char)] + parser.finish(cut=False)
    for event in events:
        match event:
            case Reasoning(piece):
                reasoning += piece
            case Content(piece):
                content += piece
            case CallStart():
                num_calls += 1
                arguments += "\n"
            case CallArguments(_, piece):
                arguments += piece
            case CallEnd():
                num_ends += 1
    thought_text = thought.decode().lstrip("\n").removeprefix("<think>")
    assert reasoning == thought_text.strip("\n")
    if "tools" in request:
        assert num_calls == num_ends >= 1
        assert content == ""
        for one in arguments.split("\n")[1:]:
            assert isinstance(json.loads(one), dict)
    else:
        assert num_calls == 0
        json.loads(content)


def rest_of(babbler: Babbler, matcher: Any, rng: random.Random) -> str:
    """Go on, with a liking for what ends."""
    text = bytearray()
    for index in range(3000):
        allowed = babbler.allowed(matcher)
        ends = [i for i in allowed if i in babbler.eos_ids]
        if ends and (len(ends) == len(allowed) or index > 20):
            return text.decode()
        token_id = rng.choice(allowed)
        if index > 20 and rng.random() < 0.9:
            token_id = babbler._closing(  # pyright: ignore[reportPrivateUsage]
                allowed, bytes(text), token_id
            )
        assert matcher.accept(token_id)
        text += babbler.vocabulary.token_bytes[token_id]
    raise AssertionError("no end")
