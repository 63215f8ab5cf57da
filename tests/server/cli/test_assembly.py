"""The parts of a front, put together for the bundled model as for any checkpoint with a tower."""

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from PIL import Image

from engine import EngineInfo
from server.assembly import FrontParts, FrontSettings
from server.limits import Limits
from tests.fakes import FakeEngine, Script
from tests.server.http.asking import CHAT, chat

pytestmark = pytest.mark.anyio

DEMO = Path(__file__).parents[3] / "server" / "demo_model"
INFO = EngineInfo(
    pid=1,
    architecture="",
    dtype="",
    device="",
    num_parameters=1,
    weight_bytes=1,
    load_s=1.0,
    max_model_len=1000,
    max_num_seqs=1,
    max_step_tokens=1,
    num_pages=1,
    num_slots=1,
    cache_bytes=1,
    serves_media=True,
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def settings(**fields: Any) -> FrontSettings:
    return FrontSettings(
        **{
            "model_dir": str(DEMO),
            "model_root": "demo",
            "served_names": ("demo",),
            "version": "0",
            "created": 0,
            "api_keys": (),
            "metrics_open": False,
            "literal_control_tokens": False,
            "models_sampling": False,
            "serves_media": True,
            "media_domains": (),
            "media_dir": None,
            "limits": Limits(request_timeout_s=60.0),
            "shutdown_timeout_s": 1.0,
            "seed": 1,
            "log_level": 0,
            "num_processes": 1,
            **fields,
        }
    )


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 300), "blue").save(file, "GIF")
    return file.getvalue()


async def ask(parts: FrontParts, engine: FakeEngine, url: str) -> httpx.Response:
    app = parts.app(engine, lifecycle=parts.lifecycle(engine), metrics=parts.metrics(engine))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(CHAT, json=chat([{"type": "image_url", "image_url": url}]))


@pytest.mark.parametrize(
    ("asked_for", "engine_sees", "serves"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
async def test_media_are_served_where_all_agree(
    asked_for: bool, engine_sees: bool, serves: bool
) -> None:
    parts = FrontParts(settings(serves_media=asked_for))
    try:
        assert not parts.validator.serves_media  # before an engine said anything
        parts.note_engine(msgspec.structs.replace(INFO, serves_media=engine_sees))
        assert parts.validator.serves_media == serves
        assert parts.validator.max_model_len == 1000
    finally:
        await parts.close()


async def test_what_the_operator_allows_is_read(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "a.gif").write_bytes(gif())
    (tmp_path / "b.gif").write_bytes(gif())
    parts = FrontParts(settings(media_dir=str(allowed)))
    parts.note_engine(INFO)
    engine = FakeEngine()
    end = parts.tokenizer.id_of("<|im_end|>")
    assert end is not None
    engine.default = lambda request: Script([(end,)])
    try:
        for url in (
            f"file://{allowed}/a.gif",
            "data:image/gif;base64," + base64.b64encode(gif()).decode(),
        ):
            response = await ask(parts, engine, url)
            assert response.status_code == 200, response.text
            (picture,) = engine.submitted[-1].media
            assert (picture.num_frames, picture.height, picture.width) == (1, 288, 288)
            assert picture.pixels == b"\x00\x00\xff" * (288 * 288)
            pad = parts.tokenizer.id_of("<|image_pad|>")
            ids = engine.submitted[-1].prompt_ids
            assert ids.count(pad) == 81
            assert ids[picture.start : picture.start + 81] == (pad,) * 81
        for url in (f"file://{tmp_path}/b.gif", "https://example.org/a.gif"):
            response = await ask(parts, engine, url)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "messages.0.content.0"
    finally:
        await parts.close()


async def test_processes_share_what_the_server_may_hold():
    alone, one_of_four = (FrontParts(settings(num_processes=count)) for count in (1, 4))
    try:
        assert (alone.limits.max_connections, alone.limits.max_background) == (4096, 256)
        assert (one_of_four.limits.max_connections, one_of_four.limits.max_background) == (1024, 64)
    finally:
        for parts in (alone, one_of_four):
            await parts.close()
