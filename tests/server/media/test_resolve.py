"""Look-ups, by a name server that answers when the test says so."""

import asyncio
import threading
from typing import Any

import pytest

from server.media.resolve import MAX_AT_ONCE, Resolver

pytestmark = pytest.mark.anyio


class NameServer:
    """Answers once `answers` is set, and knows no name that begins with `no`."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.most_at_once = 0
        self._num_at_once = 0
        self._lock = threading.Lock()

    def __call__(self, host: str, port: int) -> list[tuple[Any, ...]]:
        with self._lock:
            self._num_at_once += 1
            self.most_at_once = max(self.most_at_once, self._num_at_once)
        assert self.answers.wait(10)
        with self._lock:
            self._num_at_once -= 1
        if host.startswith("no"):
            raise OSError("unknown")
        return [(0, 1, 6, "", (address, port)) for address in ("192.0.2.1", "::1", "192.0.2.1")]


async def test_addresses_in_order_and_none_twice():
    names = NameServer()
    names.answers.set()
    assert await Resolver(names)("x.org", 443) == ["192.0.2.1", "::1"]
    with pytest.raises(OSError, match="unknown"):
        await Resolver(names)("no.org", 443)


async def test_an_address_is_its_own():
    assert await Resolver()("127.0.0.1", 80) == ["127.0.0.1"]


async def test_slow_look_ups_hold_no_other_threads_and_are_bounded():
    names = NameServer()
    resolve = Resolver(names)
    asked = [asyncio.create_task(resolve("x.org", 443)) for _ in range(3 * MAX_AT_ONCE)]
    try:
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "read"), 5) == "read"
    finally:
        names.answers.set()
    assert all(await asyncio.gather(*asked))
    assert names.most_at_once <= MAX_AT_ONCE
