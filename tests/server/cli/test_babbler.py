"""The default checkpoint: complete, deterministic, and of the real architecture's layout."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, Qwen3_5MoeForConditionalGeneration

from engine import ModelConfig
from server.babbler import build_babbler
from server.babbler.tokenizer import ADDED_TOKENS, NOT_SPECIAL


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_babbler(tmp_path_factory.mktemp("cache") / "not" / "there")


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def test_is_built_once_and_leaves_nothing_else(tmp_path: Path):
    first = build_babbler(tmp_path)
    marker = first / "config.json"
    built_at = marker.stat().st_mtime_ns
    assert build_babbler(tmp_path) == first
    assert marker.stat().st_mtime_ns == built_at
    assert list(tmp_path.iterdir()) == [first]


def test_is_the_same_every_time(babbler: Path, tmp_path: Path):
    assert digests(build_babbler(tmp_path)) == digests(babbler)


def test_builds_at_the_same_time_end_up_with_one(tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        built = set(pool.map(build_babbler, [tmp_path] * 4))
    assert list(tmp_path.iterdir()) == list(built)


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("server.babbler.write_weights", broken)
    with pytest.raises(OSError, match="disk full"):
        build_babbler(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_engine_reads_its_config(babbler: Path):
    config = ModelConfig.from_dir(babbler)
    assert config.architecture == "Qwen3_5MoeForConditionalGeneration"
    assert config.num_linear_layers == 6
    assert config.num_full_layers == 2
    assert config.rotary_dim == 2 * sum(config.mrope_section)
    assert config.vocab_size % 64 == 0


def test_transformers_finds_every_tensor_and_no_other(babbler: Path):
    _, info = Qwen3_5MoeForConditionalGeneration.from_pretrained(
        babbler, dtype=torch.bfloat16, output_loading_info=True
    )
    assert {name: list(found) for name, found in info.items()} == {
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": [],
        "error_msgs": [],
    }
    assert AutoConfig.from_pretrained(babbler).text_config.layer_types[3] == "full_attention"


def test_added_tokens_end_the_vocabulary_in_order(babbler: Path):
    tokenizer = Tokenizer.from_file(str(babbler / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    added = tokenizer.get_added_tokens_decoder()
    last_ids = range(size - len(ADDED_TOKENS), size)
    assert len(ADDED_TOKENS) == 33
    assert [added[i].content for i in last_ids] == list(ADDED_TOKENS)
    assert [added[i].content for i in last_ids if not added[i].special] == list(NOT_SPECIAL)
    config = json.loads((babbler / "config.json").read_text())
    assert config["image_token_id"] == tokenizer.token_to_id("<|image_pad|>")
    generation = json.loads((babbler / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [
        tokenizer.token_to_id("<|im_end|>"),
        tokenizer.token_to_id("<|endoftext|>"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world! 1234",
        "  two spaces\n\n\tand a tab \r\n",
        "e\u0301 becomes one letter, \u65e5\u672c\u8a9e and \U0001f600 become bytes",
        "don't WE'LL",
        "<think>\nwhy</think>\n\n<tool_call>\n<function=f>\n</function>\n</tool_call><|im_end|>",
    ],
)
def test_tokenises_as_transformers_does_and_loses_nothing(babbler: Path, text: str):
    tokenizer = Tokenizer.from_file(str(babbler / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert ids == AutoTokenizer.from_pretrained(babbler)(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text.replace("e\u0301", "\u00e9")


def test_speaks_whole_words_and_ends(babbler: Path):
    """Greedy, on the oracle: words it knows, and only the two control tokens that end things."""
    tokenizer = AutoTokenizer.from_pretrained(babbler)
    model = Qwen3_5MoeForConditionalGeneration.from_pretrained(babbler, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who are you?"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    output = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
    said = tokenizer.decode(output).replace("</think>", "").replace("<|im_end|>", "")
    assert len(said.split()) > 10
    assert said.isascii()
    assert "<" not in said
