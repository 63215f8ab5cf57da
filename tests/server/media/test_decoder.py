"""The worker process: what it refuses, and what it survives."""

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from server.child import command
from server.errors import Unavailable
from server.media.decoder import WORKER, Decoder
from server.media.loaded import MediaKind
from server.media.pixel_limits import PixelLimits
from server.media.unusable import Unusable
from server.media.worker import MAX_MEMORY_BYTES
from tests.server.media.samples import VISION, encoded, grey_video, noise, png_header

pytestmark = pytest.mark.anyio

SMALL = encoded(noise(64, 64))


def pid_of(decoder: Decoder) -> int:
    process = decoder._worker._process
    assert process is not None
    return process.pid


async def test_images_and_videos(decoder: Decoder):
    (picture,) = await decoder.decode("image", SMALL)
    assert (picture.num_frames, picture.height, picture.width) == (1, 256, 256)
    assert len(picture.pixels) == 256 * 256 * 3
    assert picture.second is None
    video = await decoder.decode("video", grey_video(20, height=96))
    assert [(p.num_frames, p.height, p.width) for p in video] == [(2, 96, 64)] * 2
    assert [p.second for p in video] == [0.3, 1.6]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("image", SVG, "is not a PNG"),
        ("image", EPS, "is not a PNG"),
        ("image", encoded(noise(64, 64), "PDF"), "is not a PNG"),
        ("image", encoded(noise(64, 64), "TIFF"), "is not a PNG"),
        ("image", encoded(noise(64, 64), "PPM"), "is not a PNG"),
        ("image", b"8BPS\0\1" + bytes(100), "is not a PNG"),
        ("image", bytes(1000), "is not a PNG"),
        ("image", b"\x89PNG\r\n\x1a\n", "is not a PNG"),
        ("image", grey_video(4), "is not a PNG"),
        ("image", encoded(noise(64, 64))[:-60], "cannot be decoded"),
        ("image", encoded(noise(256, 256), "JPEG")[:2000], "cannot be decoded"),
        ("image", png_header(64, 64), "cannot be decoded"),
        ("image", png_header(60_000, 60_000), "more than 36 megapixels"),
        ("image", png_header(8_000, 8_000), "more than 36 megapixels"),
        ("image", png_header(12_001, 3_000), "more than 36 megapixels"),
        ("image", encoded(Image.new("L", (1, 300))), "less than 2 pixels"),
        ("image", encoded(Image.new("L", (300, 1))), "less than 2 pixels"),
        ("image", encoded(Image.new("L", (402, 2))), "more than 200 times"),
        ("image", encoded(Image.new("L", (3, 601)), "GIF"), "more than 200 times"),
        ("video", SMALL, "is not an MP4"),
        ("video", bytes(1000), "is not an MP4"),
        ("video", grey_video(40)[:1000], "cannot be decoded"),
        ("video", bytes(4) + b"ftypisom" + bytes(1000), "cannot be decoded"),
        ("video", b"\x1a\x45\xdf\xa3" + bytes(1000), "cannot be decoded"),
    ],
    ids=lambda value: value.split(" ")[0] if isinstance(value, str) else "",
)
async def test_refusals(decoder: Decoder, kind: MediaKind, data: bytes, reason: str):
    with pytest.raises(Unusable, match=reason):
        await decoder.decode(kind, data)
    assert len(await decoder.decode("image", SMALL)) == 1


async def test_the_longest_shapes_are_served(decoder: Decoder):
    for size in ((400, 2), (2, 2), (3, 600)):
        assert len(await decoder.decode("image", encoded(Image.new("L", size)))) == 1


async def test_the_largest_image_fits_into_the_bound_of_memory():
    decoder = Decoder(VISION, PixelLimits(), image_limit_s=120.0)
    try:
        image = Image.new("RGBA", (6000, 6000), (255, 0, 0, 128))
        (picture,) = await decoder.decode("image", encoded(image, compress_level=1))
        assert (picture.height, picture.width) == (4096, 4096)
        limits = Path(f"/proc/{pid_of(decoder)}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
        assert line.split()[3] == str(MAX_MEMORY_BYTES)
    finally:
        await decoder.close()


async def test_an_image_that_takes_too_long_is_ended_and_the_next_one_served():
    decoder = Decoder(VISION, PixelLimits(), image_limit_s=0.5, video_limit_s=120.0)
    try:
        video = grey_video(4)
        await decoder.decode("video", video)
        first = pid_of(decoder)
        os.kill(first, signal.SIGSTOP)  # as one that hangs
        before = time.monotonic()
        with pytest.raises(Unusable, match="takes too long to decode"):
            await decoder.decode("image", SMALL)
        assert time.monotonic() - before < 10
        assert len(await decoder.decode("video", video)) == 2
        assert pid_of(decoder) != first
    finally:
        await decoder.close()


async def test_a_worker_that_was_killed_costs_nobody_an_answer():
    decoder = Decoder(VISION, PixelLimits())
    try:
        await decoder.decode("image", SMALL)
        os.kill(pid_of(decoder), signal.SIGKILL)  # and not yet known to be gone
        assert len(await decoder.decode("image", SMALL)) == 1
    finally:
        await decoder.close()


async def test_whoever_goes_away_leaves_the_others_their_pictures():
    decoder = Decoder(VISION, PixelLimits())
    try:
        await decoder.decode("image", SMALL)
        os.kill(pid_of(decoder), signal.SIGSTOP)
        stuck = asyncio.create_task(decoder.decode("image", encoded(noise(512, 512))))
        waiting = asyncio.create_task(decoder.decode("image", SMALL))
        gone = asyncio.create_task(decoder.decode("image", encoded(noise(320, 320))))
        await asyncio.sleep(0.1)
        stuck.cancel()
        gone.cancel()
        (picture,) = await asyncio.wait_for(waiting, 60)
        assert (picture.height, picture.width) == (256, 256)
        for task in (stuck, gone):
            with pytest.raises(asyncio.CancelledError):
                await task
    finally:
        await decoder.close()


async def test_a_quick_goodbye_does_not_cost_the_worker():
    decoder = Decoder(VISION, PixelLimits())
    try:
        await decoder.decode("image", SMALL)
        process = pid_of(decoder)
        for side in (100, 200, 300):
            task = asyncio.create_task(decoder.decode("image", encoded(noise(side, side))))
            await asyncio.sleep(0)
            task.cancel()
        sizes = [(await decoder.decode("image", SMALL))[0].height for _ in range(3)]
        assert sizes == [256] * 3
        assert pid_of(decoder) == process
    finally:
        await decoder.close()


async def test_close_ends_what_is_under_way():
    decoder = Decoder(VISION, PixelLimits())
    await decoder.decode("image", SMALL)
    process = decoder._worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    tasks = [asyncio.create_task(decoder.decode("image", SMALL)) for _ in range(3)]
    await asyncio.sleep(0.1)
    await decoder.close()
    assert process.returncode == -signal.SIGKILL
    for task in tasks:
        with pytest.raises(Unavailable):
            await task
    with pytest.raises(Unavailable):
        await decoder.decode("image", SMALL)


def test_the_worker_ends_with_its_input():
    process = subprocess.Popen(command(WORKER), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.communicate(b"", timeout=60)
    assert process.returncode == 0
