"""Limits on a live server: a queue that is really full, a reader that does not read, workers."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.live import LiveServer, live_server, wait_until

CANARY: dict[str, Any] = {"prompt": "The quick brown fox", "max_tokens": 24, "temperature": 0}
LONG: dict[str, Any] = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
CHATTY: dict[str, Any] = {**LONG, "n": 16, "max_tokens": 2000, "logprobs": 20, "temperature": 1}


def canary(server: LiveServer) -> str:
    response = server.post("/v1/completions", CANARY)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


@contextlib.contextmanager
def streaming(server: LiveServer) -> Iterator[Iterator[str]]:
    """A request that has its first token."""
    with server.http.stream("POST", "/v1/completions", json=LONG, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        yield lines


def test_a_full_queue_refuses_and_recovers(tmp_path: Path) -> None:
    with live_server(tmp_path / "log", "--max-num-seqs", "1", "--queue-size", "1") as server:
        expected = canary(server)
        with contextlib.ExitStack() as running:
            running.enter_context(streaming(server))
            sock = asked(server, LONG)
            running.callback(sock.close)
            wait_until(lambda: server.metric("vllm:num_requests_waiting") == 1, server, 10)
            for _ in range(3):
                refused = server.post("/v1/completions", CANARY)
                assert refused.status_code == 429
                assert refused.json()["error"]["code"] == "queue_full"
                assert int(refused.headers["retry-after"]) > 0
            assert server.status("/ready") == 200
            assert server.metric("deltaserve:rejections_total", reason="queue_full") == 3
        wait_until(lambda: server.metric("deltaserve:state_slots_used") == 0, server, 10)
        assert canary(server) == expected


def test_a_batch_is_taken_as_a_whole_or_refused_before_its_stream_begins(tmp_path: Path) -> None:
    batch = {**CANARY, "prompt": [CANARY["prompt"]] * 4, "n": 2}
    with live_server(tmp_path / "log", "--max-num-seqs", "1", "--queue-size", "8") as server:
        for _ in range(2):
            answer = server.post("/v1/completions", batch)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["choices"]) == 8
        with contextlib.ExitStack() as running:
            running.enter_context(streaming(server))
            sock = asked(server, LONG)
            running.callback(sock.close)
            wait_until(lambda: server.metric("vllm:num_requests_waiting") == 1, server, 10)
            for stream in (False, True):
                refused = server.post("/v1/completions", {**batch, "stream": stream})
                assert refused.status_code == 429
                assert refused.json()["error"]["code"] == "queue_full"
        wait_until(lambda: server.metric("deltaserve:state_slots_used") == 0, server, 10)


def test_a_reader_that_does_not_read_costs_nobody_else(tmp_path: Path) -> None:
    with live_server(tmp_path / "log", "--limit", "send_stall_s=1") as server:
        expected = canary(server)
        reader = asked(server, CHATTY)
        try:
            wait_until(lambda: server.metric("vllm:num_requests_running") > 0, server, 10)
            assert canary(server) == expected
            wait_until(lambda: server.metric("vllm:num_requests_running") == 0, server, 60)
            assert server.metric("vllm:request_success_total", finished_reason="length") < 16
        finally:
            reader.close()
        wait_until(lambda: server.metric("deltaserve:state_slots_used") == 0, server, 10)
        assert canary(server) == expected


def test_workers_have_the_limits_of_the_server(tmp_path: Path) -> None:
    with live_server(tmp_path / "log", "--api-workers", "2", "--limit", "max_choices=2") as server:
        for _ in range(8):
            with httpx.Client(base_url=server.base_url, trust_env=False) as client:
                refused = client.post("/v1/completions", json={**CANARY, "n": 3}, timeout=30)
            assert refused.status_code == 400
            assert refused.json()["error"]["message"] == "n must be at most 2"


def asked(server: LiveServer, body: dict[str, Any]) -> socket.socket:
    """A connection with a request on it, whose answer nobody reads."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    sock.connect((host, int(port)))
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    sock.sendall(head.encode() + data)
    return sock
