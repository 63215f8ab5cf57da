"""From listening early to the exit code, with real signals and sockets."""

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from engine import EngineDied
from server.serving import serve
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import CHAT, chat, events, say
from tests.server.http.live import get, post, serving

pytestmark = pytest.mark.anyio


async def active(server: FakeServer) -> None:
    async with asyncio.timeout(5):
        while not server.engine.num_active:
            await asyncio.sleep(0.005)


async def test_it_listens_before_the_engine_is_ready(
    server: FakeServer, tokenizer: Tokenizer
) -> None:
    go = asyncio.Event()
    async with serving(server, start_when=go) as live:
        assert (await live.ask(get("/live"))).status == 200
        for request in (get("/health"), get("/ready"), post(CHAT, chat())):
            reply = await live.ask(request)
            assert reply.check_error(503)["code"] == "starting"
            assert int(reply.headers["retry-after"]) > 0
        assert live.events == ["start"]
        go.set()
        async with asyncio.timeout(5):
            while (await live.ask(get("/health"))).status != 200:
                await asyncio.sleep(0.01)
        server.engine.will(*say(tokenizer, "Fine."))
        assert (await live.ask(post(CHAT, chat()))).status == 200
        assert live.events == ["start", "ready"]


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_with_0(
    server: FakeServer, tokenizer: Tokenizer, kind: signal.Signals
) -> None:
    go_on = asyncio.Event()
    async with serving(server) as live:
        server.engine.will(go_on, *say(tokenizer, "Fine."))
        wire = await live.connect()
        await wire.send(post(CHAT, chat(stream=True)))
        await active(server)
        os.kill(os.getpid(), kind)
        await asyncio.sleep(0.05)
        for request in (get("/health"), get("/ready"), post(CHAT, chat())):
            reply = await live.ask(request)
            assert reply.check_error(503)["code"] == "draining"
            assert int(reply.headers["retry-after"]) > 0
        assert (await live.ask(get("/live"))).status == 200
        go_on.set()
        reply = await wire.reply()
        assert events(reply.body)
        await wire.close()
        assert await live.code() == 0
        assert live.events == ["start", "ready", "stop"]


async def test_idle_it_ends_at_once(server: FakeServer) -> None:
    async with serving(server, shutdown_timeout_s=60) as live:
        idle = await live.connect()
        await idle.send(get("/live"))
        assert (await idle.reply()).status == 200
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(3):
            assert await live.code() == 0
        await idle.close()


async def test_what_outlasts_the_drain_ends_with_an_error(
    server: FakeServer, tokenizer: Tokenizer
) -> None:
    async with serving(server, shutdown_timeout_s=0.1) as live:
        server.engine.will(*say(tokenizer, "abc", end=None), finish=None)
        streamed = await live.connect()
        await streamed.send(post(CHAT, chat(stream=True)))
        await active(server)
        server.engine.will(finish=None)
        whole = await live.connect()
        await whole.send(post(CHAT, chat()))
        while server.engine.num_active < 2:
            await asyncio.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await whole.reply()).check_error(503)["code"] == "draining"
        body = (await streamed.reply()).body
        last = json.loads(body.split(b"\n\n")[-2].removeprefix(b"data: "))
        assert last["error"]["code"] == "draining"
        assert b"[DONE]" not in body
        assert await live.code() == 0
        assert server.engine.num_active == 0
        for wire in (streamed, whole):
            await wire.close()


async def test_a_second_signal_ends_it_at_once(server: FakeServer) -> None:
    async with serving(server, shutdown_timeout_s=60) as live:
        server.engine.will(finish=None)
        wire = await live.connect()
        await wire.send(post(CHAT, chat()))
        await active(server)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        assert live.exit is not None
        assert not live.exit.done()
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(2):
            assert await live.code() == 128 + signal.SIGINT
        assert live.events[-1] == "stop"
        await wire.close()


async def test_a_signal_while_starting_stops_the_start(server: FakeServer) -> None:
    async with serving(server, start_when=asyncio.Event()) as live:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await live.code() == 0
        assert live.events == ["start", "stop"]


@pytest.mark.parametrize("error", [EngineDied("no weights"), ValueError("no weights")])
async def test_a_failed_start_is_one_line_and_code_1(
    server: FakeServer, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async with serving(server, start_error=error) as live:
        assert await live.code() == 1
    assert live.events == ["start", "stop"]
    lines = [r.getMessage() for r in caplog.records if r.name == "deltaserve.serving"]
    assert lines == ["cannot start: no weights"]


async def test_a_fault_that_cannot_be_repaired_ends_with_code_1(server: FakeServer) -> None:
    async with serving(server) as live:
        server.lifecycle.fail("the engine died too often")
        assert await live.code() == 1
        assert live.events[-1] == "stop"


async def test_a_taken_port_is_one_line_and_code_1(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def nothing() -> None:
        raise AssertionError("the engine must not start")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = await serve(
            server.app,
            lifecycle=server.lifecycle,
            metrics=server.metrics,
            start=nothing,
            stop=nothing,
            port=port,
        )
    assert code == 1
    assert f"127.0.0.1:{port}" in caplog.text


async def test_a_unix_socket(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "s"
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))
    left_behind.close()
    listening = asyncio.Event()

    async def nothing() -> None:
        pass

    serving_task = asyncio.create_task(
        serve(
            server.app,
            lifecycle=server.lifecycle,
            metrics=server.metrics,
            start=nothing,
            stop=nothing,
            uds=str(path),
            on_listening=lambda _: listening.set(),
        )
    )
    await asyncio.wait_for(listening.wait(), 10)
    async with asyncio.timeout(5):
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(path))
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
    writer.write(get("/live", "connection: close"))
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200 ")
    writer.close()
    server.lifecycle.ended.set()
    assert await asyncio.wait_for(serving_task, 10) == 0
    assert not path.exists()
