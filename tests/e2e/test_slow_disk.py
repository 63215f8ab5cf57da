"""A disk that is slow, hangs or lies: at start, and under the log."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.live import ROOT, free_port, live_server, wait_until

DEMO = ROOT / "server" / "demo_model"
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}


def test_while_the_weights_do_not_come_the_server_is_alive_and_says_so(tmp_path: Path) -> None:
    """The engine is stopped where it reads: what a disk does to it that does not answer."""
    with live_server(tmp_path / "log", wait=False) as server:
        wait_until(lambda: bool(server.children("engine.build")), server, 30)
        engine = server.engine_pid
        os.kill(engine, signal.SIGSTOP)
        wait_until(lambda: server.status("/live") == 200, server, 30)
        for _ in range(10):
            began = time.monotonic()
            assert server.status("/live") == 200
            for probe in ("/ready", "/health"):
                answer = server.get(probe)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
            refused = server.post("/v1/chat/completions", HI)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "starting")
            assert int(refused.headers["retry-after"]) > 0
            assert time.monotonic() - began < 4
            time.sleep(0.1)
        os.kill(engine, signal.SIGCONT)
        wait_until(lambda: server.status("/ready") == 200, server, 60)
        assert server.post("/v1/chat/completions", HI).status_code == 200
        assert server.stop() == 0


def test_weights_that_end_too_early_end_the_start_with_one_line(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)
    (weights,) = model.glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    command = [sys.executable, "-m", "server", "serve", str(model), "--port", str(free_port())]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode not in (0, -signal.SIGKILL)
    errors = [line for line in ended.stderr.splitlines() if "error" in line.lower()]
    assert errors
    assert all("Traceback" not in line for line in ended.stderr.splitlines())
    assert "cannot read model.safetensors" in ended.stderr


@contextmanager
def server_whose_log_nobody_reads() -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.timeout(120)
def test_a_log_that_nobody_takes_holds_nobody_up() -> None:
    """A pipe holds 64 KiB. More than that is logged, and every request is answered all the same."""
    with server_whose_log_nobody_reads() as (process, url), httpx.Client(trust_env=False) as http:
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            time.sleep(0.1)
            with suppress(httpx.TransportError):
                if http.get(f"{url}/ready").status_code == 200:
                    break
        for index in range(1500):
            missing = http.get(f"{url}/{index}/{'x' * 100}", timeout=10)
            assert missing.status_code == 404
        assert http.post(f"{url}/v1/chat/completions", json=HI, timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
