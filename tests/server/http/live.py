"""The application on a real socket: `serve` with a fake engine, and a raw HTTP client."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from server.serving import serve
from tests.fakes import FakeServer


@dataclass
class Live:
    """A served application. `events` records what `serve` did with the engine, in order."""

    server: FakeServer
    port: int = 0
    uds: str | None = None
    events: list[str] = field(default_factory=list)
    exit: "asyncio.Task[int] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def code(self) -> int:
        assert self.exit is not None
        return await asyncio.wait_for(self.exit, 20)

    async def connect(self) -> "Wire":
        if self.uds is not None:
            return Wire(*await asyncio.open_unix_connection(self.uds))
        return Wire(*await asyncio.open_connection("127.0.0.1", self.port))

    async def ask(self, data: bytes) -> "Reply":
        """One request on a connection of its own, which is closed afterwards."""
        wire = await self.connect()
        try:
            await wire.send(data)
            return await wire.reply()
        finally:
            await wire.close()


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def check_error(self, *statuses: int) -> dict[str, Any]:
        assert self.status in statuses, (self.status, self.body)
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        found = json.loads(self.body)
        assert set(found) == {"error"}
        assert set(found["error"]) == {"message", "type", "param", "code"}
        return found["error"]


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> Reply:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 15)
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in self.chunks()])
        else:
            length = int(headers.get("content-length", 0))
            body = await asyncio.wait_for(self.reader.readexactly(length), 15)
        return Reply(int(first.split(" ")[1]), headers, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            size = int(await asyncio.wait_for(self.reader.readline(), 15), 16)
            chunk = await asyncio.wait_for(self.reader.readexactly(size + 2), 15)
            if not size:
                return
            yield chunk[:-2]

    async def closed(self) -> bytes:
        """Wait until the server closed; whatever came before that."""
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(self.reader.read(), 15)
        return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def post(path: str, body: dict[str, Any], *headers: str) -> bytes:
    """A POST request as bytes."""
    data = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: test",
        "content-type: application/json",
        f"content-length: {len(data)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: test", *headers, "", ""]).encode()


@contextlib.asynccontextmanager
async def serving(
    server: FakeServer,
    *,
    uds: str | None = None,
    shutdown_timeout_s: float = 10.0,
    start_when: asyncio.Event | None = None,
    start_error: Exception | None = None,
) -> AsyncIterator[Live]:
    """Serve on a free port; ends the server unless the test did."""
    live = Live(server, uds=uds)
    is_listening = asyncio.Event()

    async def start() -> None:
        live.events.append("start")
        if start_when is not None:
            server.engine.state = "starting"
            await start_when.wait()
            server.engine.state = "ready"
        if start_error is not None:
            raise start_error

    async def stop() -> None:
        live.events.append("stop")

    def on_listening(address: str) -> None:
        live.port = 0 if uds else int(address.rpartition(":")[2])
        is_listening.set()

    live.exit = asyncio.create_task(
        serve(
            server.app,
            lifecycle=server.lifecycle,
            metrics=server.metrics,
            start=start,
            stop=stop,
            port=0,
            uds=uds,
            limits=server.limits,
            shutdown_timeout_s=shutdown_timeout_s,
            on_listening=on_listening,
            on_ready=lambda: live.events.append("ready"),
        )
    )
    await asyncio.wait_for(is_listening.wait(), 15)
    while True:  # uvicorn takes the socket a moment later
        try:
            await (await live.connect()).close()
            break
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
    try:
        yield live
    finally:
        server.lifecycle.ended.set()
        await live.code()
