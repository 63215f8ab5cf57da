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

from server.media.loaded import Picture
from server.media.resize import image_size
from server.media.unusable import EXTREME_SIDES, Unusable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 36_000_000
MIN_SIDE = 2
MAX_ASPECT = 200

_TURNS = {  # what undoes an EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TOO_MANY_PIXELS = f"has more than {MAX_PIXELS // 1_000_000} megapixels"


def read_image(data: bytes, *, factor: int, min_pixels: int, max_pixels: int) -> Picture:
    """The image, or the first frame of an animation. Raises Unusable, or what Pillow does."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Unusable(_TOO_MANY_PIXELS) from None
    except Image.UnidentifiedImageError:
        raise Unusable("is not a PNG, JPEG, WebP, GIF or BMP image") from None
    check_sides(image.height, image.width)
    image.load()
    image = _upright(as_rgb(image), _orientation(image))
    height, width = image_size(
        image.height, image.width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels
    )
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return Picture(num_frames=1, height=height, width=width, pixels=resized.tobytes())


def check_sides(height: int, width: int) -> None:
    """Raises Unusable for what is too large, too small or too long."""
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        raise Unusable(EXTREME_SIDES)
    if height * width > MAX_PIXELS:
        raise Unusable(_TOO_MANY_PIXELS)


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
