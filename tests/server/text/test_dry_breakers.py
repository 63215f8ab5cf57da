"""The tokens of DRY's breakers, against llama.cpp's search of the vocabulary done literally."""

import pytest

from server import dry_breakers
from server.dry_breakers import DryBreakers
from server.tokenizer import Tokenizer


def by_definition(tokenizer: Tokenizer, text: str) -> tuple[set[int], set[tuple[int, ...]]]:
    single: set[int] = set()
    several: set[tuple[int, ...]] = set()
    wanted = text.encode()
    boundaries = {len(text[:cut].encode()) for cut in range(1, len(text))}
    for token_id in range(tokenizer.num_real_tokens):
        word = tokenizer.token_bytes(token_id)
        if wanted in word:
            single.add(token_id)
            continue
        for position in range(len(word)):
            left = word[position:]
            if wanted.startswith(left) and len(left) in boundaries:
                several.add((token_id, *tokenizer.encode(wanted[len(left) :].decode())[:20]))
    return single, several


@pytest.mark.parametrize(
    "texts",
    [
        ("\n", ":", '"', "*"),
        ("the dog",),
        ("<|im_end|>",),
        ("世界", "é", "aa"),
        ("quick", "sea sh"),
        ("x" * 40,),
    ],
)
def test_breakers_against_the_definition(texts: tuple[str, ...], tokenizer: Tokenizer) -> None:
    single: set[int] = set()
    several: set[tuple[int, ...]] = set()
    for text in texts:
        found = by_definition(tokenizer, text)
        single |= found[0]
        several |= found[1]
    breakers = DryBreakers(tokenizer)
    assert breakers.tokens_of(texts) == (tuple(sorted(single)), tuple(sorted(several)))
    assert breakers.tokens_of(texts) is breakers.tokens_of(texts)


def test_the_default_breakers_are_single_tokens(tokenizer: Tokenizer) -> None:
    single, several = DryBreakers(tokenizer).tokens_of(("\n", ":", '"', "*"))
    assert several == ()
    assert {tokenizer.encode(text)[0] for text in ("\n", ":", '"', "*")} <= set(single)
    assert all(set(tokenizer.token_str(i)) & set('\n:"*') for i in single)


def test_the_number_of_breakers_is_bounded(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_breakers, "MAX_SEQUENCES", 3)
    with pytest.raises(ValueError, match="more than 3 sequences"):
        DryBreakers(tokenizer).tokens_of(("the quick brown fox",))
