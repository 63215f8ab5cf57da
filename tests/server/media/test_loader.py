import asyncio
import os
from pathlib import Path

import pytest

from engine import QueueFull
from server.errors import BadRequest
from server.media import MediaAccess, MediaLoader, MediaRef, PixelLimits, loader
from tests.server.media.samples import VISION, data_url, encoded, grey_video, noise

pytestmark = pytest.mark.anyio


@pytest.fixture
async def media():
    media = MediaLoader(VISION, access=MediaAccess(), pixel_limits=PixelLimits())
    yield media
    await media.close()


def image_ref(side: int, path: str = "messages.0") -> MediaRef:
    return MediaRef("image", data_url(encoded(noise(side, side))), path)


async def test_pictures_in_the_order_of_the_request(media: MediaLoader):
    refs = [
        image_ref(512),
        MediaRef("video", data_url(grey_video(20), "video/mp4"), "messages.1"),
        MediaRef("image", "\n " + image_ref(320).url + "\n", "messages.2"),
    ]
    loaded = await media.load(refs)
    assert [m.kind for m in loaded] == ["image", "video", "image"]
    assert [[p.height for p in m.pictures] for m in loaded] == [[512], [64, 64], [320]]
    assert [p.num_frames for p in loaded[1].pictures] == [2, 2]
    assert await media.load([]) == []


async def test_requests_at_once(media: MediaLoader):
    sides = [256, 288, 320, 352]
    loads = [media.load([image_ref(side), image_ref(side + 32)]) for side in sides]
    for side, loaded in zip(sides, await asyncio.gather(*loads), strict=True):
        assert [m.pictures[0].width for m in loaded] == [side, side + 32]


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (MediaRef("image", "data:image/png;base64,!", "a.1"), "a.1 is not valid base64."),
        (MediaRef("image", data_url(b"GIF89a"), "a.2"), "a.2 is not a PNG"),
        (MediaRef("image", "http://x.org/", "a.3"), "a.3 is a web address"),
        (MediaRef("video", "file:///etc/passwd", "a.4"), "a.4 is a file"),
        (MediaRef("image", "data:;base64," + "A" * (44 << 20), "a.5"), "a.5 is larger than 32 MiB"),
        (MediaRef("video", data_url(b"\0\0\0\x18ftyp"), "a.6"), "a.6 cannot be decoded"),
    ],
    ids=["base64", "format", "http", "file", "large", "video"],
)
async def test_refusals_name_the_place(media: MediaLoader, ref: MediaRef, message: str):
    with pytest.raises(BadRequest) as refusal:
        await media.load([image_ref(64), ref, image_ref(64)])
    assert refusal.value.message.startswith(message)
    assert (refusal.value.param, refusal.value.status) == (ref.path, 400)
    assert len(await media.load([image_ref(64)])) == 1


async def test_how_many_a_request_may_have(media: MediaLoader):
    for kind, most in (("image", 64), ("video", 4)):
        refs = [MediaRef(kind, "data:,", f"a.{i}") for i in range(most + 1)]
        with pytest.raises(BadRequest, match=f"more than {most} {kind}s") as refusal:
            await media.load(refs)
        assert refusal.value.param == f"a.{most}"
        with pytest.raises(BadRequest, match="without ;base64"):
            await media.load(refs[:-1])


async def test_how_many_pixels_a_request_may_have(
    media: MediaLoader, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loader, "MAX_REQUEST_BYTES", 3 * 2 * 256 * 256)
    assert len(await media.load([image_ref(256)] * 2)) == 2
    with pytest.raises(BadRequest, match="too large together"):
        await media.load([image_ref(256)] * 3)


async def test_what_all_requests_hold_is_bounded_until_they_let_go():
    one = 3 * 256 * 256
    media = MediaLoader(
        VISION, access=MediaAccess(), pixel_limits=PixelLimits(), max_held_bytes=3 * one
    )
    held = await media.load([image_ref(256)] * 2)
    with pytest.raises(QueueFull):
        await media.load([image_ref(256)] * 2)
    with pytest.raises(BadRequest):
        await media.load([image_ref(256), MediaRef("image", "data:,", "a")])
    more = await media.load([image_ref(256)])  # what was refused holds nothing
    media.release(held)
    assert len(await media.load([image_ref(256)] * 2)) == 2
    media.release(more)
    await media.close()


async def test_a_client_that_goes_away(media: MediaLoader):
    await media.load([image_ref(64)])
    loads = [asyncio.create_task(media.load([image_ref(900)] * 4)) for _ in range(4)]
    await asyncio.sleep(0.05)
    for task in loads:
        task.cancel()
    assert (await media.load([image_ref(480)]))[0].pictures[0].width == 480
    assert all(task.cancelled() for task in loads)


async def test_files_the_operator_allows(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(encoded(noise(480, 480)))
    access = MediaAccess(local_root=tmp_path)
    media = MediaLoader(VISION, access=access, pixel_limits=PixelLimits(max_image=256 * 256))
    try:
        ref = MediaRef("image", f"file://{tmp_path}/x.png", "a")
        assert (await media.load([ref]))[0].pictures[0].width == 256
    finally:
        await media.close()


async def test_no_process_and_no_pipe_is_left_behind():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        media = MediaLoader(VISION, access=MediaAccess(), pixel_limits=PixelLimits())
        await media.load([image_ref(64)])
        await media.close()
    assert len(os.listdir("/proc/self/fd")) <= before
