"""Pictures and videos for the tests, made on the spot."""

import base64
import io
import struct
import zlib

import av
import numpy as np
from PIL import Image

from engine import VisionConfig

VISION = VisionConfig(
    depth=1,
    hidden_size=8,
    num_heads=1,
    intermediate_size=8,
    in_channels=3,
    patch_size=16,
    temporal_patch_size=2,
    spatial_merge_size=2,
    num_position_embeddings=4,
    image_token_id=1,
    video_token_id=2,
    vision_start_token_id=3,
    vision_end_token_id=4,
)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Coarse noise, the same each time."""
    bands = len(mode)
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, bands), dtype=np.uint8)
    image = Image.fromarray(coarse if bands > 1 else coarse[..., 0], mode)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends after saying how large it is."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (head, data)
    )


def grey_video(
    num_frames: int,
    *,
    rate: int = 10,
    width: int = 64,
    height: int = 64,
    format: str = "mp4",
    codec: str = "libx264",
) -> bytes:
    """Frame i is grey: twice i, as bright as it gets; in the upper left corner it is white."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 8_000_000
        for i in range(num_frames):
            pixels = np.full((height, width, 3), min(2 * i, 200), dtype=np.uint8)
            pixels[: height // 4, : width // 4] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()
