"""The vocabulary as a grammar sees it: the bytes of each token, and the tokens of forced text.

Control tokens (`<|im_end|>`) have no bytes here, so no grammar can match one by its name. Added
tokens that are not special (`<tool_call>`) do: they are text that happens to be one token.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import llguidance
from tokenizers import Tokenizer

from engine.tokenizer import open_tokenizer, piece_bytes

MAX_FORCED_CHARS = 1024  # 0.5 ms a mask, growing with the length


class _ForcedText(threading.local):
    is_long = False  # some that was longer came up in this thread


class Vocabulary:
    """`num_rows` ids, of which those past the tokenizer's are padding and have no bytes."""

    def __init__(
        self,
        token_bytes: list[bytes],
        *,
        num_rows: int,
        eos_ids: tuple[int, ...],
        special_ids: frozenset[int] = frozenset(),
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        """`encode` gives the tokens the model would write a text in; without it, longest first."""
        if not eos_ids or not all(0 <= i < len(token_bytes) for i in eos_ids):
            raise ValueError("a grammar needs at least one end token inside the vocabulary")
        if len(token_bytes) > num_rows:
            raise ValueError(f"{len(token_bytes)} tokens do not fit {num_rows} rows")
        self.num_rows = num_rows
        self.num_words = (num_rows + 31) // 32  # int32 words of one mask
        self.eos_ids = eos_ids
        self.names = token_bytes  # what stands for each token in text that hides none
        self.token_bytes = [
            b"" if i in special_ids or i in eos_ids else text for i, text in enumerate(token_bytes)
        ]
        wrapper = _Wrapper(token_bytes, num_rows, eos_ids, special_ids, encode)
        self.tokenizer = llguidance.LLTokenizer(
            cast(Any, wrapper), n_vocab=num_rows, eos_token=list(eos_ids)
        )
        control = {token_bytes[i] for i in (*special_ids, *eos_ids)} - {b""}
        self._control = re.compile(b"|".join(map(re.escape, sorted(control))) or b"(?!)")
        self._forced = _ForcedText()
        self._encode = encode or self.tokenizer.greedy_tokenize
        wrapper.encode = self._forced_tokens

    def met_long_text(self) -> bool:
        """Whether this thread met a forced text of over `MAX_FORCED_CHARS` since it last asked.

        The grammar engine takes all of it apart again for every mask, with the interpreter lock.
        """
        met, self._forced.is_long = self._forced.is_long, False
        return met

    def _forced_tokens(self, text: str) -> list[int]:
        if len(text) > MAX_FORCED_CHARS:
            self._forced.is_long = True
            return self.tokenizer.greedy_tokenize(text)
        if self._control.search(
            text.encode()
        ):  # the model's tokenizer would take it for the control token
            return self.tokenizer.greedy_tokenize(text)
        return self._encode(text)

    @classmethod
    def from_dir(cls, model_dir: Path, *, num_rows: int, eos_ids: tuple[int, ...]) -> "Vocabulary":
        """Read tokenizer.json, and what tokenizer_config.json adds to it."""
        backend = open_tokenizer(model_dir)
        return cls.from_backend(backend, num_rows=num_rows, eos_ids=eos_ids)

    @classmethod
    def from_backend(
        cls, backend: Tokenizer, *, num_rows: int, eos_ids: tuple[int, ...]
    ) -> "Vocabulary":
        pieces = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        token_bytes = [b""] * (max(pieces.values(), default=-1) + 1)
        for piece, token_id in pieces.items():
            if token_id not in added:
                token_bytes[token_id] = piece_bytes(piece)
        for token_id, token in added.items():
            token_bytes[token_id] = token.content.encode()

        def encode(text: str) -> list[int]:
            return backend.encode(text, add_special_tokens=False).ids

        return cls(
            token_bytes,
            num_rows=num_rows,
            eos_ids=tuple(i for i in eos_ids if i < len(token_bytes)),
            special_ids=frozenset(i for i, token in added.items() if token.special),
            encode=encode,
        )


class _Wrapper:
    """What `LLTokenizer` reads a vocabulary through."""

    def __init__(
        self,
        token_bytes: list[bytes],
        num_rows: int,
        eos_ids: tuple[int, ...],
        special_ids: frozenset[int],
        encode: Callable[[str], list[int]] | None,
    ) -> None:
        self.is_tokenizer_wrapper = True
        self.eos_token_id = eos_ids[0]
        self.bos_token_id = None
        self.tokens = [*token_bytes, *[b""] * (num_rows - len(token_bytes))]
        self.special_token_ids = sorted(special_ids | set(eos_ids))
        self.encode: Callable[[str], list[int]] = encode or (lambda text: [])

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)
