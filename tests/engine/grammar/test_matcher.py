import json
import random
import re

import numpy as np
import pytest

from engine.grammar import GrammarError, GrammarSpec
from engine.grammar.compiler import MAX_COMPILED
from engine.grammar.vocabulary import MAX_FORCED_CHARS
from tests.engine.grammar.sampling import Babbler

WORD = GrammarSpec(grammar="start: /[a-z]{1,8}/")


def json_spec(schema: dict[str, object]) -> GrammarSpec:
    compact = {"x-guidance": {"whitespace_flexible": False}, **schema}
    return GrammarSpec(grammar=f"start: %json {json.dumps(compact)}", bounds_numbers=True)


def json_grammar(lark: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def test_end_tokens_are_banned_until_the_text_is_complete(babbler: Babbler):
    matcher = babbler.compiler.matcher(GrammarSpec(grammar='start: "ab" | "abc"'))
    for char, may_end in (("a", False), ("b", True)):
        assert not set(babbler.allowed(matcher)) & set(babbler.eos_ids)
        assert matcher.accept(babbler.id_of(char))
        assert (set(babbler.eos_ids) <= set(babbler.allowed(matcher))) is may_end
    assert not matcher.is_finished
    assert matcher.accept(babbler.id_of("c"))
    assert matcher.is_finished
    assert set(babbler.allowed(matcher)) == set(babbler.eos_ids)
    assert matcher.accept(babbler.eos_ids[1])
    assert matcher.is_finished
    assert set(babbler.allowed(matcher)) == set(babbler.eos_ids), "with ignore_eos it goes on"


def test_a_token_that_is_not_allowed_is_refused(babbler: Babbler):
    for wrong in (babbler.id_of("1"), babbler.eos_ids[0], babbler.num_tokens + 3):
        assert not babbler.compiler.matcher(WORD).accept(wrong)


def test_padding_and_control_tokens_are_never_allowed(babbler: Babbler):
    anything = GrammarSpec(grammar="start: /(?s:.*)/")
    allowed = set(babbler.allowed(babbler.compiler.matcher(anything)))
    assert babbler.id_of("<tool_call>") in allowed
    assert babbler.id_of("<|im_start|>") not in allowed
    assert max(allowed) < babbler.num_tokens
    by_id = GrammarSpec(grammar=f"start: <[{babbler.num_tokens + 1}]> | /a/")
    assert set(babbler.allowed(babbler.compiler.matcher(by_id))) <= set(range(babbler.num_tokens))


def test_a_tag_is_one_token_or_its_letters(babbler: Babbler):
    spec = GrammarSpec(grammar='start: ("<tool_call>" | "<other>") /[0-9]/')
    tag = babbler.id_of("<tool_call>")
    assert babbler.encode("<tool_call>") == [tag]
    matcher = babbler.compiler.matcher(spec)
    assert tag in babbler.allowed(matcher)
    for char in "<tool_call>7":
        assert matcher.accept(babbler.id_of(char))
    assert matcher.is_finished
    matcher = babbler.compiler.matcher(spec, (tag, babbler.id_of("7")))
    assert matcher.is_finished


def test_forced_text_comes_in_the_tokens_the_model_would_write(babbler: Babbler):
    spec = GrammarSpec(grammar='start: "<tool_call>\\n<function=weather>\\n" /[0-9]/')
    matcher = babbler.compiler.matcher(spec)
    first, *_ = babbler.encode("<tool_call>\n<function=weather>\n")
    assert babbler.allowed(matcher) == [first]


def test_nothing_but_ends_is_banned_before_the_grammar_begins(babbler: Babbler):
    end_think, call = babbler.id_of("</think>"), babbler.id_of("<tool_call>")
    spec = GrammarSpec(grammar=WORD.grammar, after_token_id=end_think, banned_before=(call,))
    matcher = babbler.compiler.matcher(spec)
    real = {i for i, text in enumerate(babbler.vocabulary.token_bytes) if text}
    assert set(babbler.allowed(matcher)) == real - {call}
    for token_id in babbler.encode("12, <think> anything <thin"):
        assert matcher.accept(token_id)
    assert set(babbler.allowed(matcher)) == real - {call}
    assert not matcher.is_finished
    assert matcher.accept(end_think)
    assert babbler.id_of("1") not in babbler.allowed(matcher)
    assert babbler.id_of("q") in babbler.allowed(matcher)


@pytest.mark.parametrize("tag", ["</think>", "<tool_call>"])
def test_only_its_own_token_completes_a_tag_before_the_grammar_begins(babbler: Babbler, tag: str):
    end_think, call = babbler.id_of("</think>"), babbler.id_of("<tool_call>")
    spec = GrammarSpec(grammar=WORD.grammar, after_token_id=end_think, banned_before=(call,))
    texts = babbler.vocabulary.token_bytes
    free = {i for i, text in enumerate(texts) if text} - {call}
    for begun in range(1, len(tag)):
        for before in ("", "so ", "<", "</", "</think", "<tool_"):
            ids = [babbler.id_of(char) for char in (before + tag[:begun]).replace(" ", "Ġ")]
            matcher = babbler.compiler.matcher(spec, tuple(ids))
            rest = tag[begun:].encode()
            completing = {i for i in free if texts[i].startswith(rest)}
            assert babbler.id_of(tag[begun]) in completing or len(rest) > 1
            assert set(babbler.allowed(matcher)) == free - completing
            if len(rest) > 1:  # and another letter makes it text
                assert matcher.accept(babbler.id_of("Z"))
                assert set(babbler.allowed(matcher)) == free


def test_a_begun_tag_does_not_hide_the_token_of_the_tag(babbler: Babbler):
    end_think = babbler.id_of("</think>")
    spec = GrammarSpec(grammar=WORD.grammar, after_token_id=end_think)
    matcher = babbler.compiler.matcher(spec, tuple(babbler.id_of(char) for char in "</thi"))
    assert end_think in babbler.allowed(matcher)
    assert matcher.accept(end_think)
    assert babbler.id_of("1") not in babbler.allowed(matcher)


@pytest.mark.parametrize("after", [False, True])
def test_a_resumed_answer_has_the_masks_of_one_that_ran_through(babbler: Babbler, after: bool):
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "array", "items": {"type": "null"}}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    end_think = babbler.id_of("</think>")
    spec = json_spec(schema)
    if after:
        spec = GrammarSpec(grammar=spec.grammar, after_token_id=end_think, bounds_numbers=True)
    rng = random.Random(3)
    through = babbler.compiler.matcher(spec)
    ids: list[int] = []
    while not through.is_finished:
        allowed = babbler.allowed(through)
        resumed = babbler.compiler.matcher(spec, tuple(ids))
        assert babbler.allowed(resumed) == allowed
        assert resumed.is_finished is through.is_finished
        ids.append(end_think if after and len(ids) == 5 else rng.choice(allowed))
        assert through.accept(ids[-1])
        if len(ids) > 400:
            break
    assert len(ids) > 5


def test_a_history_that_does_not_fit_is_an_error(babbler: Babbler):
    with pytest.raises(GrammarError):
        babbler.compiler.matcher(WORD, (babbler.id_of("1"),))


@pytest.mark.parametrize(
    "grammar",
    ["start: (", "begin: /a/", "start: undefined", 'start: %json {"type": "integer", "not": {}}'],
)
def test_a_grammar_that_does_not_compile_is_an_error(babbler: Babbler, grammar: str):
    with pytest.raises(GrammarError):
        babbler.compiler.matcher(GrammarSpec(grammar=grammar))


def test_an_answer_that_runs_into_a_limit_spoils_its_grammar_for_nobody_else(babbler: Babbler):
    spec = GrammarSpec(grammar="start: /[ab]*a[ab]{18}c/")  # 2^18 states, if they are all seen
    ab = [babbler.id_of(char) for char in "ab"]
    shared, greedy = (babbler.compiler.matcher(spec) for _ in range(2))
    assert shared.accept(ab[0])
    rng = random.Random(1)

    def go_on() -> None:
        for _ in range(200_000):
            babbler.allowed(greedy)
            assert greedy.accept(rng.choice(ab))

    with pytest.raises(GrammarError, match="too many states"):
        go_on()
    with pytest.raises(GrammarError, match="too many states"):
        babbler.allowed(greedy)
    for matcher in (shared, babbler.compiler.matcher(spec, (ab[0],))):
        for char in "b" * 18 + "c":
            assert babbler.id_of(char) in babbler.allowed(matcher)
            assert matcher.accept(babbler.id_of(char))
        assert matcher.is_finished


def test_control_tokens_in_text_that_is_forced_are_written_as_text(babbler: Babbler):
    text = "<tool_call> a <|im_end|> b <|im_start|>"
    spec = GrammarSpec(grammar=f'start: "{text}"')
    matcher = babbler.compiler.matcher(spec)
    written = b""
    while not matcher.is_finished:
        allowed = babbler.allowed(matcher)
        assert not set(allowed) & {*babbler.eos_ids, babbler.id_of("<|im_start|>")}
        assert matcher.accept(allowed[0])
        written += babbler.vocabulary.token_bytes[allowed[0]]
    assert written.decode() == text


def test_forced_text_that_is_long_is_spelt_by_any_tokens(babbler: Babbler):
    """Its own tokens would have to be found anew for each of them."""
    texts = babbler.vocabulary.token_bytes
    for length, is_free in ((MAX_FORCED_CHARS, False), (MAX_FORCED_CHARS + 1, True)):
        text = ("The weather is fine, " * 50)[:length]
        for grammar in (f'start: "{text}"', json_grammar(f'start: "{text}"')):
            spec = GrammarSpec(grammar=grammar)
            for _ in range(2):  # the second finds it compiled
                matcher = babbler.compiler.matcher(spec)
                allowed = babbler.allowed(matcher)
                assert (babbler.id_of("T") in allowed) is is_free
                assert matcher.accept(max(allowed, key=lambda i: len(texts[i])))
                assert babbler.allowed(matcher)
            assert babbler.accepts(spec, text)


def test_forced_text_that_is_long_may_come_late(babbler: Babbler):
    text = "fine, " * 200
    spec = GrammarSpec(grammar=f'start: /[0-9]{{3}}/ ("x" "{text}" | "y")')
    ids = tuple(babbler.id_of(char) for char in "123x")
    through = babbler.compiler.matcher(spec)
    for token_id in ids:
        assert token_id in babbler.allowed(through)
        assert through.accept(token_id)
    assert babbler.id_of("f") in babbler.allowed(through)
    assert babbler.allowed(through) == babbler.allowed(babbler.compiler.matcher(spec, ids))
    assert babbler.accepts(spec, f"123x{text}")
    assert babbler.accepts(spec, "123y")


def test_only_the_last_grammars_are_kept(babbler: Babbler):
    for index in range(MAX_COMPILED + 20):
        babbler.compiler.matcher(GrammarSpec(grammar=f'start: "{index}"'))
    compiled = babbler.compiler._compiled  # pyright: ignore[reportPrivateUsage]
    assert len(compiled) == MAX_COMPILED
    assert f'start: "{MAX_COMPILED + 19}"' in compiled
    assert 'start: "0"' not in compiled


@pytest.mark.parametrize("pattern", ["[a-z]{2,5}[0-9]", "(ab|cd)*e", "x?é😀{1,2}", r"[^\n]{3}"])
def test_random_answers_match_as_a_whole(babbler: Babbler, pattern: str):
    spec = GrammarSpec(grammar=f"start: /{pattern}/")
    for seed in range(25):
        answer = babbler.answer(spec, random.Random(seed), free_tokens=20)
        assert re.fullmatch(pattern, answer)


def test_numbers_end_and_are_finite(babbler: Babbler):
    spec = json_spec({"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3})
    for first in "19":
        matcher = babbler.compiler.matcher(spec)
        text = b""
        while not matcher.is_finished:
            allowed = babbler.allowed(matcher)
            by_text = {babbler.vocabulary.token_bytes[i]: i for i in allowed}
            wanted = (b"9", first.encode()) if b"e" not in text else (b"9", b"+")
            token_id = next((by_text[w] for w in wanted if w in by_text), None)
            if len(text) % 37 == 20:
                token_id = by_text.get(b"e", token_id)
            token_id = token_id if token_id is not None else allowed[-1]
            assert matcher.accept(token_id)
            text += babbler.vocabulary.token_bytes[token_id]
            assert len(text) < 200
        values = json.loads(text)
        assert len(values) == 3
        assert all(np.isfinite(value) for value in values)


def test_a_number_longer_than_the_bound_is_written_where_the_grammar_wants_it(babbler: Babbler):
    digits = "7" * 60
    spec = GrammarSpec(grammar=f'start: "[" "{digits}" "]"', bounds_numbers=True)
    assert babbler.accepts(spec, f"[{digits}]")


def test_digits_inside_strings_are_not_numbers(babbler: Babbler):
    spec = json_spec({"type": "array", "items": {"type": "string"}})
    assert babbler.accepts(spec, '["' + "1" * 100 + '","a, 1' + "0" * 100 + '","1e999"]')
    spec = json_spec({"type": "string", "pattern": "^[0-9]{100}$"})
    assert babbler.accepts(spec, json.dumps("1" * 100))
