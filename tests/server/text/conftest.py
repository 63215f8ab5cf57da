from pathlib import Path

import pytest

from engine import ModelConfig
from server.checkpoint_text import CheckpointText, read_checkpoint_text
from server.constraints import ConstraintReader
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.server.text.tiny_tokenizer import build_tiny_tokenizer

WINDOW = 256
VOCAB_SIZE = 512  # rows past the tokenizer's last id are padding


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_dir = tmp_path_factory.mktemp("tiny")
    build_tiny_tokenizer(model_dir)
    return model_dir


@pytest.fixture(scope="session")
def tiny(tiny_dir: Path) -> CheckpointText:
    return read_checkpoint_text(tiny_dir)


@pytest.fixture(scope="session")
def tokenizer(tiny: CheckpointText) -> Tokenizer:
    return tiny.tokenizer


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return ModelConfig.from_dict(
        {
            "architectures": ["Qwen3_5ForCausalLM"],
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "head_dim": 32,
            "max_position_embeddings": WINDOW,
            "eos_token_id": 7,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
            "intermediate_size": 64,
        }
    )


@pytest.fixture
def validator(
    tiny: CheckpointText, model_config: ModelConfig, reader: ConstraintReader
) -> Validator:
    return Validator(
        tiny.tokenizer,
        tiny.template,
        model_config,
        tiny.defaults,
        served_names=("tiny", "alias"),
        max_model_len=WINDOW,
        constraints=reader,
    )
