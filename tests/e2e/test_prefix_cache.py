"""The prefix cache of a real server: nothing is computed twice, and no text changes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.live import LiveServer, live_server

SYSTEM = "You are a careful assistant. " + " ".join(f"Rule {i}: keep it short." for i in range(40))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("cached") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def uncached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    log = tmp_path_factory.mktemp("uncached") / "log"
    with live_server(log, "--no-prefix-cache") as server:
        yield server


def chat(server: LiveServer, *texts: str, **fields: Any) -> dict[str, Any]:
    """`texts`: the turns after the system prompt, the user's first."""
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": "system", "content": SYSTEM}]
    messages += [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    body = {"messages": messages, "temperature": 0, "max_tokens": 24, **fields}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    return response.json()


def cached_tokens(answer: dict[str, Any]) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def texts_of(answer: dict[str, Any]) -> list[Any]:
    return [choice["message"] for choice in answer["choices"]]


def test_choices_share_their_prompt(server: LiveServer, uncached: LiveServer) -> None:
    fields = {"n": 4, "temperature": 1.0, "seed": 5, "timings": True}
    before = server.metric("vllm:iteration_tokens_total_sum")
    shared = chat(server, "Tell me something.", **fields)
    num_prompt = shared["usage"]["prompt_tokens"]
    computed = server.metric("vllm:iteration_tokens_total_sum") - before
    assert num_prompt > 448
    assert computed <= num_prompt + 4 * (64 + 26)
    whole = chat(uncached, "Tell me something.", **fields)
    assert texts_of(whole) == texts_of(shared)
    assert cached_tokens(whole) == 0


def test_a_conversation_goes_on_where_it_was(server: LiveServer, uncached: LiveServer) -> None:
    first = chat(server, "Say hello.", logprobs=True, top_logprobs=3)
    said = first["choices"][0]["message"].get("content") or "Hello."
    for texts in (["Say hello."], ["Say hello.", said, "And again."]):
        found = chat(server, *texts, logprobs=True, top_logprobs=3)
        assert cached_tokens(found) >= 448
        expected = chat(uncached, *texts, logprobs=True, top_logprobs=3)
        assert found["choices"] == expected["choices"]


def test_a_salt_keeps_prompts_apart(server: LiveServer) -> None:
    chat(server, "Salted.", cache_salt="one")
    assert cached_tokens(chat(server, "Salted.", cache_salt="two")) == 0
    assert cached_tokens(chat(server, "Salted.", cache_salt="one")) > 0
    response = server.post("/v1/chat/completions", {"messages": [], "cache_salt": ""})
    assert response.status_code == 400


def test_equal_prompts_at_once_are_computed_once(server: LiveServer) -> None:
    before = server.metric("vllm:iteration_tokens_total_sum")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: chat(server, "All of us ask this."), range(8)))
    assert len({str(texts_of(answer)) for answer in answers}) == 1
    computed = server.metric("vllm:iteration_tokens_total_sum") - before
    assert computed <= answers[0]["usage"]["prompt_tokens"] + 8 * (64 + 26)


def test_messages_tell_what_was_read_and_written(server: LiveServer) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    body = {
        "max_tokens": 4,
        "system": [{"type": "text", "text": f"New. {SYSTEM}", **mark}],
        "messages": [{"role": "user", "content": "A question of its own."}],
        "thinking": {"type": "disabled"},
    }
    counted = server.post("/v1/messages/count_tokens", {**body, "max_tokens": None}).json()
    for is_first in (True, False):
        usage = server.post("/v1/messages", body).json()["usage"]
        read, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
        assert usage["input_tokens"] + read + written == counted["input_tokens"]
        assert (written > 0) == is_first
        assert read >= 448 or is_first


def test_the_metrics_tell_of_it(server: LiveServer, uncached: LiveServer) -> None:
    name = "deltaserve:prefix_cache_lookups_total"
    before = {found: server.metric(name, found=found) for found in ("new", "whole", "short")}
    chat(server, "One more.", cache_salt="metrics")
    chat(server, "One more.", cache_salt="metrics")
    server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
    for found, count in before.items():
        assert server.metric(name, found=found) == count + 1, found
    assert (
        0
        < server.metric("deltaserve:saved_states")
        <= server.metric("deltaserve:saved_state_slots")
    )
    assert server.metric("deltaserve:kv_pages_cached") > 0
    assert server.metric("deltaserve:kv_pages_used") == 0
    assert server.metric("vllm:prefix_cache_hits_total") > 0
    assert uncached.metric("deltaserve:saved_state_slots") == 0
    assert uncached.metric("deltaserve:kv_pages_cached") == 0
