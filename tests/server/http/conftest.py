from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from engine import ModelConfig
from server.checkpoint_text import CheckpointText, read_checkpoint_text
from server.constraints import ConstraintReader
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer, build_server
from tests.server.text.tiny_tokenizer import build_tiny_tokenizer

WINDOW = 4096
VOCAB_SIZE = 512


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointText:
    model_dir: Path = tmp_path_factory.mktemp("tiny")
    build_tiny_tokenizer(model_dir)
    return read_checkpoint_text(model_dir)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: CheckpointText) -> Tokenizer:
    return checkpoint.tokenizer


@pytest.fixture(scope="session")
def model_config(checkpoint: CheckpointText) -> ModelConfig:
    return ModelConfig.from_dict(
        {
            "architectures": ["Qwen3_5ForCausalLM"],
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "head_dim": 32,
            "max_position_embeddings": WINDOW,
            "eos_token_id": checkpoint.tokenizer.id_of("<|im_end|>"),
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


@pytest.fixture(scope="session")
def validator(
    checkpoint: CheckpointText, model_config: ModelConfig, reader: ConstraintReader
) -> Validator:
    return Validator(
        checkpoint.tokenizer,
        checkpoint.template,
        model_config,
        checkpoint.defaults,
        served_names=("tiny", "alias"),
        max_model_len=WINDOW,
        constraints=reader,
    )


@pytest.fixture
async def server(validator: Validator, tokenizer: Tokenizer) -> FakeServer:
    return build_server(validator, tokenizer)


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
