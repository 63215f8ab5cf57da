"""The engine process and its client: streams, cancels, refusals, and every way to die."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from engine.client import EngineStats
from engine.config import EngineConfig
from engine.errors import (
    EngineDied,
    EngineStarting,
    GrammarStuck,
    QueueFull,
    QueueTimeout,
    RequestFailed,
    RequestTooLong,
    StreamTooSlow,
)
from engine.link import EngineLink
from engine.process import EngineProcess
from engine.request import FinishReason, Media, Request
from engine.unread import UnreadBounds
from tests.engine import fake_worker
from tests.engine.simulation import solo_run
from tests.engine.test_scheduler import make_request

COMMAND = (sys.executable, str(Path(fake_worker.__file__)))


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


@asynccontextmanager
async def started(
    *,
    max_waiting: int = 100,
    queue_timeout_s: float = 60.0,
    stall_limit_s: float = 60.0,
    on_stats: Callable[[EngineStats], None] | None = None,
    on_give_up: Callable[[], None] | None = None,
    on_started: Callable[[str], None] | None = None,
    on_gone: Callable[[str], None] | None = None,
    unread_bounds: UnreadBounds | None = None,
) -> AsyncIterator[EngineProcess]:
    config = EngineConfig(
        model_dir="", num_real_tokens=97, max_waiting=max_waiting, queue_timeout_s=queue_timeout_s
    )
    engine = EngineProcess(
        config,
        command=COMMAND,
        stall_limit_s=stall_limit_s,
        first_backoff_s=0.05,
        on_stats=on_stats,
        on_give_up=on_give_up,
        on_started=on_started,
        on_gone=on_gone,
        unread_bounds=unread_bounds,
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def generate(engine: EngineProcess | EngineLink, request: Request) -> list[int]:
    link = engine.link if isinstance(engine, EngineProcess) else engine
    ids: list[int] = []
    finish = None
    async for delta in link.submit(request):
        assert finish is None
        ids += delta.token_ids
        finish = delta.finish
    assert finish is not None
    return ids


def with_ids(request: Request, *ids: int) -> Request:
    kept = tuple(i for i in request.prompt_ids if i < fake_worker.DIES)
    return Request(id=request.id, prompt_ids=kept + ids, sampling=request.sampling)


def healthy(name: str, num_prompt: int = 70, max_tokens: int = 20) -> Request:
    return with_ids(make_request(name, num_prompt, max_tokens))


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_concurrent_streams_equal_lone_runs() -> None:
    async def test() -> None:
        requests = [healthy(f"r{i}", 10 + 30 * i, 30) for i in range(12)]
        async with started() as engine:
            outputs = await asyncio.gather(*(generate(engine, request) for request in requests))
            assert outputs == [solo_run(request) for request in requests]
            await until(lambda: engine.link.stats.num_steps > 0)
            await until(
                lambda: engine.link.stats.num_pages_used == engine.link.stats.num_slots_used == 0
            )

    run(test)


def test_deltas_merge_while_the_consumer_is_busy() -> None:
    async def test() -> None:
        async with started() as engine:
            request = healthy("slow reader", 5, 200)
            stream = engine.link.submit(request)
            first = await anext(stream)
            await until(
                lambda: engine.link.stats.num_running == 0 and engine.link.stats.num_steps >= 200
            )
            rest = await anext(stream)
            assert [*first.token_ids, *rest.token_ids] == solo_run(request)
            assert rest.finish is FinishReason.LENGTH
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    run(test)


def test_what_nobody_reads_is_given_up_and_others_go_on() -> None:
    async def test() -> None:
        bounds = UnreadBounds(max_deltas=4, max_bytes=400, patience_s=0.5)
        async with started(unread_bounds=bounds) as engine:
            unread = with_ids(make_request("not read", 5, 900), fake_worker.SLOW)
            stream = engine.link.submit(unread)
            await anext(stream)
            other = healthy("read", 30, 60)
            assert await generate(engine, other) == solo_run(other)
            await until(lambda: engine.link.stats.num_running == 0)
            assert engine.link.stats.num_steps < 900
            await until(lambda: engine.link.stats.num_slots_used == 0)
            with pytest.raises(StreamTooSlow):
                await anext(stream)

    run(test)


def test_a_slow_reader_that_goes_on_reading_gets_everything() -> None:
    async def test() -> None:
        bounds = UnreadBounds(max_deltas=4, max_bytes=400, patience_s=60.0)
        async with started(unread_bounds=bounds) as engine:
            request = healthy("slow", 5, 300)
            ids: list[int] = []
            async for delta in engine.link.submit(request):
                ids += delta.token_ids
                await asyncio.sleep(0.02)
            assert ids == solo_run(request)

    run(test)


def test_closing_a_stream_frees_its_memory() -> None:
    async def test() -> None:
        async with started() as engine:
            stream = engine.link.submit(with_ids(make_request("gone", 5, 900), fake_worker.SLOW))
            await anext(stream)
            await until(lambda: engine.link.stats.num_slots_used == 1)
            await stream.aclose()
            await until(lambda: engine.link.stats.num_slots_used == 0, timeout_s=2.0)
            assert engine.link.stats.num_pages_used == 0

    run(test)


@asynccontextmanager
async def linked(address: str, name: bytes) -> AsyncIterator[EngineLink]:
    """Another server process's link, as far as the engine can tell."""
    ready = asyncio.Event()
    link = EngineLink(name=name, on_ready=lambda _: ready.set())
    link.connect(address)
    try:
        await asyncio.wait_for(ready.wait(), 10)
        yield link
    finally:
        link.close()


def test_several_links_share_an_engine() -> None:
    async def test() -> None:
        addresses: list[str] = []
        async with (
            started(on_started=addresses.append) as engine,
            linked(addresses[0], b"one") as one,
            linked(addresses[0], b"two") as two,
        ):
            assert one.state == two.state == "ready"
            assert one.info == engine.link.info
            requests = [healthy(f"r{i}", 10 + 30 * i, 30) for i in range(6)]
            links = [one, two, engine.link] * 2
            outputs = await asyncio.gather(*map(generate, links, requests))
            assert outputs == [solo_run(request) for request in requests]
            await until(lambda: one.stats.num_steps == two.stats.num_steps > 0)

    run(test)


def test_what_a_dead_server_process_asked_for_is_cancelled() -> None:
    async def test() -> None:
        addresses: list[str] = []
        async with (
            started(on_started=addresses.append) as engine,
            linked(addresses[0], b"dies") as dies,
            linked(addresses[0], b"lives") as lives,
        ):
            slow = [with_ids(make_request(f"s{i}", 5, 900), fake_worker.SLOW) for i in range(6)]
            mine = with_ids(make_request("mine", 5, 60), fake_worker.SLOW)
            going = asyncio.create_task(generate(lives, mine))
            streams = [asyncio.create_task(generate(dies, request)) for request in slow]
            await until(lambda: lives.stats.num_running == fake_worker.NUM_SLOTS)
            await until(lambda: lives.stats.num_waiting > 0)
            engine.link.forget(b"dies")
            await until(lambda: lives.stats.num_running == 1, timeout_s=2.0)
            assert lives.stats.num_waiting == 0
            late = asyncio.create_task(generate(dies, healthy("late")))
            assert await going == solo_run(mine)
            await until(lambda: lives.stats.num_slots_used == lives.stats.num_pages_used == 0)
            assert not late.done(), "what a dead process had sent is not worked on"
            for stream in (*streams, late):
                stream.cancel()
            await asyncio.gather(*streams, late, return_exceptions=True)

    run(test)


def test_a_link_follows_the_engine_to_its_next_process() -> None:
    async def test() -> None:
        addresses: list[str] = []
        gone: list[str] = []
        async with (
            started(on_started=addresses.append, on_gone=gone.append) as engine,
            linked(addresses[0], b"one") as link,
        ):
            assert engine.link.info is not None
            slow = with_ids(make_request("victim", 5, 900), fake_worker.SLOW)
            stream = asyncio.create_task(generate(link, slow))
            await until(lambda: link.stats.num_running == 1)
            os.kill(engine.link.info.pid, signal.SIGKILL)
            await until(lambda: len(gone) == 1)
            link.disconnect(gone[0])
            with pytest.raises(EngineDied, match="signal 9"):
                await stream
            with pytest.raises(EngineDied):
                await generate(link, healthy("too early"))
            await until(lambda: len(addresses) == 2)
            link.connect(addresses[1])
            with pytest.raises(EngineStarting):
                await generate(link, healthy("still too early"))
            await until(lambda: link.state == "ready")
            assert await generate(link, healthy("after")) == solo_run(healthy("after"))

    run(test)


def test_refusals_name_their_cause() -> None:
    async def test() -> None:
        async with started(max_waiting=1, queue_timeout_s=0.3) as engine:
            with pytest.raises(RequestTooLong):
                await generate(engine, healthy("long", 1000, 1000))
            busy = [
                engine.link.submit(with_ids(make_request(f"b{i}", 5, 300), fake_worker.SLOW))
                for i in range(fake_worker.NUM_SLOTS)
            ]
            for stream in busy:
                await anext(stream)
            waiting = asyncio.create_task(generate(engine, healthy("waits")))
            await asyncio.sleep(0.1)
            with pytest.raises(QueueFull):
                await generate(engine, healthy("one too many"))
            with pytest.raises(QueueTimeout):
                await waiting
            for stream in busy:
                await stream.aclose()
            assert await generate(engine, healthy("later")) == solo_run(healthy("later"))

    run(test)


def test_a_killed_engine_fails_its_streams_and_comes_back() -> None:
    async def test() -> None:
        async with started() as engine:
            assert engine.link.info is not None
            stream = engine.link.submit(with_ids(make_request("victim", 5, 900), fake_worker.SLOW))
            await anext(stream)
            pid = engine.link.info.pid
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(EngineDied, match="signal 9"):
                async for _ in stream:
                    pass
            assert engine.link.state != "ready"
            await until(lambda: engine.link.state == "ready")
            assert engine.link.info.pid != pid
            assert engine.link.stats.num_restarts == 1
            assert await generate(engine, healthy("after")) == solo_run(healthy("after"))

    run(test)


def test_a_hanging_step_is_noticed() -> None:
    async def test() -> None:
        async with started(stall_limit_s=1.0) as engine:
            with pytest.raises(EngineDied, match="no progress"):
                await generate(engine, with_ids(make_request("hangs", 5, 5), fake_worker.HANGS))
            await until(lambda: engine.link.state == "ready")
            assert await generate(engine, healthy("after")) == solo_run(healthy("after"))

    run(test)


def test_a_long_step_that_gets_on_is_left_alone() -> None:
    async def test() -> None:
        async with started(stall_limit_s=1.2) as engine:
            assert fake_worker.ENCODING_S > 2 * 1.2
            request = with_ids(make_request("encodes", 5, 1), fake_worker.ENCODES)
            assert await generate(engine, request) == solo_run(request)
            assert engine.link.stats.num_restarts == 0

    run(test)


def test_a_large_picture_gets_to_the_engine() -> None:
    async def test() -> None:
        async with started() as engine:
            picture = Media.of(1, 1, 4096, 4096, os.urandom(3) * 4096**2)
            request = msgspec.structs.replace(healthy("picture"), media=(picture, picture))
            assert await generate(engine, request) == solo_run(request)
            assert engine.link.stats.num_restarts == 0

    run(test)


def test_a_picture_that_cannot_be_encoded_ends_its_request_alone() -> None:
    async def test() -> None:
        async with started() as engine:
            slow = with_ids(make_request("bystander", 5, 40), fake_worker.SLOW)
            bystander = asyncio.create_task(generate(engine, slow))
            await until(lambda: engine.link.stats.num_running == 1)
            with pytest.raises(RequestFailed, match="could not encode a picture"):
                await generate(engine, with_ids(make_request("bad", 5, 5), fake_worker.UNENCODED))
            assert await bystander == solo_run(slow)
            await until(lambda: engine.link.stats.num_slots_used == 0)

    run(test)


def test_a_stopped_process_is_noticed() -> None:
    async def test() -> None:
        async with started(stall_limit_s=1.5) as engine:
            assert engine.link.info is not None
            stream = asyncio.create_task(generate(engine, healthy("first", 5, 50)))
            await stream
            os.kill(engine.link.info.pid, signal.SIGSTOP)
            with pytest.raises(EngineDied, match="no progress"):
                await generate(engine, healthy("stuck"))

    run(test)


def test_a_step_that_raises_costs_one_request() -> None:
    async def test() -> None:
        async with started() as engine:
            slow = with_ids(make_request("bystander", 5, 60), fake_worker.SLOW)
            bystander = asyncio.create_task(generate(engine, slow))
            await until(lambda: engine.link.stats.num_running == 1)
            with pytest.raises(RequestFailed):
                await generate(engine, with_ids(make_request("bad", 5, 5), fake_worker.RAISES))
            assert await bystander == solo_run(slow)
            assert engine.link.stats.num_restarts == 0

    run(test)


def test_a_grammar_that_is_stuck_ends_its_request_alone() -> None:
    async def test() -> None:
        async with started() as engine:
            slow = with_ids(make_request("bystander", 5, 40), fake_worker.SLOW)
            bystander = asyncio.create_task(generate(engine, slow))
            await until(lambda: engine.link.stats.num_running == 1)
            with pytest.raises(GrammarStuck):
                await generate(engine, with_ids(make_request("stuck", 5, 5), fake_worker.STUCK))
            assert await bystander == solo_run(slow)
            await until(lambda: engine.link.stats.num_slots_used == 0)

    run(test)


def test_nobody_ends_the_engine_by_what_he_asks_for() -> None:
    async def test() -> None:
        async with started() as engine:
            bad = [with_ids(make_request(f"b{i}", 5, 5), fake_worker.RAISES) for i in range(8)]
            errors = await asyncio.gather(
                *(generate(engine, request) for request in bad), return_exceptions=True
            )
            assert {type(error) for error in errors} == {RequestFailed}
            good = healthy("good")
            assert await generate(engine, good) == solo_run(good)
            assert engine.link.stats.num_restarts == 0

    run(test)


def test_a_device_that_fails_without_any_request_ends_the_engine() -> None:
    async def test() -> None:
        async with started() as engine:
            with pytest.raises(EngineDied):
                await generate(engine, with_ids(make_request("last", 5, 5), fake_worker.BREAKS))
            await until(lambda: engine.link.state == "ready")
            good = healthy("good")
            assert await generate(engine, good) == solo_run(good)
            assert engine.link.stats.num_restarts == 1

    run(test)


def test_an_engine_that_keeps_dying_is_given_up() -> None:
    async def test() -> None:
        given_up = asyncio.Event()
        async with started(on_give_up=given_up.set) as engine:
            engine._first_backoff_s = 0.0
            while not given_up.is_set():
                if engine.link.state == "ready":
                    deadly = with_ids(make_request("deadly", 5, 5), fake_worker.DIES)
                    with pytest.raises(EngineDied):
                        await generate(engine, deadly)
                await asyncio.sleep(0.01)
            assert engine.link.state == "dead"
            with pytest.raises(EngineDied):
                await generate(engine, healthy("too late"))

    run(test)


@pytest.mark.parametrize(("dtype", "why"), [("bad", "configuration"), ("crash", "code 1")])
def test_a_failed_start_says_so_and_leaves_no_child(
    dtype: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        config = EngineConfig(model_dir="", num_real_tokens=97, dtype=dtype)
        engine = EngineProcess(config, command=COMMAND)
        with pytest.raises(EngineDied, match=why):
            await engine.start()
        assert engine._child is not None
        assert engine._child.returncode is not None

    run(test)
    if dtype == "bad":
        assert capfd.readouterr().err == "deltaserve: error: dtype bad is not one we know\n"


def test_the_engine_ends_when_its_parent_is_killed() -> None:
    script = textwrap.dedent(
        """
        import asyncio, sys
        from tests.engine.test_process import started

        async def main():
            async with started() as engine:
                print(engine.link.info.pid, flush=True)
                await asyncio.sleep(60)

        asyncio.run(main())
        """
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert gone(pid)


def gone(pid: int) -> bool:
    """Whether the process ends within ten seconds (a zombie has ended)."""

    async def test() -> bool:
        status = Path(f"/proc/{pid}/stat")

        def over() -> bool:
            try:
                return status.read_text().rsplit(")", 1)[1].split()[0] == "Z"
            except FileNotFoundError:
                return True

        await until(over)
        return True

    return asyncio.run(test())
