"""The bytes behind a URL in a request: in it, on a host, or in a file.

Only what the URL carries itself is open to everybody. Hosts and files are for the operator to
allow. Work that takes long runs in threads.
"""

import asyncio
import binascii
import os
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from server.limits import DEFAULT_LIMITS, Limits
from server.media.access import MediaAccess
from server.media.fetch import Fetcher
from server.media.loaded import MediaKind
from server.media.unusable import Unusable, too_large

_MAX_HEAD_CHARS = 1024  # of a data: URL, before its comma
_NOT_A_FILE = "is not a file that this server may read"
_SPACE = b"\t\n\f\r "


class Source:
    def __init__(
        self, access: MediaAccess, fetcher: Fetcher, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._access = access
        self._fetcher = fetcher
        self._max_bytes: dict[MediaKind, int] = {
            "image": limits.max_image_bytes,
            "video": limits.max_video_bytes,
        }

    async def read(self, url: str, kind: MediaKind) -> bytes:
        """Raises Unusable."""
        max_bytes = self._max_bytes[kind]
        match url[:_MAX_HEAD_CHARS].partition(":")[0].lower():
            case "data":
                return await asyncio.to_thread(data_of, url, max_bytes)
            case "http" | "https":
                if not self._access.domains:
                    raise Unusable(
                        "is a web address, and this server fetches none: send a data: URL "
                        "(the operator can allow hosts with --allowed-media-domains)"
                    )
                return await self._fetcher.fetch(url, max_bytes)
            case "file":
                if self._access.local_root is None:
                    raise Unusable(
                        "is a file, and this server reads none: send a data: URL "
                        "(the operator can allow a directory with --allowed-local-media-path)"
                    )
                return await asyncio.to_thread(file_at, url, self._access.local_root, max_bytes)
            case _:
                raise Unusable("is not a data:, http: or https: URL")


def data_of(url: str, max_bytes: int) -> bytes:
    """The content of a `data:` URL. Raises Unusable."""
    comma = url.find(",", 0, _MAX_HEAD_CHARS)
    if comma < 0 or not url[:comma].rstrip().lower().endswith(";base64"):
        raise Unusable("is a data: URL without ;base64, before its data")
    try:
        text = url[comma + 1 :].encode("ascii")
        if b"%" in text:
            text = unquote_to_bytes(text)
        text = text.translate(None, _SPACE)
        if len(text) // 4 * 3 - text[-2:].count(b"=") > max_bytes:
            raise too_large(max_bytes)
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise Unusable("is not valid base64") from None
    if not data:
        raise Unusable("is empty")
    return data


def file_at(url: str, root: Path, max_bytes: int) -> bytes:
    """The content of a regular file below `root`, links followed. Raises Unusable."""
    try:
        parts = urlsplit(url)
        path = os.fsdecode(unquote_to_bytes(parts.path))
        if parts.netloc not in ("", "localhost") or not path.startswith("/"):
            raise Unusable(_NOT_A_FILE)
        real = Path(path).resolve(strict=True)
        if not real.is_relative_to(root.resolve(strict=True)):
            raise Unusable(_NOT_A_FILE)
        # Not blocking: a pipe is opened, and then refused.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unusable(_NOT_A_FILE)
            data = file.read(max_bytes + 1)
    except (OSError, ValueError, RuntimeError):  # missing, a NUL in it, a loop of links
        raise Unusable(_NOT_A_FILE) from None
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data
