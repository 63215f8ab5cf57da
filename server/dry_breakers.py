"""The tokens of DRY's sequence breakers, found in the vocabulary as llama.cpp does.

A breaker is text, and text can begin in the middle of a token. So a breaker is every token that
contains it; and every token that ends with the beginning of it, followed by the tokens of the rest
(as the tokenizer would write the rest alone, and no more than `MAX_TAIL_TOKENS` of them). Here a
text is only cut between characters.
"""

from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache

from server.tokenizer import Tokenizer

MAX_TAIL_TOKENS = 20
MAX_SEQUENCES = 1 << 15  # breakers of several tokens: the engine compares with each at each step
MAX_KNOWN = 4  # sets of breakers that are remembered

Breakers = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]


class DryBreakers:
    """May be asked from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._index = lru_cache(1)(self._build_index)
        self._known = lru_cache(MAX_KNOWN)(self._find)

    def tokens_of(self, texts: tuple[str, ...]) -> Breakers:
        """Breakers of one token, and longer ones; no text is empty.

        Raises ValueError if the longer ones are more than `MAX_SEQUENCES`.
        """
        return self._known(texts)

    def _find(self, texts: tuple[str, ...]) -> Breakers:
        single: set[int] = set()
        several: set[tuple[int, ...]] = set()
        tokens, _ = self._index()
        for text in texts:
            whole = text.encode()
            containing = {i for i, token in enumerate(tokens) if whole in token}
            single |= containing
            for cut in range(1, len(text)):
                tail = tuple(self._tokenizer.encode(text[cut:])[:MAX_TAIL_TOKENS])
                heads = self._ending_with(text[:cut].encode())
                several.update((i, *tail) for i in heads if i not in containing)
            if len(several) > MAX_SEQUENCES:
                raise ValueError(f"more than {MAX_SEQUENCES} sequences of tokens")
        return tuple(sorted(single)), tuple(sorted(several))

    def _ending_with(self, ending: bytes) -> Iterator[int]:
        _, backwards = self._index()
        wanted = ending[::-1]
        for k in range(bisect_left(backwards, (wanted, 0)), len(backwards)):
            token, i = backwards[k]
            if not token.startswith(wanted):
                return
            yield i

    def _build_index(self) -> tuple[list[bytes], list[tuple[bytes, int]]]:
        """Every token's bytes; and reversed, in order. Half a second for 248k tokens."""
        num = self._tokenizer.num_real_tokens
        tokens = [self._tokenizer.token_bytes(i) for i in range(num)]
        return tokens, sorted((token[::-1], i) for i, token in enumerate(tokens))
