"""The wall clock jumps, and no time-out notices: all of them count on the monotonic one."""

import ast
import asyncio
import itertools
import time
from pathlib import Path

import httpx
import pytest

from server.limits import Limits
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import build_server
from tests.server.http.asking import CHAT, Call, chat, say
from tests.server.http.live import get, post, serving

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[3]
YEAR_S = 365 * 24 * 3600.0
LIMITS = Limits(head_timeout_s=30.0, body_pause_s=30.0, request_timeout_s=30.0)


@pytest.fixture(params=["forward", "back", "to and fro"])
def jumping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the wall clock is a year from the last."""
    now = time.time()
    steps = {
        "forward": itertools.count(now, YEAR_S),
        "back": itertools.count(now, -1000.0),
        "to and fro": itertools.cycle([now + YEAR_S, now - YEAR_S]),
    }[request.param]
    monkeypatch.setattr(time, "time", lambda: next(steps))


@pytest.mark.usefixtures("jumping")
async def test_what_is_in_time_stays_in_time(validator: Validator, tokenizer: Tokenizer) -> None:
    async with serving(build_server(validator, tokenizer, limits=LIMITS)) as live:
        go_on = asyncio.Event()
        live.server.engine.will(go_on, *say(tokenizer, "Fine."))
        wire = await live.connect()
        whole = post(CHAT, chat(stream=True))
        await wire.send(whole[:30])  # a head, and then a body, that come in parts
        assert (await live.ask(get("/live"))).status == 200
        await wire.send(whole[30:-5])
        assert (await live.ask(get("/ready"))).status == 200
        await wire.send(whole[-5:])
        async with asyncio.timeout(10):
            await live.server.engine.became_active.wait()
        go_on.set()
        reply = await wire.reply()
        assert reply.status == 200
        assert b'"content":"."' in reply.body
        assert reply.body.endswith(b"data: [DONE]\n\n")
        await wire.close()


@pytest.mark.usefixtures("jumping")
async def test_what_takes_too_long_ends(validator: Validator, tokenizer: Tokenizer) -> None:
    server = build_server(validator, tokenizer, limits=Limits(request_timeout_s=0.05))
    server.engine.will(finish=None)
    call = Call(server.app, CHAT, chat())
    await call.done()
    assert (call.status, call.error["code"]) == (503, "request_timeout")
    assert len(server.engine.cancelled) == 1


@pytest.mark.usefixtures("jumping")
async def test_times_that_are_told_are_no_years(validator: Validator, tokenizer: Tokenizer) -> None:
    server = build_server(validator, tokenizer)
    server.engine.will(*say(tokenizer, "Fine."))
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = (await client.post(CHAT, json=chat(timings=True))).json()
    assert 0 <= answer["timings"]["total_ms"] < 60_000


def test_nobody_measures_with_the_wall_clock():
    """It tells the date of an answer, and the day to a template; nothing else."""
    allowed = {"server/answer.py", "server/site.py", "server/app.py", "server/__main__.py"}
    found = {
        str(path.relative_to(ROOT))
        for layer in ("server", "engine", "kernels")
        for path in (ROOT / layer).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("time", "time_ns")
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    }
    assert found == allowed
