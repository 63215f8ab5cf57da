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
        self._is_between = True  # no character is unfinished

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became certain; empty while a character is incomplete."""
        return "".join(map(self.push_one, token_ids))

    def push_one(self, token_id: int) -> str:
        """`push` of a single token."""
        if self._skip_special_tokens and self._tokenizer.is_special(token_id):
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._is_between and data.isascii():
            return data.decode("ascii")  # most tokens, and several times as fast
        text = self._decoder.decode(data)
        self._is_between = not self._decoder.getstate()[0]
        return text

    def flush(self) -> str:
        """End the stream: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
