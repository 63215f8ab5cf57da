from collections.abc import AsyncIterator

import httpx
import pytest

from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer, build_server
from tests.server.http.conftest import anyio_backend, checkpoint, model_config, tokenizer, validator

__all__ = ["anyio_backend", "checkpoint", "model_config", "tokenizer", "validator"]


@pytest.fixture
async def server(validator: Validator, tokenizer: Tokenizer) -> FakeServer:
    return build_server(validator, tokenizer)


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
