"""A real `deltaserve serve` as a child process, driven over loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 120.0


@dataclass
class LiveServer:
    process: "subprocess.Popen[bytes]"
    base_url: str
    log_path: Path
    http: httpx.Client

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def engine_pid(self) -> int:
        """The one child of the server process that is an engine and alive."""
        alive = self.children("engine.build")
        assert len(alive) == 1, alive
        return alive[0]

    def children(self, word: str) -> list[int]:
        """Child processes that are alive and have `word` in their command line."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()  # each lists those it started
        return [
            int(pid)
            for thread in threads
            for pid in started_by(thread)
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
            and not has_ended(int(pid))
        ]

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path, timeout=10)

    def post(self, path: str, body: object, timeout: float = 60) -> httpx.Response:
        return self.http.post(path, json=body, timeout=timeout)

    def status(self, path: str) -> int:
        """Status of a probe; 0 if nothing listens."""
        try:
            return self.get(path).status_code
        except httpx.TransportError:
            return 0

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a series that carry `labels`."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            if line.startswith((name + " ", name + "{")):
                series, value = line.rsplit(" ", 1)
                if all(f'{label}="{wanted}"' in series for label, wanted in labels.items()):
                    total += float(value)
        return total

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM, then the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextmanager
def live_server(log_path: Path, *arguments: str, wait: bool = True) -> Iterator[LiveServer]:
    """Run `deltaserve serve` on a free port until the block ends; it may be stopped inside."""
    port = free_port()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve", "--port", str(port), *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    base_url = f"http://127.0.0.1:{port}"
    limits = httpx.Limits(max_connections=300)
    http = httpx.Client(base_url=base_url, trust_env=False, limits=limits)
    server = LiveServer(process, base_url, log_path, http)
    try:
        if wait:
            wait_until(lambda: server.status("/ready") == 200, server, READY_TIMEOUT_S)
        yield server
    finally:
        http.close()
        try:
            server.stop()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], bool], server: LiveServer, timeout_s: float) -> None:
    """Poll until `condition()` holds; fails with the server's log if it ends or time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert server.process.poll() is None, f"the server ended:\n{server.log}"
        assert time.monotonic() < deadline, f"not within {timeout_s} s:\n{server.log}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def started_by(thread: Path) -> list[str]:
    """The ids of the processes that a thread started; none if it has ended."""
    try:
        return (thread / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def has_ended(pid: int) -> bool:
    """Whether a process is gone; a zombie is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
