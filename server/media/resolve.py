"""Looks host names up, on threads that do nothing else.

A look-up takes as long as a name server likes, also after nobody waits for it any more. So it holds
one of a few threads of its own: what else runs in threads never waits for it, only other look-ups.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MAX_AT_ONCE = 16

LookUp = Callable[[str, int], Sequence[tuple[Any, ...]]]


def _look_up(host: str, port: int) -> Sequence[tuple[Any, ...]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Resolver:
    """`look_up` is an argument for tests."""

    def __init__(self, look_up: LookUp = _look_up) -> None:
        self._look_up = look_up
        self._threads = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="look-up")

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of a host, best first. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._look_up, host, port)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))
