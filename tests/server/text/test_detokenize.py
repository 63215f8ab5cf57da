from hypothesis import given
from hypothesis import strategies as st

from server.detokenize import Detokenizer
from server.tokenizer import Tokenizer
from tests.server.text.tiny_tokenizer import SENTENCES, train_tiny_tokenizer

TINY = Tokenizer(train_tiny_tokenizer())
RUNS = st.lists(st.lists(st.integers(0, TINY.num_real_tokens + 2), max_size=4), max_size=20)


def streamed(runs: list[list[int]], skip_special_tokens: bool) -> list[str]:
    detokenizer = Detokenizer(TINY, skip_special_tokens)
    return [*map(detokenizer.push, runs), detokenizer.flush()]


@given(runs=RUNS, skip=st.booleans())
def test_streamed_text_equals_the_whole(runs: list[list[int]], skip: bool):
    pieces = streamed(runs, skip)
    whole = [token_id for run in runs for token_id in run]
    assert "".join(pieces) == TINY.decode(whole, skip)
    for piece in pieces:
        piece.encode()  # raises on anything that is not valid UTF-8


@given(st.sampled_from(SENTENCES) | st.text(st.characters(exclude_categories=["Cs"])))
def test_text_never_shows_half_a_character(text: str):
    ids = TINY.encode(text)
    whole = TINY.decode(ids)
    shown = ""
    detokenizer = Detokenizer(TINY, skip_special_tokens=False)
    for token_id in ids:
        shown += detokenizer.push([token_id])
        assert whole.startswith(shown)
    assert shown == whole
    assert detokenizer.flush() == ""


def test_a_character_waits_for_its_last_byte():
    snowman = TINY.encode("☃")
    assert len(snowman) == 3
    assert streamed([[i] for i in snowman], False) == ["", "", "☃", ""]


def test_an_unfinished_tail_is_replaced_at_the_end():
    snowman = TINY.encode("☃")
    assert streamed([snowman[:2]], False) == ["", "\ufffd"]


def test_special_tokens_are_skipped_only_when_asked():
    ids = TINY.encode("a<|im_end|><think>")
    assert "".join(streamed([ids], True)) == "a<think>"
    assert "".join(streamed([ids], False)) == "a<|im_end|><think>"


def test_a_skipped_token_does_not_break_a_character():
    first, second, third = TINY.encode("☃")
    end = TINY.id_of("<|im_end|>")
    assert end is not None
    assert streamed([[first, end], [second, third]], True) == ["", "☃", ""]
