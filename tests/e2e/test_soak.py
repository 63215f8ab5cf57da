"""Mixed traffic leaves nothing behind: memory, descriptors and threads stay flat.

A minute of it, or, before a release, as long as the variable says: an hour is

    DELTASERVE_SOAK_S=3600 python -m pytest tests/e2e/test_soak.py
"""

import contextlib
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e.live import LiveServer, live_server, wait_until

WARM_UP_S = 20.0
SOAK_S = float(os.environ.get("DELTASERVE_SOAK_S", "60"))
NUM_CLIENTS = 8


@dataclass(frozen=True)
class Footprint:
    rss_bytes: int
    num_files: int
    num_threads: int

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        return cls(
            rss_bytes=int(status["VmRSS"].split()[0]) * 1024,
            num_files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            num_threads=int(status["Threads"]),
        )


def load(server: LiveServer, seed: int, over: threading.Event) -> int:
    """Send requests of all kinds until `over`; returns how many good ones were answered."""
    rng = random.Random(seed)
    num_good = 0
    while not over.is_set():
        kind = rng.random()
        words = "word " * rng.randint(1, 150)
        if kind < 0.6:
            body = {"prompt": words, "max_tokens": rng.randint(1, 40), "seed": rng.randint(0, 9)}
            response = server.post("/v1/completions", body)
            assert response.status_code == 200, response.text
            num_good += 1
        elif kind < 0.8:
            body = {"messages": [{"role": "user", "content": words}], "temperature": -1}
            assert server.post("/v1/chat/completions", body).status_code == 400
        else:
            with contextlib.suppress(httpx.TimeoutException):
                server.post("/v1/completions", {"prompt": words, "max_tokens": 500}, timeout=0.1)
    return num_good


@pytest.mark.slow
@pytest.mark.timeout(WARM_UP_S + SOAK_S + 220)
def test_traffic_leaves_nothing_behind(tmp_path: Path) -> None:
    with live_server(tmp_path / "log") as server:
        canary = {"prompt": "The quick brown fox", "max_tokens": 24, "temperature": 0}
        expected = server.post("/v1/completions", canary).json()["choices"][0]["text"]
        pids = {"server": server.process.pid, "engine": server.engine_pid}
        over = threading.Event()
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            clients = [pool.submit(load, server, i, over) for i in range(NUM_CLIENTS)]
            try:
                time.sleep(WARM_UP_S)
                before = {name: Footprint.of(pid) for name, pid in pids.items()}
                time.sleep(SOAK_S)
                after = {name: Footprint.of(pid) for name, pid in pids.items()}
            finally:
                over.set()
            assert sum(client.result() for client in clients) > 50
        for name in pids:
            growth = after[name].rss_bytes / before[name].rss_bytes - 1
            assert growth < 0.05, f"{name}: {before[name]} to {after[name]}"
            assert after[name].num_threads <= before[name].num_threads + 1, name
            assert after[name].num_files <= before[name].num_files + NUM_CLIENTS, name
        for gauge in ("kv_pages_used", "state_slots_used"):
            wait_until(lambda gauge=gauge: server.metric(f"deltaserve:{gauge}") == 0, server, 2)
        assert server.engine_pid == pids["engine"]
        assert server.post("/v1/completions", canary).json()["choices"][0]["text"] == expected
