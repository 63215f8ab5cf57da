"""Encoded images -> RGB pixels of the size the tower takes. Runs in the worker process.

The formats are a short list, told apart by their first bytes and never by what a client calls them.
Sides are read from the header and checked before anything is decoded. Colours become RGB as in the
checkpoints' own preprocessing: what is transparent lies on white, in palettes too.
"""

import io

# Named here because Pillow would load a plugin for every format it knows.
from PIL import (
    BmpImagePlugin,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    ExifTags,
    GifImagePlugin,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    Image,
    JpegImagePlugin,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    PngImagePlugin,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    WebPImagePlugin,  # noqa: F401  # pyright: ignore[reportUnusedImport]
)

from server.limits import DEFAULT_LIMITS, Limits
from server.media.loaded import Picture
from server.media.resize import image_size
from server.media.unusable import Unusable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

_TURNS = {  # what undoes an EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    data: bytes,
    *,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    limits: Limits = DEFAULT_LIMITS,
) -> Picture:
    """The image, or the first frame of an animation. Raises Unusable, or what Pillow does."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_many_pixels(limits) from None
    except Image.UnidentifiedImageError:
        raise Unusable("is not a PNG, JPEG, WebP, GIF or BMP image") from None
    check_sides(image.height, image.width, limits)
    image.load()
    image = _upright(as_rgb(image), _orientation(image))
    height, width = image_size(
        image.height, image.width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels
    )
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return Picture(num_frames=1, height=height, width=width, pixels=resized.tobytes())


def check_sides(height: int, width: int, limits: Limits) -> None:
    """Raises Unusable for what is too large, too small or too long."""
    shorter, longer = sorted((height, width))
    if shorter < limits.min_image_side or longer > limits.max_image_aspect * shorter:
        raise Unusable(
            f"is less than {limits.min_image_side} pixels wide or high, or more than "
            f"{limits.max_image_aspect} times as long as wide"
        )
    if height * width > limits.max_image_pixels:
        raise _too_many_pixels(limits)


def _too_many_pixels(limits: Limits) -> Unusable:
    return Unusable(f"has more than {limits.max_image_pixels / 1_000_000:g} megapixels")


def as_rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # notes that cannot be read raise anything; the picture is there all the same
        return None


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    turn = next((turn for number, turn in _TURNS.items() if number == orientation), None)
    return image if turn is None else image.transpose(turn)
