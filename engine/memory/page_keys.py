"""Keys of prompt pages: two prompts share a key where all up to that page's end is equal.

    key[i] = blake2b(key[i - 1], tokens of page i, digests of the pictures that begin in it)

and before the first page stands the request's salt. The hash is keyed by random bytes of the
process, so nobody outside can search for two prompts with one key, and 256 bits long, so nobody
will find them by chance. Placeholder tokens say how large a picture is and not what is on it;
pages behind it differ with it, because the chain passes through the page where it begins.
"""

import secrets
from array import array
from hashlib import blake2b

from engine.plan import PAGE_TOKENS
from engine.request import Request

_BYTES = 32


class PageKeys:
    def __init__(self, seed: bytes | None = None) -> None:
        """`seed`, at most 64 bytes, makes keys that can be told beforehand; random without it."""
        self._seed = secrets.token_bytes(_BYTES) if seed is None else seed

    def of(self, request: Request) -> list[bytes]:
        """Of each page that a cached prefix may cover: full, and without the prompt's last token.

        That token has to be computed in any case, for what follows it.
        """
        num_pages = (len(request.prompt_ids) - 1) // PAGE_TOKENS
        if not num_pages:
            return []
        tokens = array("q", request.prompt_ids[: num_pages * PAGE_TOKENS]).tobytes()
        width = len(tokens) // num_pages
        pictures: dict[int, bytes] = {}
        for one in request.media:
            page = one.start // PAGE_TOKENS
            pictures[page] = pictures.get(page, b"") + one.start.to_bytes(8, "little") + one.digest
        salt = "" if request.cache_salt is None else "salt:" + request.cache_salt
        key = self._hash(salt.encode("utf-8", "surrogatepass"))
        keys: list[bytes] = []
        for page in range(num_pages):
            key = self._hash(
                key + tokens[page * width : (page + 1) * width] + pictures.get(page, b"")
            )
            keys.append(key)
        return keys

    def _hash(self, data: bytes) -> bytes:
        return blake2b(data, digest_size=_BYTES, key=self._seed).digest()
