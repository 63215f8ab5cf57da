"""Workers that die, hang, talk nonsense or do not go, and what becomes of the pool."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.assembly import FrontSettings
from server.lifecycle import Lifecycle
from server.limits import Limits
from server.metrics import Metrics
from server.stop_orders import StopOrders
from server.workers.pool import MAX_RESTARTS, WorkerPool
from tests.fakes import FakeEngine
from tests.server.workers import fake_process

COMMAND = (sys.executable, str(Path(fake_process.__file__)))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


pytestmark = pytest.mark.anyio


@dataclass
class Running:
    pool: WorkerPool
    lifecycle: Lifecycle
    serving: "asyncio.Task[None]"
    lost: list[bytes] = field(default_factory=list[bytes])

    @property
    def pids(self) -> dict[bytes, int]:
        return {worker.name: worker.process.pid for worker in self.pool._workers.values()}

    async def asked(self) -> int:
        """A counter of the workers, as a scrape shows it."""
        found = re.search(rb"^asked_total{.*} (\S+)$", await self.pool.scrape(), re.M)
        return int(float(found[1])) if found else 0


@asynccontextmanager
async def running(
    kind: str = fake_process.WELL,
    *,
    num_workers: int = 2,
    stall_limit_s: float = 60.0,
    starts: bool = True,
) -> AsyncIterator[Running]:
    engine = FakeEngine()
    lifecycle = Lifecycle(engine)
    lost: list[bytes] = []
    settings = FrontSettings(
        model_dir="",
        model_root=kind,
        served_names=("m",),
        version="0",
        created=0,
        api_keys=(),
        metrics_open=False,
        literal_control_tokens=False,
        models_sampling=False,
        serves_media=False,
        media_domains=(),
        media_dir=None,
        limits=Limits(request_timeout_s=1.0),
        shutdown_timeout_s=1.0,
        seed=1,
        log_level=0,
        num_processes=num_workers,
    )
    pool = WorkerPool(
        num_workers,
        settings,
        lifecycle=lifecycle,
        metrics=Metrics(engine, model_name="m"),
        on_lost=lost.append,
        command=COMMAND,
        stall_limit_s=stall_limit_s,
        report_period_s=0.05,
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        serving = pool.begin(listener)
        pool.engine_started("ipc:///nowhere")
        try:
            if starts:
                await asyncio.wait_for(pool.wait_ready(), 120)
            yield Running(pool, lifecycle, serving, lost)
        finally:
            workers = list(pool._workers.values())
            await pool.end(serving, at_once=True)
            assert all(worker.process.returncode is not None for worker in workers)
            assert not pool._workers


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_worker_that_dies_is_replaced_and_its_counts_stay() -> None:
    async with running() as run:
        await until(lambda: len(run.pids) == 2)
        before = await run.asked()
        assert before >= 2
        os.kill(run.pids[b"api-1-0"], signal.SIGKILL)
        await until(lambda: run.lost == [b"api-1-0"])
        assert await run.asked() >= before
        await until(lambda: b"api-1-1" in run.pids)
        assert b"api-0-0" in run.pids
        assert await run.asked() > before
        assert run.lifecycle.failure is None


async def test_quick_deaths_are_the_end() -> None:
    async with running(fake_process.DIES, num_workers=1, starts=False) as run:
        await asyncio.wait_for(run.lifecycle.ended.wait(), 120)
        assert run.lifecycle.failure is not None
        assert "API worker 0 exited with code 4; it died 6 times lately" in run.lifecycle.failure
        assert len(run.lost) == MAX_RESTARTS + 1
        assert len(set(run.lost)) == MAX_RESTARTS + 1, "the engine knows each by its own name"


async def test_a_worker_that_cannot_start_ends_the_start() -> None:
    async with running(fake_process.CANNOT_START, starts=False) as run:
        await asyncio.wait_for(run.lifecycle.ended.wait(), 120)
        assert run.lifecycle.failure is not None
        assert run.lifecycle.failure.startswith("cannot start: API worker ")


@pytest.mark.parametrize(
    ("kind", "stall_limit_s"), [(fake_process.HANGS, 1.0), (fake_process.BABBLES, 60.0)]
)
async def test_a_worker_that_is_out_of_its_mind_is_killed(kind: str, stall_limit_s: float) -> None:
    async with running(kind, num_workers=1, stall_limit_s=stall_limit_s) as run:
        await until(lambda: b"api-0-0" in run.lost)
        await until(lambda: b"api-0-1" in [*run.pids, *run.lost])


async def test_a_slow_worker_does_not_hold_up_a_scrape() -> None:
    async with running() as run:
        before = await run.asked()
        os.kill(run.pids[b"api-0-0"], signal.SIGSTOP)
        async with asyncio.timeout(10):
            assert await run.asked() > before


async def test_a_drain_ends_when_all_workers_did() -> None:
    async with running() as run:
        counted = await run.asked()
        async with asyncio.timeout(30):
            await run.pool.drain(StopOrders(), 60)
            await run.serving
        assert run.pids == {}
        assert await run.asked() >= counted > 0


async def test_a_drain_waits_no_longer_than_for_a_second_order() -> None:
    async with running(fake_process.STUBBORN) as run:
        orders = StopOrders()
        orders.give()
        draining = asyncio.create_task(run.pool.drain(orders, 60))
        await asyncio.sleep(0.2)
        assert not draining.done()
        orders.give()
        await asyncio.wait_for(draining, 2)
        assert len(run.pids) == 2


async def test_a_drain_does_not_wait_for_workers_that_are_not_there_yet() -> None:
    async with running(starts=False) as run:
        await until(lambda: len(run.pids) == 2)
        async with asyncio.timeout(30):
            await run.pool.drain(StopOrders(), 60)
            await run.serving
