"""Who may ask, and how much they may send: decided by headers and while the body comes in."""

import asyncio
import json

import pytest

from server.json_body import LARGE_BYTES, in_turn
from server.limits import Limits
from server.site import NUM_VALIDATION_THREADS
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import FakeServer, build_server
from tests.server.http.asking import CHAT, Call, chat, say

pytestmark = pytest.mark.anyio
JSON_TYPE = (b"content-type", b"application/json")


# Keys


async def ask_with_key(
    server: FakeServer, headers: list[tuple[bytes, bytes]], path: str = "/v1/models"
) -> Call:
    call = Call(server.app, path, method="GET", headers=headers)
    await call.done()
    return call


@pytest.fixture
async def locked(validator: Validator, tokenizer: Tokenizer) -> FakeServer:
    return build_server(validator, tokenizer, api_keys=("key-one", "clé"))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"key-one")],
        [(b"authorization", b"Basic key-one")],
        [(b"authorization", b"Bearer key-one key-one")],
        [(b"authorization", b"Bearer key-on")],
        [(b"authorization", b"Bearer \xff\xfe")],
        [(b"authorization", b"Bearer key-one"), (b"authorization", b"Bearer key-one")],
        [(b"x-api-key", b"key-one")],
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/openapi.json", "/nothing", "/version", "/ping"]
)
async def test_without_the_key(
    locked: FakeServer, headers: list[tuple[bytes, bytes]], path: str
) -> None:
    call = await ask_with_key(locked, headers, path)
    assert call.status == 401
    assert (call.error["type"], call.error["code"]) == ("authentication_error", "invalid_api_key")


@pytest.mark.parametrize("value", [b"Bearer key-one", b"bearer key-one", "Bearer clé".encode()])
async def test_with_a_key(locked: FakeServer, value: bytes) -> None:
    assert (await ask_with_key(locked, [(b"authorization", value)])).status == 200


async def test_probes_need_no_key(locked: FakeServer) -> None:
    for path in ("/live", "/ready", "/health"):
        assert (await ask_with_key(locked, [], path)).status == 200


@pytest.mark.parametrize(
    "raw_path", [b"/%6cive", b"/live/", b"//live", b"/v1/../live", b"/live%2f..%2fv1/models"]
)
async def test_the_raw_path_decides(locked: FakeServer, raw_path: bytes) -> None:
    """Even where a lenient decoder would see a probe."""
    call = Call(locked.app, "/live", method="GET", headers=[], raw_path=raw_path)
    await call.done()
    assert call.status == 401


async def test_metrics_can_be_open(validator: Validator, tokenizer: Tokenizer) -> None:
    server = build_server(validator, tokenizer, api_keys=("k",), open_metrics=True)
    assert (await ask_with_key(server, [], "/metrics")).status == 200


async def test_the_key_is_checked_before_the_body_is_read(locked: FakeServer) -> None:
    headers = [JSON_TYPE, (b"content-length", b"10")]
    call = Call(locked.app, CHAT, headers=headers)  # no body ever comes
    await call.done()
    assert call.status == 401
    assert call.header[b"connection"] == b"close"


def test_an_empty_key_is_refused(validator: Validator, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="empty"):
        build_server(validator, tokenizer, api_keys=("",))


# Bodies


@pytest.fixture
async def small(validator: Validator, tokenizer: Tokenizer) -> FakeServer:
    limits = Limits(max_body_bytes=1000, body_pause_s=0.05)
    return build_server(validator, tokenizer, limits=limits)


async def test_an_announced_body_is_refused_unread(small: FakeServer) -> None:
    call = Call(small.app, CHAT, headers=[JSON_TYPE, (b"content-length", b"1001")])
    await call.done()
    assert call.status == 413
    assert call.error["type"] == "invalid_request_error"
    assert call.header[b"connection"] == b"close"


async def test_a_chunked_body_is_counted_while_it_comes(small: FakeServer) -> None:
    call = Call(small.app, CHAT, headers=[JSON_TYPE, (b"transfer-encoding", b"chunked")])
    for _ in range(6):
        call.put(b" " * 200, more=True)
    await call.done()
    assert call.status == 413
    assert call.header[b"connection"] == b"close"


async def test_a_body_at_the_limit_is_read(small: FakeServer, tokenizer: Tokenizer) -> None:
    small.engine.will(*say(tokenizer, "x"))
    body = json.dumps(chat()).encode()
    call = Call(small.app, CHAT)
    call.put(body, more=True)
    call.put(b" " * (1000 - len(body)))
    await call.done()
    assert call.status == 200


async def test_large_bodies_hold_up_no_small_one(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    """However many there are: here they cannot even be parsed until the small one is answered."""
    server = build_server(validator, tokenizer)
    large = b'{"tokens":[]}' + b" " * LARGE_BYTES
    with in_turn(large):
        calls = [Call(server.app, "/detokenize") for _ in range(2 * NUM_VALIDATION_THREADS)]
        for call in calls:
            call.put(large)
        await asyncio.sleep(0)
        quick = Call(server.app, "/detokenize", {"tokens": []})
        await quick.done()
        assert quick.status == 200
    for call in calls:
        await call.done()
        assert call.status == 200


async def test_a_body_that_stops_coming(small: FakeServer) -> None:
    call = Call(small.app, CHAT, headers=[JSON_TYPE, (b"content-length", b"100")])
    call.put(b"{", more=True)
    await call.done()
    assert call.status == 408
    assert call.header[b"connection"] == b"close"
