"""Limits of the HTTP layer and aborts over real sockets."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.limits import Limits
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import build_server
from tests.server.http.asking import CHAT, chat, events, say
from tests.server.http.live import Live, Wire, get, post, serving

pytestmark = pytest.mark.anyio

LIMITS = Limits(
    max_body_bytes=200_000,
    head_timeout_s=0.2,
    body_pause_s=0.2,
    keep_alive_s=1,
    send_stall_s=0.3,
    max_connections=8,
)


@pytest.fixture
async def live(validator: Validator, tokenizer: Tokenizer) -> AsyncIterator[Live]:
    server = build_server(validator, tokenizer, limits=LIMITS)
    server.engine.default = None
    async with serving(server) as live:
        yield live


async def until(condition: Any, seconds: float = 1.0) -> None:
    """Poll: what we wait for happens in the kernel and the loop, without an event for us."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def check_usable(live: Live, tokenizer: Tokenizer) -> None:
    """The next good request gets its answer."""
    live.server.engine.will(*say(tokenizer, "Fine."))
    reply = await live.ask(post(CHAT, chat()))
    assert reply.status == 200
    assert b'"content":"Fine."' in reply.body


async def test_heads_just_inside_the_limits(live: Live) -> None:
    many = [f"x-{i}: v" for i in range(254)]
    assert (await live.ask(get("/live", *many))).status == 200
    assert (await live.ask(get("/live", "x-big: " + "v" * 65_000))).status == 200
    assert (await live.ask(get("/live?" + "q" * 60_000))).status == 200


@pytest.mark.parametrize(
    "head",
    [
        get("/live", *[f"x-{i}: v" for i in range(300)]),
        get("/live", "x-big: " + "v" * 70_000),
        get("/live", *[f"x-{i}: {'v' * 1000}" for i in range(70)]),
        get("/" + "p" * 70_000),
        get("/live", "x-big: " + "v" * 2_000_000),
        b"GET /live HTTP/1.1\r\nx-endless: " + b"v" * 3_000_000,
    ],
)
async def test_heads_over_the_limits(live: Live, tokenizer: Tokenizer, head: bytes) -> None:
    wire = await live.connect()
    sending = asyncio.create_task(wire.send(head))
    reply = await wire.reply()
    reply.check_error(431, 400)
    assert reply.headers["connection"] == "close"
    assert await wire.closed() == b""
    await asyncio.gather(sending, return_exceptions=True)
    await wire.close()
    await check_usable(live, tokenizer)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /live\r\n\r\n",
        b"GET /live HTTP/9.9\r\n\r\n",
        b"CONNECT test:80 HTTP/1.1\r\nhost: test:80\r\n\r\n",
        b"GET /live HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"POST /tokenize HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        b"POST /tokenize HTTP/1.1\r\ncontent-length: 5\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: gzip\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /tokenize HTTP/1.1\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n1;" + b"e" * 300_000,
        b"POST /tokenize HTTP/1.1\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\nx-trailer: " + b"t" * 300_000,
    ],
)
async def test_what_is_not_http(live: Live, tokenizer: Tokenizer, data: bytes) -> None:
    wire = await live.connect()
    sending = asyncio.create_task(wire.send(data))
    (await wire.reply()).check_error(400)
    await wire.closed()
    await asyncio.gather(sending, return_exceptions=True)
    await wire.close()
    await check_usable(live, tokenizer)


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b"host", 408),
        (b"transfer-encoding: gzip, chunked\r\n\r\n", 400),
        (b"a: b\r\n" * 300 + b"\r\n", 431),
    ],
)
async def test_what_the_connection_refuses_has_the_name_that_its_client_gave_it(
    live: Live, rest: bytes, status: int
) -> None:
    reply = await live.ask(b"GET /live HTTP/1.1\r\nX-Request-Id: mine-7\r\n" + rest)
    reply.check_error(status)
    assert reply.headers["x-request-id"] == "mine-7"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"no http\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nhost", 408),
        (get("/" + "p" * 70_000), 431),
    ],
)
async def test_what_the_connection_refuses_is_counted_and_logged(
    live: Live, caplog: pytest.LogCaptureFixture, data: bytes, status: int
) -> None:
    with caplog.at_level("INFO"):
        reply = await live.ask(data)
    reply.check_error(status)
    assert counted(live, "deltaserve:client_errors_total", f'status="{status}"') == 1
    assert counted(live, "deltaserve:requests_total", 'outcome="client_error"') == 1
    (line,) = [r.message for r in caplog.records if reply.headers["x-request-id"] in r.message]
    assert f" {status}," in line


async def test_connections_over_the_bound_are_counted_and_logged(
    validator: Validator, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(max_connections=0)
    async with serving(build_server(validator, tokenizer, limits=limits)) as live:
        with caplog.at_level("INFO"):
            reply = await live.ask(get("/v1/models"))
            error = reply.check_error(503)
        assert error["code"] == "too_many_connections"
        assert counted(live, "deltaserve:rejections_total", 'reason="too_many_connections"') == 1
        assert counted(live, "deltaserve:requests_total", 'outcome="rejected"') == 1
        found = [r.message for r in caplog.records if reply.headers["x-request-id"] in r.message]
        assert len(found) == 1
        assert "too_many_connections" in found[0]


def counted(live: Live, name: str, label: str) -> float:
    """A counter's value; 0 if the label's series is not there."""
    for line in live.server.metrics.render().decode().splitlines():
        if line.startswith(name + "{") and label in line:
            return float(line.rpartition(" ")[2])
    return 0.0


async def test_trailers_do_not_become_headers(live: Live, tokenizer: Tokenizer) -> None:
    wire = await live.connect()
    await wire.send(
        b"POST /tokenize HTTP/1.1\r\ncontent-type: application/json\r\n"
        b'transfer-encoding: chunked\r\n\r\nd\r\n{"prompt":"a"\r\n1\r\n}\r\n'
        b"0\r\nx-request-id: smuggled\r\n\r\n"
    )
    reply = await wire.reply()
    assert reply.status == 200
    assert reply.headers["x-request-id"] != "smuggled"
    await wire.close()


@pytest.mark.parametrize(
    "part", [b"", b"G", b"GET /live HTTP/1.1\r\n", b"GET /live HTTP/1.1\r\nx: y\r\n", b"\r\n\r\n"]
)
async def test_unfinished_heads_are_closed(live: Live, part: bytes) -> None:
    wire = await live.connect()
    await wire.send(part)
    rest = await wire.closed()
    assert rest == b"" or rest.startswith(b"HTTP/1.1 408 ")
    await wire.close()


async def test_a_dripping_head_is_closed(live: Live) -> None:
    wire = await live.connect()

    async def drip() -> None:
        while True:
            await wire.send(b"x-a: b\r\n")
            await asyncio.sleep(0.05)

    await wire.send(b"GET /live HTTP/1.1\r\n")
    dripping = asyncio.create_task(drip())
    assert (await wire.closed()).startswith(b"HTTP/1.1 408 ")
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)
    await wire.close()


async def test_a_head_has_its_own_time_on_a_used_connection(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    server = build_server(validator, tokenizer, limits=Limits(head_timeout_s=1.0))
    async with serving(server) as live:
        wire = await live.connect()
        await wire.send(get("/live"))
        assert (await wire.reply()).status == 200
        await asyncio.sleep(0.8)
        await wire.send(get("/live")[:10])
        await asyncio.sleep(0.4)
        await wire.send(get("/live")[10:])
        assert (await wire.reply()).status == 200
        await wire.close()


async def test_an_idle_connection_is_closed(live: Live) -> None:
    wire = await live.connect()
    for _ in range(2):
        await wire.send(get("/live"))
        assert (await wire.reply()).status == 200
    assert await wire.closed() == b""
    await wire.close()


async def test_a_body_that_pauses_too_long(live: Live) -> None:
    wire = await live.connect()
    head = post("/tokenize", {"prompt": "x" * 100})[:-50]
    await wire.send(head)
    reply = await wire.reply()
    reply.check_error(408)
    assert reply.headers["connection"] == "close"
    await wire.closed()
    await wire.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_too_big_still_reads_its_answer(
    live: Live, tokenizer: Tokenizer, chunked: bool
) -> None:
    """The connection lingers: a reset must not eat the 413 while the client still sends."""
    body = b" " * 5_000_000
    head = b"POST /tokenize HTTP/1.1\r\ncontent-type: application/json\r\n"
    if chunked:
        data = head + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(body) + body
    else:
        data = head + b"content-length: %d\r\n\r\n" % len(body) + body
    wire = await live.connect()
    sending = asyncio.create_task(wire.send(data))
    reply = await wire.reply()
    reply.check_error(413)
    assert reply.headers["connection"] == "close"
    await wire.closed()
    await asyncio.gather(sending, return_exceptions=True)
    await wire.close()
    await check_usable(live, tokenizer)


async def test_expect_continue_is_not_given_for_a_refused_body(live: Live) -> None:
    wire = await live.connect()
    await wire.send(
        b"POST /tokenize HTTP/1.1\r\ncontent-type: application/json\r\n"
        b"expect: 100-continue\r\ncontent-length: 999999999\r\n\r\n"
    )
    assert (await wire.reply()).status == 413
    await wire.close()


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_upgrades_are_not_taken(live: Live, tokenizer: Tokenizer, protocol: str) -> None:
    offer = ("connection: Upgrade, HTTP2-Settings", f"upgrade: {protocol}", "http2-settings: AA")
    wire = await live.connect()
    for _ in range(2):
        live.server.engine.will(*say(tokenizer, "Fine."))
        request = post(CHAT, chat(), *offer)
        await wire.send(request[:-10])
        await asyncio.sleep(0.02)
        await wire.send(request[-10:])
        reply = await wire.reply()
        assert reply.status == 200
        assert b'"content":"Fine."' in reply.body
    await wire.send(get("/live", *offer))
    assert (await wire.reply()).status == 200
    await wire.close()


async def test_connections_over_the_bound_get_503(live: Live, tokenizer: Tokenizer) -> None:
    async def serve_one(wire: Wire) -> None:
        await wire.send(get("/v1/models"))
        assert (await wire.reply()).status == 200

    await asyncio.sleep(0.05)  # the fixture's own connection is gone by now
    wires = [await live.connect() for _ in range(LIMITS.max_connections)]
    for wire in wires:
        await serve_one(wire)
    over = await live.connect()
    await over.send(get("/v1/models"))
    reply = await over.reply()
    error = reply.check_error(503)
    assert error["code"] == "too_many_connections"
    assert int(reply.headers["retry-after"]) > 0
    await over.closed()
    await over.close()
    assert (await live.ask(get("/live"))).status == 200  # probes get through
    for wire in wires:
        await wire.close()
    await asyncio.sleep(0.05)
    await check_usable(live, tokenizer)


def reset(wire: Wire) -> None:
    """Close with RST instead of FIN."""
    found: socket.socket = wire.writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.writer.transport.abort()


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("pipelined", [b"", get("/live"), post(CHAT, chat())])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("has_output", [False, True])
async def test_a_client_that_goes_away_is_noticed(
    live: Live,
    tokenizer: Tokenizer,
    how: str,
    pipelined: bytes,
    streamed: bool,
    has_output: bool,
) -> None:
    engine = live.server.engine
    steps = say(tokenizer, "abc", end=None) if has_output else []
    engine.will(*steps, finish=None)
    wire = await live.connect()
    await wire.send(post(CHAT, chat(stream=streamed)) + pipelined)
    await until(lambda: engine.num_active == 1)
    if how == "fin":
        wire.writer.close()
    else:
        reset(wire)
    await until(lambda: engine.num_active == 0)
    assert engine.cancelled == [engine.submitted[0].id]
    await until(lambda: live.server.lifecycle.num_in_flight == 0)
    assert len(engine.submitted) == 1


async def test_pipelined_requests_are_answered_in_order(live: Live, tokenizer: Tokenizer) -> None:
    texts = ["one", "two", "three"]
    for text in texts:
        live.server.engine.will(*say(tokenizer, text))
    wire = await live.connect()
    requests = b"".join(post(CHAT, chat("x" * 1000, stream=True)) for _ in texts)
    for i in range(0, len(requests), 1000):
        await wire.send(requests[i : i + 1000])
    for text in texts:
        reply = await wire.reply()
        chunks = events(reply.body)
        said = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        assert said == text
    await wire.send(get("/live"))
    assert (await wire.reply()).status == 200
    await wire.close()


async def test_garbage_behind_a_request_does_not_touch_its_answer(
    live: Live, tokenizer: Tokenizer
) -> None:
    go_on = asyncio.Event()
    live.server.engine.will(go_on, *say(tokenizer, "Fine."))
    wire = await live.connect()
    await wire.send(post(CHAT, chat(stream=True)) + b"\x00\x01garbage\r\n\r\n")
    await until(lambda: live.server.engine.num_active == 1)
    go_on.set()
    reply = await wire.reply()
    assert reply.status == 200
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert await wire.closed() == b""
    await wire.close()


async def test_a_slow_reader_is_cut_off_and_others_are_not(
    validator: Validator, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """On a unix socket, whose kernel buffers are small."""
    server = build_server(validator, tokenizer, limits=LIMITS)
    engine = server.engine
    async with serving(server, uds=str(tmp_path / "s")) as live:
        engine.will(*[tuple(tokenizer.encode("word " * 100))] * 4000, finish=None)
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(tmp_path / "s"))
            reader.sendall(post(CHAT, chat(stream=True)))
            await until(lambda: engine.num_active == 1)
            await check_usable(live, tokenizer)
            await until(lambda: engine.num_active == 0, seconds=20)
        assert engine.cancelled == [engine.submitted[0].id]
        await check_usable(live, tokenizer)


async def test_probes_answer_under_load(live: Live, tokenizer: Tokenizer) -> None:
    engine = live.server.engine
    wires = [await live.connect() for _ in range(5)]
    for wire in wires:
        engine.will(*say(tokenizer, "word " * 500), finish=None)
        await wire.send(post(CHAT, chat(stream=True)))
    await until(lambda: engine.num_active == 5)
    async with asyncio.timeout(1):
        for path in ("/live", "/ready", "/health"):
            assert (await live.ask(get(path))).status == 200
    for wire in wires:
        await wire.close()
    await until(lambda: engine.num_active == 0)
