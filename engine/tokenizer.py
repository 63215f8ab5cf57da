"""A checkpoint's tokenizer files, as both processes read them.

The server turns text into ids with it; in the engine a grammar needs the bytes behind each id.
"""

from pathlib import Path
from typing import Any, cast

import msgspec
from tokenizers import AddedToken, Tokenizer


def open_tokenizer(model_dir: Path) -> Tokenizer:
    """Read tokenizer.json, and what tokenizer_config.json adds. Raises ValueError with one line."""
    path = model_dir / "tokenizer.json"
    try:
        backend = Tokenizer.from_buffer(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{model_dir} holds no tokenizer.json") from None
    except Exception as error:  # the library raises plain Exception for whatever it dislikes
        raise ValueError(f"{path} is not a tokenizer: {error}") from None
    _add_missing_tokens(backend, read_config_file(model_dir / "tokenizer_config.json"))
    backend.no_truncation()
    backend.no_padding()
    return backend


def read_config_file(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; empty if there is no such file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON object: {error}") from None


def piece_bytes(piece: str) -> bytes:
    """The bytes that a piece of a byte-level vocabulary stands for."""
    try:
        return bytes(_BYTE_OF[char] for char in piece)
    except KeyError:  # not spelled in the byte alphabet: the library takes it literally
        return piece.encode()


def _add_missing_tokens(backend: Tokenizer, config: dict[str, Any]) -> None:
    """Add what only tokenizer_config.json declares: some checkpoints keep added tokens there."""
    declared = cast(dict[str, dict[str, Any]], config.get("added_tokens_decoder") or {})
    try:
        tokens = sorted((int(token_id), fields) for token_id, fields in declared.items())
        for token_id, fields in tokens:
            content = str(fields["content"])
            if backend.token_to_id(content) is None:
                names = ("single_word", "lstrip", "rstrip", "normalized", "special")
                flags = {name: bool(fields[name]) for name in names if name in fields}
                backend.add_tokens([AddedToken(content, **flags)])
            if backend.token_to_id(content) != token_id:
                raise ValueError(
                    f"tokenizer_config.json gives {content} the id {token_id}, "
                    f"tokenizer.json {backend.token_to_id(content)}"
                )
    except (AttributeError, KeyError, TypeError):
        raise ValueError("tokenizer_config.json: added_tokens_decoder is malformed") from None


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(rest)})
    return alphabet


_BYTE_OF = _byte_alphabet()
