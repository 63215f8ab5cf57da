"""Limits of images and videos that the operator set."""

import base64
import io

import pytest
from PIL import Image

from server.errors import BadRequest
from server.limits import Limits
from server.media import MediaAccess, MediaLoader, MediaRef, PixelLimits
from tests.server.media.samples import VISION

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def image(width: int, height: int) -> MediaRef:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "blue").save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return MediaRef("image", f"data:image/png;base64,{data}", "here")


@pytest.mark.parametrize(
    ("limits", "refs", "said"),
    [
        (Limits(max_images=1), [image(8, 8)] * 2, "more than 1 images"),
        (Limits(max_videos=0), [MediaRef("video", "data:", "here")], "more than 0 videos"),
        (Limits(max_image_bytes=10), [image(8, 8)], "larger than 10 bytes"),
        (Limits(max_image_pixels=100), [image(20, 20)], "more than 0.0001 megapixels"),
        (Limits(min_image_side=9), [image(8, 20)], "less than 9 pixels"),
        (Limits(max_image_aspect=3), [image(8, 40)], "more than 3 times"),
    ],
)
async def test_media_over_the_limits(limits: Limits, refs: list[MediaRef], said: str) -> None:
    loader = MediaLoader(VISION, access=MediaAccess(), pixel_limits=PixelLimits(), limits=limits)
    try:
        with pytest.raises(BadRequest, match=said):
            await loader.load(refs)
    finally:
        await loader.close()
