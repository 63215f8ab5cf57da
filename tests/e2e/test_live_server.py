"""The whole product on the default model: requests, faults and endings, over real sockets.

A canary, a prompt with known greedy text, is asked again after every kind of trouble.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.live import ROOT, LiveServer, has_ended, live_server, wait_until

CANARY: dict[str, Any] = {"prompt": "The quick brown fox", "max_tokens": 24, "temperature": 0}


def canary(server: LiveServer) -> str:
    response = server.post("/v1/completions", CANARY)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def assert_idle(server: LiveServer, timeout_s: float = 2.0) -> None:
    """Pages, slots and queue places are back."""

    def idle() -> bool:
        names = ("kv_pages_used", "state_slots_used")
        return (
            all(server.metric(f"deltaserve:{name}") == 0 for name in names)
            and server.metric("vllm:num_requests_running") == 0
            and server.metric("vllm:num_requests_waiting") == 0
        )

    wait_until(idle, server, timeout_s)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("live") / "server.log") as server:
        yield server


@pytest.fixture(scope="module")
def expected(server: LiveServer) -> str:
    return canary(server)


@pytest.fixture(autouse=True)
def check_canary(server: LiveServer, expected: str) -> Iterator[None]:
    yield
    assert_idle(server)
    assert canary(server) == expected


def client_of(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url + "/v1", api_key="none", max_retries=0)


def test_the_openai_sdk_streams_an_answer_and_the_metrics_show_it(server: LiveServer) -> None:
    before = server.metric("vllm:request_success_total")
    with client_of(server) as client:
        stream = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = list(stream)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 30
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "length"
    text = "".join(
        (getattr(c.choices[0].delta, "reasoning", None) or "") + (c.choices[0].delta.content or "")
        for c in chunks[:-1]
    )
    assert text
    wait_until(lambda: server.metric("vllm:request_success_total") == before + 1, server, 2)
    assert server.metric("vllm:generation_tokens_total") >= 30


def test_streamed_and_whole_chat_are_the_same_text(server: LiveServer) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Say something."}],
        "max_tokens": 40,
        "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    whole = server.post("/v1/chat/completions", body).json()["choices"][0]
    streamed = ""
    finish = None
    for event in stream_events(server, "/v1/chat/completions", body):
        streamed += event["choices"][0]["delta"].get("content") or ""
        finish = event["choices"][0]["finish_reason"]
    assert streamed == whole["message"]["content"]
    assert finish == whole["finish_reason"]


def test_concurrent_requests_get_the_text_of_lone_ones(server: LiveServer) -> None:
    bodies = [
        {"prompt": "word " * (7 * i + 1), "max_tokens": 20, "temperature": 0} for i in range(16)
    ]

    def text(body: dict[str, Any]) -> str:
        return server.post("/v1/completions", body).json()["choices"][0]["text"]

    alone = [text(body) for body in bodies]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(text, bodies)) == alone


def test_a_seed_repeats_and_its_absence_varies(server: LiveServer) -> None:
    body = {"prompt": "Once", "max_tokens": 30, "temperature": 2.0, "top_k": 0, "top_p": 1.0}

    def text(**extra: int) -> str:
        return server.post("/v1/completions", {**body, **extra}).json()["choices"][0]["text"]

    assert text(seed=5) == text(seed=5)
    assert text(seed=5) != text(seed=6)
    assert len({text() for _ in range(4)}) > 1


def test_clients_that_vanish_give_everything_back(server: LiveServer) -> None:
    long = {"prompt": "go on", "max_tokens": 400, "ignore_eos": True}
    for streams in (True, False):
        with httpx.Client(base_url=server.base_url, timeout=10) as client:
            for _ in range(6):
                request = client.build_request(
                    "POST", "/v1/completions", json={**long, "stream": streams}
                )
                if streams:
                    response = client.send(request, stream=True)
                    next(response.iter_lines())
                    response.close()
                else:
                    with pytest.raises(httpx.ReadTimeout):
                        client.send(
                            client.build_request("POST", "/v1/completions", json=long, timeout=0.15)
                        )
        assert_idle(server)


def test_wrong_requests_get_clear_answers_and_harm_nobody(server: LiveServer) -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ("/v1/completions", {"prompt": "x", "temperature": "hot"}, "temperature"),
        ("/v1/completions", {"prompt": "x", "n": 99}, "n"),
        ("/v1/completions", {"prompt": [10**9]}, "prompt"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "suffix"),
    ]
    for path, body, named in wrong:
        response = server.post(path, body)
        error = response.json()["error"]
        assert response.status_code == 400, response.text
        assert set(error) == {"message", "type", "param", "code"}
        assert named in error["message"] or named in (error["param"] or "")
    assert server.post("/v1/completions", {"model": "no such", "prompt": "x"}).status_code == 404


@pytest.mark.slow
def test_mixed_load_leaves_good_answers_untouched(server: LiveServer) -> None:
    """200 requests at once: 60 % good, 25 % invalid, 15 % vanishing; probes stay quick."""
    good = [
        {"prompt": f"item {i} " * (i % 9 + 1), "max_tokens": 12, "temperature": 0}
        for i in range(24)
    ]
    solo = [server.post("/v1/completions", body).json()["choices"][0]["text"] for body in good]

    def ask(i: int) -> None:
        kind = i % 20
        if kind < 12:
            which = i % len(good)
            response = server.post("/v1/completions", good[which])
            assert response.status_code == 200, response.text
            assert response.json()["choices"][0]["text"] == solo[which]
        elif kind < 17:
            assert server.post("/v1/completions", {"prompt": "x", "top_p": 7}).status_code == 400
        else:
            with contextlib.suppress(httpx.TimeoutException):
                server.post("/v1/completions", {"prompt": "x", "max_tokens": 300}, timeout=0.05)

    # The prober is a process of its own: 200 threads of clients would delay one of theirs.
    port = server.base_url.rpartition(":")[2]
    with subprocess.Popen(
        [sys.executable, "-c", PROBER, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as prober:
        with ThreadPoolExecutor(200) as pool:
            list(pool.map(ask, range(200)))
        slowest_s, _ = prober.communicate()
    assert float(slowest_s) < 1.0


# Asks /health again and again until its standard input closes, then prints the slowest answer.
PROBER = """
import select, socket, sys, time
slowest = 0.0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200"), "unhealthy"
    slowest = max(slowest, time.monotonic() - began)
print(slowest)
"""


def stream_events(server: LiveServer, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The JSON events of a stream up to [DONE], which must come."""
    with httpx.stream(
        "POST", server.base_url + path, json={**body, "stream": True}, timeout=60
    ) as r:
        assert r.status_code == 200
        for line in r.iter_lines():
            if line == "data: [DONE]":
                return
            if line:
                yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended without [DONE]")


class TestEndings:
    """Each test runs a server of its own, and ends it in its own way."""

    @pytest.fixture(autouse=True)
    def check_canary(self) -> None:
        """No shared server here."""

    def test_a_killed_engine_turns_health_red_and_comes_back(self, tmp_path: Path) -> None:
        with live_server(tmp_path / "log") as server:
            expected = canary(server)
            lines = open_stream(server, max_tokens=2000)
            next(lines)
            engine = server.engine_pid
            os.kill(engine, signal.SIGKILL)
            rest = list(lines)
            assert "error" in json.loads(rest[-1].removeprefix("data: "))
            assert "data: [DONE]" not in rest
            wait_until(lambda: server.status("/health") == 503, server, 5)
            assert server.status("/live") == 200
            wait_until(lambda: server.status("/health") == 200, server, 60)
            assert server.engine_pid != engine
            assert canary(server) == expected
            assert server.metric("deltaserve:engine_restarts_total") == 1

    def test_sigterm_drains(self, tmp_path: Path) -> None:
        with live_server(tmp_path / "log") as server:
            engine = server.engine_pid
            lines = open_stream(server, max_tokens=150)
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.status("/ready") in (0, 503), server, 5)
            rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert server.process.wait(30) == 0
            assert has_ended(engine)

    def test_a_second_signal_ends_at_once(self, tmp_path: Path) -> None:
        with live_server(tmp_path / "log") as server:
            engine = server.engine_pid
            lines = open_stream(server, max_tokens=2000)
            next(lines)
            server.process.send_signal(signal.SIGINT)
            wait_until(lambda: server.status("/ready") in (0, 503), server, 5)
            began = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            server.process.wait(10)
            assert time.monotonic() - began < 8
            wait_ended(engine)

    def test_a_killed_server_leaves_no_engine(self, tmp_path: Path) -> None:
        with live_server(tmp_path / "log") as server:
            engine = server.engine_pid
            server.process.kill()
            server.process.wait()
            wait_ended(engine)

    def test_a_start_that_cannot_succeed_says_why_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        (tmp_path / "model.safetensors").touch()
        found = subprocess.run(
            [sys.executable, "-m", "server", "serve", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert found.returncode != 0
        (line,) = found.stderr.splitlines()
        assert line.startswith("deltaserve: ")
        assert "LlamaForCausalLM" in line


def open_stream(server: LiveServer, *, max_tokens: int) -> Iterator[str]:
    """Lines of a running stream, the first of them there already when this returns one."""
    body = {"prompt": "go", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.base_url + "/v1/completions", json=body, timeout=60) as r:
        assert r.status_code == 200
        try:
            yield from (line for line in r.iter_lines() if line)
        except httpx.RemoteProtocolError:
            return  # the connection was cut, as it is after an error event


def wait_ended(pid: int) -> None:
    deadline = time.monotonic() + 10
    while not has_ended(pid):
        assert time.monotonic() < deadline, "the engine outlives its server"
        time.sleep(0.05)
