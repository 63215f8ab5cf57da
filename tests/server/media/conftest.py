"""One decoder, with its worker process, for the tests that do not break it."""

from collections.abc import AsyncIterator

import pytest

from server.media.decoder import Decoder
from server.media.pixel_limits import PixelLimits
from tests.server.media.samples import VISION


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
async def decoder() -> AsyncIterator[Decoder]:
    decoder = Decoder(VISION, PixelLimits())
    yield decoder
    await decoder.close()
