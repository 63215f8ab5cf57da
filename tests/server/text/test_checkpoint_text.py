import json
import logging
from pathlib import Path
from typing import Any

import pytest

from server.checkpoint_text import (
    CheckpointText,
    GenerationDefaults,
    read_generation_defaults,
    read_template,
)

USER = [{"role": "user", "content": "hi"}]


def write(model_dir: Path, name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (model_dir / name).write_text(text, encoding="utf-8")


def rendered(model_dir: Path) -> str:
    template = read_template(model_dir)
    assert template is not None
    return template.render(USER, None, add_generation_prompt=True, max_chars=100)


def defaults(model_dir: Path, **config: Any) -> GenerationDefaults:
    write(model_dir, "generation_config.json", config)
    return read_generation_defaults(model_dir)


def test_a_whole_checkpoint(tiny: CheckpointText):
    assert tiny.template is not None
    assert tiny.tokenizer.encode("hi")
    api = GenerationDefaults(temperature=1.0, eos_ids=tiny.tokenizer.eos_ids)
    assert tiny.defaults.of_api() == api


def test_places_of_the_template_in_order(tmp_path: Path):
    assert read_template(tmp_path) is None
    write(tmp_path, "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "eos_token": None})
    assert read_template(tmp_path) is None
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "list"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert rendered(tmp_path) == "list"
    write(
        tmp_path,
        "tokenizer_config.json",
        {"chat_template": "config {{ bos_token }}", "bos_token": {"content": "<s>"}},
    )
    assert rendered(tmp_path) == "config <s>"
    write(tmp_path, "chat_template.json", {"chat_template": "json"})
    assert rendered(tmp_path) == "json"
    write(tmp_path, "chat_template.jinja", "jinja {{ bos_token }}")
    assert rendered(tmp_path) == "jinja <s>"


def test_broken_files_are_named_in_one_line(tmp_path: Path):
    write(tmp_path, "chat_template.jinja", "{% if %}")
    with pytest.raises(ValueError, match="template does not compile: line 1"):
        read_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not valid UTF-8"):
        read_template(tmp_path)
    write(tmp_path, "generation_config.json", "[]")
    with pytest.raises(ValueError, match=r"generation_config\.json is not a JSON object"):
        read_generation_defaults(tmp_path)
    with pytest.raises(ValueError, match="eos_token_id must hold token ids"):
        defaults(tmp_path, eos_token_id=["x"])


def test_no_generation_config(tmp_path: Path):
    assert read_generation_defaults(tmp_path) == GenerationDefaults()


def test_values_of_the_generation_config(tmp_path: Path):
    read = defaults(
        tmp_path,
        temperature=0.6,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        eos_token_id=5,
        pad_token_id=6,
    )
    sampling = {"top_p": 0.9, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1}
    assert read == GenerationDefaults(temperature=0.6, sampling=sampling, eos_ids=frozenset({5}))
    assert read.of_api() == GenerationDefaults(temperature=0.6, eos_ids=frozenset({5}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0), ("top_p", 1.1), ("top_k", 2.5), ("top_k", -2), ("min_p", "x"),
     ("repetition_penalty", 0)],
)  # fmt: skip
def test_what_is_out_of_its_range_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: object
):
    with caplog.at_level(logging.WARNING):
        assert defaults(tmp_path, temperature=0.6, **{name: value}).sampling == {}
    assert [name in record.getMessage() for record in caplog.records] == [True]


def test_do_sample_false_is_greedy(tmp_path: Path):
    assert defaults(tmp_path, do_sample=False, temperature=0.6).temperature == 0.0
    assert defaults(tmp_path, do_sample=None, temperature=0.6).temperature == 0.6


@pytest.mark.parametrize("temperature", [-1, 3, "x", True])
def test_a_temperature_out_of_range_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, temperature: object
):
    with caplog.at_level(logging.WARNING):
        read = defaults(tmp_path, temperature=temperature)
    assert read == GenerationDefaults()
    assert len(caplog.records) == 1
