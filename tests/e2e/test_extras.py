"""Samplers, budgets and scoring on the default model: what a fake engine cannot show."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.live import LiveServer, live_server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPT = [100 + 7 * i for i in range(12)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("extras") / "server.log") as server:
        yield server


def ask(server: LiveServer, path: str, **body: Any) -> dict[str, Any]:
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


def complete(server: LiveServer, prompt: Any, **fields: Any) -> dict[str, Any]:
    return ask(server, COMPLETIONS, prompt=prompt, **fields)["choices"][0]


def loglikelihood(
    server: LiveServer, context: list[int], continuation: list[int], *, max_tokens: int, top: int
) -> tuple[float, bool]:
    """As lm-evaluation-harness's local completions do: the sum, and whether it is greedy."""
    answer = ask(
        server,
        COMPLETIONS,
        prompt=[context + continuation],
        temperature=0,
        max_tokens=max_tokens,
        logprobs=top,
        echo=True,
        seed=1234,
    )
    logprobs = answer["choices"][0]["logprobs"]
    begin, end = len(context), len(context) + len(continuation)
    assert len(logprobs["token_logprobs"]) == end + max_tokens
    scores = logprobs["token_logprobs"][begin:end]
    tops = logprobs["top_logprobs"][begin:end]
    return sum(scores), all(
        score == max(top.values()) for score, top in zip(scores, tops, strict=True)
    )


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("top", [1, 5])
def test_loglikelihoods_are_those_of_generating(
    server: LiveServer, max_tokens: int, top: int
) -> None:
    generated = complete(
        server,
        PROMPT,
        max_tokens=6,
        temperature=0,
        logprobs=1,
        return_token_ids=True,
        ignore_eos=True,
    )
    greedy_ids = generated["token_ids"]
    expected = sum(generated["logprobs"]["token_logprobs"])
    total, is_greedy = loglikelihood(server, PROMPT, greedy_ids, max_tokens=max_tokens, top=top)
    assert total == pytest.approx(expected, abs=0.05)
    assert is_greedy
    other_ids = [*greedy_ids[:3], greedy_ids[3] + 1, *greedy_ids[4:]]
    total, is_greedy = loglikelihood(server, PROMPT, other_ids, max_tokens=max_tokens, top=top)
    scores = complete(server, PROMPT + other_ids, max_tokens=1, prompt_logprobs=2)
    entries = scores["prompt_logprobs"][len(PROMPT) :]
    assert total == pytest.approx(
        sum(entry[str(i)]["logprob"] for i, entry in zip(other_ids, entries, strict=True)), abs=1e-4
    )
    assert not is_greedy
    assert entries[3][str(other_ids[3])]["rank"] > 1


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_ends_within_its_budget(server: LiveServer, stream: bool) -> None:
    body = {
        "messages": [{"role": "user", "content": "Think."}],
        "max_tokens": 40,
        "ignore_eos": True,
        "seed": 3,
        "n": 2,
        "temperature": 2.0,
        "top_k": 0,
        "top_p": 1.0,
        "return_token_ids": True,
    }
    (close_id,) = ask(server, "/tokenize", prompt="</think>")["tokens"]
    (open_id,) = ask(server, "/tokenize", prompt="<think>")["tokens"]
    body["logit_bias"] = {str(open_id): -100}  # one of the model's own would be content
    for budget in (0, 9):
        fields = {**body, "thinking_token_budget": budget}
        if stream:
            with server.http.stream("POST", CHAT, json={**fields, "stream": True}) as response:
                text = response.read().decode()
            assert "think>" not in text
            assert '"content":' in text
            continue
        answers = ask(server, CHAT, **fields)["choices"]
        for choice in answers:
            assert choice["token_ids"].index(close_id) <= budget
            message = choice["message"]
            assert message["content"]
            assert "think>" not in message["content"] + (message["reasoning"] or "")
            assert message["reasoning"] is None or budget > 0
        assert answers[0]["token_ids"] != answers[1]["token_ids"]
    longer = ask(server, CHAT, **{**body, "thinking_token_budget": 1000})["choices"][0]
    assert longer["token_ids"] == ask(server, CHAT, **body)["choices"][0]["token_ids"]


def test_samplers_repeat_by_seed_and_change_the_text(server: LiveServer) -> None:
    def ids(**fields: Any) -> list[int]:
        wide = {"temperature": 2.0, "top_k": 0, "top_p": 1.0}
        body = {"max_tokens": 40, "ignore_eos": True, "return_token_ids": True, **wide, **fields}
        return complete(server, PROMPT, **body)["token_ids"]

    for extra in (
        {"xtc_probability": 1.0, "xtc_threshold": 0.0001},
        {"dry_multiplier": 50.0, "dry_allowed_length": 0},
    ):
        assert ids(seed=4, **extra) == ids(seed=4, **extra)
        assert ids(seed=4, **extra) != ids(seed=4)
    # With no length allowed, every token that is there already costs 50: none comes again.
    penalised = {"dry_multiplier": 50.0, "dry_allowed_length": 0, "dry_base": 1}
    distinct = ids(temperature=0, dry_sequence_breakers=[], **penalised)
    assert len(set(distinct)) == len(distinct)


def test_a_forced_loop_is_detected(server: LiveServer) -> None:
    choice = complete(
        server,
        PROMPT,
        max_tokens=50,
        allowed_token_ids=[300],
        ignore_eos=True,
        return_token_ids=True,
        repetition_detection={"max_pattern_size": 3, "min_count": 8},
    )
    assert choice["token_ids"] == [300] * 8
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "repetition_detected")


def test_timings_add_up(server: LiveServer) -> None:
    answer = ask(server, COMPLETIONS, prompt=PROMPT, max_tokens=20, ignore_eos=True, timings=True)
    timings = answer["timings"]
    parts = timings["queue_ms"] + timings["prefill_ms"] + timings["decode_ms"]
    assert 0 < parts <= timings["total_ms"] + 0.01
    assert timings["prefill_tokens_per_s"] > 0
    assert timings["decode_tokens_per_s"] > 0
    assert (timings["prompt_tokens"], timings["completion_tokens"]) == (len(PROMPT), 20)
