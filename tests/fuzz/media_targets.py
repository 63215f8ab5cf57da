"""Fuzzing of what clients send as media: see `targets.py`.

url           addresses to fetch: what is resolved is an allowed host, for another parser too
image, video  files with bytes changed, cut off and moved: pictures of right sizes, or a refusal
"""

import asyncio
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from server.media.access import MediaAccess
from server.media.fetch import Fetcher
from server.media.loaded import MediaKind
from server.media.pixel_limits import FrameSampling
from server.media.source import data_of
from server.media.unusable import Unusable
from server.media.worker import Ask, pictures_of
from tests.fuzz.choices import Choices
from tests.server.media.samples import data_url, encoded, grey_video, noise

ALLOWED = "ok.example"
URL_PIECES = (
    "http://", "https://", "//", "/", ":", "@", "#", "?", "%", "%2e", "%00", "\\", ".", "..", "[",
    "]", "[::1]", "127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "localhost", ALLOWED,
    f"a.{ALLOWED}", "evil.example", "80", ":80", "443", "x", " ", "\t", "\n", "é", "。", "①",
    "user", "-", "_",
)  # fmt: skip
MAX_PIECES = 24
FACTOR = 32


def url(data: bytes) -> None:
    choices = Choices(data)
    text = choices.one_of(("http://", "https://", ""))
    for _ in range(MAX_PIECES):
        if choices.is_empty:
            break
        text += choices.one_of(URL_PIECES)
    resolved: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        return []

    fetcher = Fetcher(MediaAccess((ALLOWED,)), resolve=resolve)
    try:
        asyncio.run(fetcher.fetch(text, 1000))
    except Unusable:
        pass
    else:
        raise AssertionError("nothing has an address here")
    for host in resolved:
        assert host.removesuffix(".") == ALLOWED or host.removesuffix(".").endswith(f".{ALLOWED}")
        if text.isascii():  # other names are put into ASCII first
            assert urlsplit(text).hostname == host, "two parsers read two hosts"


def image(data: bytes) -> None:
    choices = Choices(data)
    sample = choices.one_of(_images())
    file = _changed(sample, choices)
    try:  # the same bytes come out of the URL that carries them
        assert data_of(data_url(file), len(file)) == file
    except Unusable:
        assert not file
    _check("image", file)


def video(data: bytes) -> None:
    choices = Choices(data)
    _check("video", _changed(choices.one_of(_videos()), choices))


@cache
def _images() -> tuple[bytes, ...]:
    small = noise(20, 14)
    formats: tuple[tuple[str, dict[str, Any]], ...] = (
        ("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {}), ("PNG", {"bits": 4}),
        ("WEBP", {"lossless": True}), ("JPEG", {"progressive": True}),
    )  # fmt: skip
    alpha = encoded(noise(16, 16, "RGBA"))
    return (*(encoded(small, name, **options) for name, options in formats), alpha, b"")


@cache
def _videos() -> tuple[bytes, ...]:
    return (
        grey_video(6, width=32, height=32),
        grey_video(4, width=32, height=32, format="webm", codec="libvpx"),
    )


def _changed(sample: bytes, choices: Choices) -> bytes:
    file = bytearray(sample)
    while not choices.is_empty and file:
        place = (choices.number(256) * 256 + choices.number(256)) % len(file)
        match choices.number(4):
            case 0:
                file[place] = choices.number(256)
            case 1:
                file[place:] = b""
            case 2:
                file[place : place + 1 + choices.number(16)] = b""
            case _:
                file[place:place] = file[: choices.number(64)]
    return bytes(file)


def _check(kind: MediaKind, file: bytes) -> None:
    ask = Ask(
        kind,
        file,
        temporal_factor=2,
        factor=FACTOR,
        min_pixels=1024,
        max_pixels=65_536,
        sampling=FrameSampling(),
    )
    try:
        pictures = pictures_of(ask)
    except Unusable:
        return
    assert pictures
    for picture in pictures:
        assert picture.num_frames == (1 if kind == "image" else 2)
        assert picture.height % FACTOR == picture.width % FACTOR == 0
        assert len(picture.pixels) == picture.num_frames * picture.height * picture.width * 3
        assert (picture.second is None) == (kind == "image")
