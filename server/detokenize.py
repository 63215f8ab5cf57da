"""Token ids to text while they come in. Text of a stream equals the text of the whole.

Owns the bytes of an unfinished UTF-8 character between two calls; a character leaves only complete.
"""

import codecs
from collections.abc import Iterable

from server.tokenizer import Tokenizer


class Detokenizer:
    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became certain; empty while a character is incomplete."""
        tokenizer = self._tokenizer
        if self._skip_special_tokens:
            token_ids = (i for i in token_ids if not tokenizer.is_special(i))
        return self._decoder.decode(b"".join(map(tokenizer.token_bytes, token_ids)))

    def flush(self) -> str:
        """End the stream: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
