"""What `read_image` makes of good images. Bad ones are in test_decoder: they need the worker."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from server.media.image import read_image
from server.media.loaded import Picture
from tests.server.media.samples import encoded, noise

LIMITS = {"factor": 32, "min_pixels": 65_536, "max_pixels": 1_000_000}


def array_of(picture: Picture) -> np.ndarray:
    shape = (picture.num_frames, picture.height, picture.width, 3)
    return np.frombuffer(picture.pixels, dtype=np.uint8).reshape(shape)


def reference(image: Image.Image) -> np.ndarray:
    """[height, width, 3] as the checkpoints' preprocessor has it before it normalises."""
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 65_536, "longest_edge": 1_000_000},
        patch_size=16,
        merge_size=2,
        do_rescale=False,
        do_normalize=False,
    )
    features = processor(images=image, return_tensors="np")
    _, rows, columns = features["image_grid_thw"][0]
    blocks = features["pixel_values"].reshape(rows // 2, columns // 2, 2, 2, 3, 2, 16, 16)
    pixels = blocks[:, :, :, :, :, 0].transpose(0, 2, 5, 1, 3, 6, 4)
    return pixels.reshape(rows * 16, columns * 16, 3).astype(np.uint8)


@pytest.mark.parametrize(
    ("width", "height"), [(640, 480), (100, 100), (333, 77), (1500, 1100), (2, 300), (256, 256)]
)
def test_pixels_as_the_checkpoints_preprocessor(width: int, height: int):
    image = noise(width, height)
    picture = read_image(encoded(image), **LIMITS)
    expected = reference(image)
    assert (picture.num_frames, picture.second) == (1, None)
    assert np.array_equal(array_of(picture)[0], expected)


def transparent_palette() -> Image.Image:
    image = noise(300, 300).quantize(8)
    image.info["transparency"] = 3
    return image


@pytest.mark.parametrize(
    "image",
    [noise(300, 280, "RGBA"), noise(300, 280, "LA"), noise(300, 280, "L"), transparent_palette()],
    ids=["RGBA", "LA", "L", "P"],
)
def test_what_is_transparent_lies_on_white(image: Image.Image):
    picture = read_image(encoded(image), **LIMITS)
    assert np.array_equal(array_of(picture)[0], reference(image))


def test_nothing_but_transparency_is_white():
    clear = Image.new("RGBA", (300, 300), (10, 20, 30, 0))
    assert set(read_image(encoded(clear), **LIMITS).pixels) == {255}


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "JPEG", "GIF"])
def test_formats(format: str):
    image = noise(256, 256)
    options = {"lossless": True} if format == "WEBP" else {}
    pixels = array_of(read_image(encoded(image, format, **options), **LIMITS))[0]
    if format in ("PNG", "WEBP", "BMP"):
        assert np.array_equal(pixels, np.asarray(image))
    else:
        assert np.abs(pixels.astype(int) - np.asarray(image)).mean() < 8


def test_the_first_frame_of_an_animation():
    red, blue = (Image.new("RGB", (256, 256), color) for color in ("red", "blue"))
    for format in ("GIF", "PNG", "WEBP"):
        data = encoded(red, format, save_all=True, append_images=[blue], lossless=True)
        assert tuple(array_of(read_image(data, **LIMITS))[0, 128, 128]) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(10))
def test_turned_as_the_camera_says(orientation: int):
    image = noise(512, 320)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(image, exif=exif)
    pixels = array_of(read_image(data, **LIMITS))[0]
    assert np.array_equal(pixels, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert pixels.shape == ((512, 320, 3) if 5 <= orientation <= 8 else (320, 512, 3))


def test_notes_that_cannot_be_read_cost_nobody_a_picture():
    image = noise(256, 256)
    for notes in (b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"MM"):
        assert read_image(encoded(image, exif=notes), **LIMITS).pixels == image.tobytes()
