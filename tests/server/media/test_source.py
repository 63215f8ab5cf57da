import base64
import os
from pathlib import Path

import pytest

from server.media.access import MediaAccess
from server.media.fetch import Fetcher
from server.media.source import Source, data_of, file_at
from server.media.unusable import Unusable

pytestmark = pytest.mark.anyio
DATA = bytes(range(256))
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"DATA:image/png;charset=utf-8;name=x.png;BASE64,{TEXT}",
        "data:image/png;base64," + "\r\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)),
        "data:image/png;base64, " + TEXT.replace("+", "%2B").replace("=", "%3D") + "\n",
    ],
)
def test_data_urls(url: str):
    assert data_of(url, 256) == DATA


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"data:image/png,{TEXT}", "without ;base64"),
        ("data:image/png;base64", "without ;base64"),
        (f"data:image/png;base64x,{TEXT}", "without ;base64"),
        ("data:" + "a" * 5000 + f";base64,{TEXT}", "without ;base64"),
        ("data:;base64,", "is empty"),
        ("data:;base64,AAA", "not valid base64"),
        ("data:;base64,AA==AA==", "not valid base64"),
        ("data:;base64,AA-_", "not valid base64"),
        ("data:;base64,AA\0A", "not valid base64"),
        ("data:;base64,AAé=", "not valid base64"),
        ("data:;base64,AA\ud800=", "not valid base64"),
        ("data:;base64,====", "not valid base64"),
    ],
)
def test_data_urls_that_are_none(url: str, reason: str):
    with pytest.raises(Unusable, match=reason):
        data_of(url, 256)


def test_data_is_measured_before_it_is_decoded():
    assert len(data_of("data:;base64," + "A" * (4 << 20), 3 << 20)) == 3 << 20
    with pytest.raises(Unusable, match="larger than 3 MiB"):
        data_of("data:;base64," + "!" * (4 << 20) + "AAA=", 3 << 20)


async def test_nothing_else_is_open_unless_the_operator_says_so(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(DATA)
    source = Source(MediaAccess(), Fetcher(MediaAccess()))
    with pytest.raises(Unusable, match="--allowed-media-domains"):
        await source.read("https://example.com/x.png", "image")
    with pytest.raises(Unusable, match="--allowed-local-media-path"):
        await source.read(f"file://{tmp_path}/x.png", "image")
    for url in ("ftp://example.com/x", "/etc/passwd", "x.png", "gopher://x", "", "javascript:1"):
        with pytest.raises(Unusable, match="is not a data:"):
            await source.read(url, "image")
    allowing = Source(MediaAccess(local_root=tmp_path), Fetcher(MediaAccess()))
    assert await allowing.read(f"file://{tmp_path}/x.png", "image") == DATA


def test_files_below_the_root(tmp_path: Path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "ä b.png").write_bytes(DATA)
    (root / "link.png").symlink_to(root / "sub" / "ä b.png")
    for name in ("sub/ä b.png", "sub/%C3%A4%20b.png", "link.png", "sub/../link.png"):
        assert file_at(f"file://{root}/{name}", root, 256) == DATA
    assert file_at(f"file://localhost{root}/link.png", root, 256) == DATA
    with pytest.raises(Unusable, match="larger than 255 bytes"):
        file_at(f"file://{root}/link.png", root, 255)


def test_files_that_are_not_for_clients(tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_bytes(DATA)
    (tmp_path / "root-2").write_bytes(DATA)
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    for url in (
        f"file://{tmp_path}/secret",
        f"file://{tmp_path}/root-2",
        f"file://{root}/../secret",
        f"file://{root}/%2e%2e/secret",
        f"file://{root}/link",
        f"file://{root}/up/secret",
        f"file://{root}/loop",
        f"file://{root}/pipe",
        f"file://{root}/none",
        f"file://{root}",
        f"file://{root}/x%00y",
        f"file://{root}/\ud800",
        f"file://example.com{root}/link",
        "file:secret",
        "file://[",
        "file:///" + "a" * 5000,
    ):
        with pytest.raises(Unusable, match="is not a file that this server may read"):
            file_at(url, root, 1 << 20)
