"""Several API workers behind one port and one engine, over real sockets.

To choose which worker takes a connection, the others are stopped (SIGSTOP) while it is made.
"""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.live import LiveServer, has_ended, live_server, wait_until

COMPLETIONS, RESPONSES = "/v1/completions", "/v1/responses"
CANARY: dict[str, Any] = {
    "prompt": "The quick brown fox",
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
}
TWO = ("--api-workers", "2")


def workers_of(server: LiveServer) -> list[int]:
    """The workers that are alive, in the order of their ids."""
    return sorted(server.children("server.workers.process"))


def num_sockets(pid: int) -> int:
    """Descriptors of sockets that a process holds."""
    num = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            num += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
    return num


class Through:
    """A client whose one connection is to the worker `pid`."""

    def __init__(self, server: LiveServer, pid: int) -> None:
        self._http = httpx.Client(
            base_url=server.base_url, timeout=60, limits=httpx.Limits(max_connections=1)
        )
        others = [other for other in workers_of(server) if other != pid]
        for other in others:
            os.kill(other, signal.SIGSTOP)
        try:
            assert self._http.get("/live").status_code == 200
        finally:
            for other in others:
                os.kill(other, signal.SIGCONT)

    def __enter__(self) -> httpx.Client:
        return self._http

    def __exit__(self, *_: object) -> None:
        self._http.close()


class Stream:
    """A running stream of completions through the worker `pid`."""

    def __init__(self, server: LiveServer, pid: int, *, max_tokens: int) -> None:
        body = {"prompt": "go", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        self._open = contextlib.ExitStack()
        client = self._open.enter_context(Through(server, pid))
        response = self._open.enter_context(client.stream("POST", COMPLETIONS, json=body))
        assert response.status_code == 200, response.read()
        self._lines = (line for line in response.iter_lines() if line)
        next(self._lines)

    def rest(self) -> list[str]:
        """Its lines to the end; of a connection that was cut, those that came."""
        lines: list[str] = []
        with self._open, contextlib.suppress(httpx.TransportError):
            for line in self._lines:
                lines.append(line)
        return lines


def is_whole(lines: list[str]) -> bool:
    return bool(lines) and lines[-1] == "data: [DONE]"


def text_of(client: httpx.Client) -> str:
    answer = client.post(COMPLETIONS, json=CANARY)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def wait_idle(server: LiveServer) -> None:
    gauges = ("deltaserve:kv_pages_used", "deltaserve:state_slots_used")
    wait_until(lambda: not any(server.metric(name) for name in gauges), server, 5)


def wait_ended(*pids: int) -> None:
    deadline = time.monotonic() + 10
    while not all(map(has_ended, pids)):
        assert time.monotonic() < deadline, "a process outlives its server"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("workers") / "server.log", *TWO) as server:
        yield server


@pytest.fixture(autouse=True)
def check_idle(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        wait_idle(request.getfixturevalue("server"))


def test_it_starts_as_one(server: LiveServer) -> None:
    assert len(workers_of(server)) == 2
    assert server.engine_pid
    wait_until(lambda: "ready after " in server.log, server, 5)
    assert server.log.count("listening on ") == server.log.count("ready after ") == 1
    cards: list[dict[str, Any]] = []
    texts: list[str] = []
    for pid in workers_of(server):
        with Through(server, pid) as client:
            assert client.get("/ready").status_code == 200
            cards.append(client.get("/v1/models").json())
            texts.append(text_of(client))
    assert cards[0] == cards[1]
    assert cards[0]["data"][0]["max_model_len"] > 0
    assert texts[0] == texts[1]


def test_connections_spread_over_the_workers(server: LiveServer) -> None:
    before = {pid: num_sockets(pid) for pid in workers_of(server)}
    body = {"prompt": "go", "max_tokens": 300, "ignore_eos": True, "stream": True}
    with contextlib.ExitStack() as open_streams:

        def begin(_: int) -> None:
            client = open_streams.enter_context(httpx.Client(base_url=server.base_url, timeout=60))
            response = client.send(
                client.build_request("POST", COMPLETIONS, json=body), stream=True
            )
            open_streams.callback(response.close)
            assert response.status_code == 200

        taken = [0]
        for num_begun in (16, 32, 48, 64):  # a busy machine may have one worker wait for the other
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(begin, range(16)))
            taken = [num_sockets(pid) - before[pid] for pid in before]
            assert sum(taken) >= num_begun
            if min(taken) >= 1:
                break
        assert min(taken) >= 1, taken


def test_metrics_are_those_of_the_whole_server(server: LiveServer) -> None:
    names = ("vllm:request_success_total", "vllm:prompt_tokens_total", "deltaserve:requests_total")
    wait_idle(server)
    before = [server.metric(name) for name in names]
    num_prompt = 0
    for pid, num in zip(workers_of(server), (1, 2), strict=True):
        with Through(server, pid) as client:
            for _ in range(num):
                answer = client.post(COMPLETIONS, json=CANARY).json()
                num_prompt += answer["usage"]["prompt_tokens"]
    expected = [before[0] + 3, before[1] + num_prompt, before[2] + 3]
    wait_until(lambda: [server.metric(name) for name in names] == expected, server, 3)
    pages: set[str] = set()
    for pid in workers_of(server):
        with Through(server, pid) as client:
            text = client.get("/metrics").text
        pages |= set(re.findall(r"^deltaserve:kv_pages{.*$", text, re.M))
        total = re.search(r'^vllm:request_success_total{.*"length".* (\S+)$', text, re.M)
        assert total is not None
        assert float(total[1]) == server.metric(names[0], finished_reason="length")
    assert len(pages) == 1, "the engine's gauges are not added up"


def test_a_response_is_found_through_every_worker(server: LiveServer) -> None:
    one, two = workers_of(server)
    ask = {"input": "Hello", "max_output_tokens": 16, "temperature": 0}
    with Through(server, one) as first, Through(server, two) as second:
        made = first.post(RESPONSES, json=ask).json()
        path = f"{RESPONSES}/{made['id']}"
        assert second.get(path).json() == made
        continued = second.post(RESPONSES, json={**ask, "previous_response_id": made["id"]}).json()
        assert continued["previous_response_id"] == made["id"]
        items = first.get(f"{RESPONSES}/{continued['id']}/input_items", params={"order": "asc"})
        types = [item["type"] for item in items.json()["data"]]
        assert types == ["message", *(item["type"] for item in made["output"]), "message"]
        assert second.delete(path).json()["deleted"] is True
        assert first.get(path).status_code == 404
        assert first.post(f"{RESPONSES}/{continued['id']}/cancel").status_code == 400
        again = first.post(RESPONSES, json={**ask, "previous_response_id": continued["id"]})
        assert again.status_code == 200


def sent_events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def test_a_response_in_the_background_is_reached_through_every_worker(server: LiveServer) -> None:
    one, two = workers_of(server)
    ask = {"input": "Go", "background": True, "ignore_eos": True, "max_output_tokens": 4000}
    with Through(server, one) as first, Through(server, two) as second:
        made = first.post(RESPONSES, json=ask).json()
        path = f"{RESPONSES}/{made['id']}"
        for client in (first, second):
            assert client.get(path).json()["status"] in ("queued", "in_progress")
        assert second.post(f"{path}/cancel").json()["status"] == "cancelled"
        for client in (first, second):
            assert client.get(path).json()["status"] == "cancelled"
            assert client.get(f"{path}x").status_code == 404

        ask |= {"stream": True, "max_output_tokens": 60}
        with first.stream("POST", RESPONSES, json=ask) as stream:
            events = list(sent_events(stream))
        path = f"{RESPONSES}/{events[0]['response']['id']}"
        after = {"stream": "true", "starting_after": "2"}
        with second.stream("GET", path, params=after) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert list(sent_events(stream)) == events[3:]
        assert second.delete(path).json()["deleted"] is True
        assert first.get(path).status_code == second.get(path).status_code == 404


def test_a_killed_worker_costs_its_own_streams_and_comes_back(server: LiveServer) -> None:
    dies, lives = workers_of(server)
    with Through(server, dies) as client:
        kept = client.post(RESPONSES, json={"input": "Hi", "max_output_tokens": 16}).json()["id"]
        ask = {"input": "Go", "background": True, "ignore_eos": True, "max_output_tokens": 4000}
        lost = client.post(RESPONSES, json=ask).json()["id"]
    success = server.metric("vllm:request_success_total")
    doomed = [Stream(server, dies, max_tokens=4000) for _ in range(3)]
    going = [Stream(server, lives, max_tokens=200) for _ in range(3)]
    wait_until(lambda: server.metric("vllm:num_requests_running") == 7, server, 5)
    os.kill(dies, signal.SIGKILL)
    assert [is_whole(stream.rest()) for stream in doomed] == [False] * 3
    assert [is_whole(stream.rest()) for stream in going] == [True] * 3
    wait_idle(server)
    assert server.metric("vllm:request_success_total") >= success + 3
    wait_until(lambda: len(workers_of(server)) == 2, server, 10)
    assert lives in workers_of(server)
    assert dies not in workers_of(server)
    assert "was killed by signal 9" in server.log
    new = next(pid for pid in workers_of(server) if pid != lives)
    with Through(server, new) as client:
        wait_until(lambda: client.get("/ready").status_code == 200, server, 10)
        assert client.get(f"{RESPONSES}/{kept}").status_code == 200
        assert client.get(f"{RESPONSES}/{lost}").status_code == 404
        assert text_of(client)
    assert server.metric("vllm:request_success_total") >= success + 4
    assert server.metric("deltaserve:engine_restarts_total") == 0


def test_a_killed_engine_is_seen_by_every_worker(server: LiveServer) -> None:
    engine = server.engine_pid
    expected = server.post(COMPLETIONS, CANARY).json()
    streams = [Stream(server, pid, max_tokens=4000) for pid in workers_of(server)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Through(server, pid)) for pid in workers_of(server)]
        os.kill(engine, signal.SIGKILL)
        for stream in streams:
            assert "error" in json.loads(stream.rest()[-1].removeprefix("data: "))
        for client in clients:
            assert client.get("/live").status_code == 200
        for client in clients:
            wait_until(lambda c=client: c.get("/health").status_code == 503, server, 5)
        for client in clients:
            wait_until(lambda c=client: c.get("/health").status_code == 200, server, 60)
            answer = client.post(COMPLETIONS, json=CANARY).json()
            assert answer["choices"] == expected["choices"]
    assert server.engine_pid != engine
    assert server.metric("deltaserve:engine_restarts_total") == 1


class TestEndings:
    """Each test runs a server of its own, and ends it in its own way."""

    def test_sigterm_drains_all_workers(self, tmp_path: Path) -> None:
        with live_server(tmp_path / "log", *TWO) as server:
            engine, pids = server.engine_pid, workers_of(server)
            streams = [Stream(server, pid, max_tokens=400) for pid in pids]
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(Through(server, pid)) for pid in pids]
                server.process.send_signal(signal.SIGTERM)
                for client in clients:
                    wait_until(lambda c=client: c.get("/ready").status_code == 503, server, 5)
                    refused = client.post(COMPLETIONS, json=CANARY)
                    assert refused.status_code == 503
                    assert refused.json()["error"]["code"] == "draining"
            assert [is_whole(stream.rest()) for stream in streams] == [True] * 2
            assert server.process.wait(30) == 0
            wait_ended(engine, *pids)

    def test_a_second_signal_ends_at_once(self, tmp_path: Path) -> None:
        with live_server(tmp_path / "log", *TWO) as server:
            engine, pids = server.engine_pid, workers_of(server)
            streams = [Stream(server, pid, max_tokens=4000) for pid in pids]
            server.process.send_signal(signal.SIGINT)
            wait_until(lambda: server.status("/ready") in (0, 503), server, 5)
            began = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(10) == 128 + signal.SIGINT
            assert time.monotonic() - began < 8
            assert not any(is_whole(stream.rest()) for stream in streams)
            wait_ended(engine, *pids)

    def test_a_killed_parent_leaves_nobody_on_a_unix_socket(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        with live_server(tmp_path / "log", *TWO, "--uds", str(path), wait=False) as server:
            wait_until(path.exists, server, 60)
            transport = httpx.HTTPTransport(uds=str(path))
            with httpx.Client(transport=transport, base_url="http://uds", timeout=60) as client:
                wait_until(lambda: client.get("/ready").status_code == 200, server, 120)
                assert text_of(client)
            engine, pids = server.engine_pid, workers_of(server)
            assert len(pids) == 2
            stopped = pids.pop(0)
            os.kill(stopped, signal.SIGSTOP)
            server.process.kill()
            server.process.wait()
            wait_ended(engine, *pids)
            os.kill(stopped, signal.SIGCONT)
            wait_ended(stopped)
