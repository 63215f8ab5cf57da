"""Text to token ids and back, over the `tokenizers` library; no transformers.

Decoding is done on bytes, by ourselves: each id has its raw bytes (`token_bytes`), and text is the
UTF-8 decoding of their concatenation, broken sequences replaced. That is what the library does on a
whole sequence, and it is what lets a stream be cut anywhere (see `detokenize`). All methods may be
called from several threads at once.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer as Backend

from engine import open_tokenizer, piece_bytes, read_config_file

# Stands inside the name of a token that is to be read as text: a noncharacter of Unicode. In marked
# text it is nothing else: where somebody wrote one, it is dropped.
LITERAL = "\ufdd0"
PIECES_AT_ONCE = 256  # of marked text: the library holds the GIL while it makes their objects
TURN_ENDS = ("<|im_end|>", "<|endoftext|>")  # ids of these end a turn wherever they exist


class Tokenizer:
    def __init__(self, backend: Backend, *, end_tokens: Iterable[str] = TURN_ENDS) -> None:
        """`end_tokens` are names; those the vocabulary lacks are left out of `eos_ids`."""
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._special = frozenset(i for i, token in added.items() if token.special)
        ids = backend.get_vocab(with_added_tokens=True).values()
        self.num_real_tokens = max(ids, default=-1) + 1  # the last real id + 1
        self.eos_ids = frozenset(
            token_id for name in end_tokens if (token_id := self.id_of(name)) is not None
        )
        self._bytes: dict[int, bytes] = {}  # filled on demand; an entry never changes
        # Longest first: one name may begin with another.
        names = sorted(self._added.values(), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) if names else "(?!)")

    @classmethod
    def from_dir(cls, model_dir: Path) -> "Tokenizer":
        """Read tokenizer.json and tokenizer_config.json. Raises ValueError with one line."""
        backend = open_tokenizer(model_dir)
        config = read_config_file(model_dir / "tokenizer_config.json")
        end_token = special_token_text(config.get("eos_token"))
        return cls(backend, end_tokens=(*TURN_ENDS, *([end_token] if end_token else [])))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Names of added tokens inside `text` become their ids."""
        # As a batch: `encode` holds the GIL, 1.1 s for 2 M characters where this holds 10 ms of it.
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return batch[0].ids

    def encode_marked(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The same of text in which `literal` has marked names: these stay text."""
        first, *rest = text.split(LITERAL)
        ids = self.encode(first, add_special_tokens)
        pieces = [piece for piece in rest if piece]
        for i in range(0, len(pieces), PIECES_AT_ONCE):
            few = pieces[i : i + PIECES_AT_ONCE]
            for encoding in self._backend.encode_batch_fast(few, add_special_tokens=False):
                ids += encoding.ids
        return ids

    def literal(self, text: str) -> str:
        """`text` with names of added tokens marked, which `encode_marked` takes as plain text."""
        return self._names.sub(
            lambda name: name[0][0] + LITERAL + name[0][1:], text.replace(LITERAL, "")
        )

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        kept = (i for i in token_ids if not (skip_special_tokens and i in self._special))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token, partial characters included; empty for unknown ids."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._compute_bytes(token_id)
        return known

    def token_str(self, token_id: int) -> str:
        """One token alone as text, partial characters replaced."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_piece(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token, such as `Ġthe`; empty for unknown ids."""
        return self._piece(token_id) or ""

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def id_of(self, name: str) -> int | None:
        """The id of a token by its vocabulary spelling."""
        return self._backend.token_to_id(name)

    def _piece(self, token_id: int) -> str | None:
        if not 0 <= token_id < self.num_real_tokens:  # the backend takes 32-bit ids only
            return None
        return self._backend.id_to_token(token_id)

    def _compute_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        return piece_bytes(self._piece(token_id) or "")


def special_token_text(value: Any) -> str | None:
    """The text of a special token as configs write it: a string, or an object with `content`."""
    if isinstance(value, dict):
        value = cast(dict[str, Any], value).get("content")
    return value if isinstance(value, str) else None
