import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from server.tokenizer import Tokenizer
from tests.server.text.tiny_tokenizer import (
    ADDED_TOKENS,
    SENTENCES,
    build_tiny_tokenizer,
    train_tiny_tokenizer,
)

BACKEND = train_tiny_tokenizer()
TINY = Tokenizer(train_tiny_tokenizer())
IDS = st.lists(st.integers(0, TINY.num_real_tokens + 2), max_size=30)


@pytest.mark.parametrize("text", [*SENTENCES, "", " ", "\n\n", "\x00", "a\u0000b", "🏳️‍🌈 z̴"])
def test_round_trip(text: str):
    assert TINY.decode(TINY.encode(text)) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_ids_equal_the_library_s(text: str):
    assert TINY.encode(text) == BACKEND.encode(text, add_special_tokens=False).ids


@given(ids=IDS, skip=st.booleans())
def test_decoding_equals_the_library_s(ids: list[int], skip: bool):
    assert TINY.decode(ids, skip) == BACKEND.decode(ids, skip_special_tokens=skip)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_token_bytes_concatenate_to_the_text(text: str):
    ids = TINY.encode(text)
    assert b"".join(map(TINY.token_bytes, ids)).decode() == TINY.decode(ids)


def test_every_byte_has_a_token():
    single = {TINY.token_bytes(i) for i in range(TINY.num_real_tokens)}
    assert {bytes([byte]) for byte in range(256)} <= single


def test_added_tokens_are_single_ids_and_only_some_are_special():
    for name, special in ADDED_TOKENS:
        (token_id,) = TINY.encode(name)
        assert TINY.id_of(name) == token_id
        assert TINY.token_bytes(token_id) == name.encode()
        assert TINY.is_special(token_id) == special
        assert TINY.decode([token_id], skip_special_tokens=True) == ("" if special else name)


@pytest.mark.parametrize("token_id", [-1, 493, 100_000, 2**31, 2**70])
def test_ids_without_an_entry_are_empty(token_id: int):
    assert TINY.token_bytes(token_id) == b""
    assert TINY.token_str(token_id) == ""
    assert TINY.token_piece(token_id) == ""
    assert TINY.decode([token_id]) == ""
    assert not TINY.is_special(token_id)


def test_strings_of_tokens():
    first, second = TINY.encode("the dog")
    assert TINY.token_piece(second) == "Ġdog"
    assert TINY.token_str(second) == " dog"
    assert TINY.token_str(first) == "the"
    partial = TINY.encode("☃")[0]
    assert TINY.token_str(partial) == "\ufffd"
    assert TINY.token_bytes(partial) == "☃".encode()[:1]


def test_counts_and_ends(tiny_dir: Path):
    tokenizer = Tokenizer.from_dir(tiny_dir)
    assert tokenizer.num_real_tokens == 480 + len(ADDED_TOKENS)
    assert tokenizer.eos_ids == {
        tokenizer.id_of("<|im_end|>"),
        tokenizer.id_of("<|endoftext|>"),
    }


def test_added_tokens_with_characters_outside_and_inside_the_alphabet():
    backend = train_tiny_tokenizer()
    backend.add_tokens(["<two words>", "<é>"])
    tokenizer = Tokenizer(backend)
    for name in ("<two words>", "<é>"):
        assert tokenizer.decode(tokenizer.encode(name)) == name


def test_truncation_and_padding_of_the_file_are_dropped(tmp_path: Path):
    build_tiny_tokenizer(tmp_path)
    backend = train_tiny_tokenizer()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_dir(tmp_path).encode("a b c d")) == 4


def test_threads_see_the_same():
    text = " ".join(SENTENCES)
    whole = TINY.encode(text)
    fresh = Tokenizer(train_tiny_tokenizer())
    with ThreadPoolExecutor(4) as pool:
        encoded = list(pool.map(lambda _: fresh.encode(text), range(16)))
        decoded = list(pool.map(lambda _: fresh.decode(whole), range(16)))
    assert encoded == [whole] * 16
    assert decoded == [text] * 16


def edited(tiny_dir: Path, target: Path, added: dict[str, object], *, eos: object) -> Path:
    shutil.copytree(tiny_dir, target)
    config = json.loads((target / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"].update(added)
    config["eos_token"] = eos
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


def test_tokens_that_only_the_config_declares_are_added(tiny_dir: Path, tmp_path: Path):
    added: dict[str, object] = {"493": {"content": "<extra>", "special": True}}
    tokenizer = Tokenizer.from_dir(
        edited(tiny_dir, tmp_path / "m", added, eos={"content": "<extra>"})
    )
    assert tokenizer.encode("<extra>") == [493]
    assert tokenizer.is_special(493)
    assert tokenizer.num_real_tokens == 494
    assert 493 in tokenizer.eos_ids


def test_a_config_at_odds_with_the_vocabulary(tiny_dir: Path, tmp_path: Path):
    added: dict[str, object] = {"600": {"content": "<extra>"}}
    with pytest.raises(ValueError, match="gives <extra> the id 600"):
        Tokenizer.from_dir(edited(tiny_dir, tmp_path / "m", added, eos=None))
    with pytest.raises(ValueError, match="added_tokens_decoder is malformed"):
        Tokenizer.from_dir(edited(tiny_dir, tmp_path / "n", {"493": 5}, eos=None))


def test_missing_and_broken_files(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Tokenizer.from_dir(tmp_path)
    train_tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="is not a JSON object"):
        Tokenizer.from_dir(tmp_path)


def test_the_library_reads_what_the_builder_wrote(tiny_dir: Path):
    assert Backend.from_file(str(tiny_dir / "tokenizer.json")).get_vocab_size() == 493
