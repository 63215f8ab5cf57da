"""/v1/completions: batches, echo, logprobs, and streams that equal whole answers."""

from typing import Any

import httpx
import pytest
from tokenizers.normalizers import NFC

from engine import FinishReason
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import COMPLETIONS, events, say

pytestmark = pytest.mark.anyio


def fold(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    text, reasons = "", []
    logprobs: dict[str, list[Any]] = {}
    for choice in (c for chunk in chunks for c in chunk["choices"] if c["index"] == index):
        assert not reasons
        text += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            logprobs.setdefault(name, []).extend(values)
        if choice["finish_reason"] is not None:
            reasons.append((choice["finish_reason"], choice["stop_reason"]))
    return {"text": text, "logprobs": logprobs or None, "ends": reasons}


async def test_a_whole_answer_is_these_bytes(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, " dog"))
    response = await client.post(COMPLETIONS, json={"prompt": "The lazy"})
    answer = response.json()
    num_prompt = len(tokenizer.encode("The lazy"))
    num_out = len(tokenizer.encode(" dog")) + 1
    assert answer["id"].startswith("cmpl-")
    assert response.text == (
        f'{{"id":"{answer["id"]}","object":"text_completion","created":{answer["created"]},'
        '"model":"tiny","system_fingerprint":"deltaserve-1.2.3","choices":[{"index":0,'
        '"text":" dog","logprobs":null,"finish_reason":"stop","stop_reason":null}],'
        f'"usage":{{"prompt_tokens":{num_prompt},"completion_tokens":{num_out},'
        f'"total_tokens":{num_prompt + num_out},"prompt_tokens_details":{{"cached_tokens":0}},'
        '"completion_tokens_details":{"reasoning_tokens":0}}}'
    )


async def test_prompts_times_n(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    texts = ["one", "two", "three", "four"]
    for i, text in enumerate(texts):
        server.engine.will(*say(tokenizer, text), num_cached_tokens=i)
    body = {"prompt": ["The", "A dog"], "n": 2, "seed": 3}
    answer = (await client.post(COMPLETIONS, json=body)).json()
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert [c["text"] for c in answer["choices"]] == texts
    usage = answer["usage"]
    num_prompt = len(tokenizer.encode("The")) + len(tokenizer.encode("A dog"))
    assert usage["prompt_tokens"] == num_prompt
    assert usage["completion_tokens"] == sum(len(tokenizer.encode(t)) + 1 for t in texts)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0 + 2}
    asked = [tokenizer.decode(r.prompt_ids) for r in server.engine.submitted]
    assert asked == ["The", "The", "A dog", "A dog"]


@pytest.mark.parametrize("prompt", [[5, 6, 7], [[5, 6, 7]]])
async def test_token_id_prompts(
    prompt: list[Any], server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "x"))
    answer = (await client.post(COMPLETIONS, json={"prompt": prompt})).json()
    assert server.engine.submitted[0].prompt_ids == (5, 6, 7)
    assert answer["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("group", [1, 1000])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": 2},
        {"echo": True},
        {"echo": True, "logprobs": 1},
        {"stop": ["zy d"], "logprobs": 0},
        {"n": 2, "logprobs": 1, "seed": 1},
    ],
)
async def test_streamed_and_whole_are_equal(
    fields: dict[str, Any],
    group: int,
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
) -> None:
    ids = [i for step in say(tokenizer, " fox 世 jumps over the lazy dog.") for i in step]
    for size in (1, group):
        for _ in range(fields.get("n", 1)):
            server.engine.will(*[tuple(ids[i : i + size]) for i in range(0, len(ids), size)])
    body = {"prompt": "The quick brown", "max_tokens": 100, **fields}
    whole = (await client.post(COMPLETIONS, json=body)).json()
    streamed = await client.post(
        COMPLETIONS, json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    chunks = events(streamed.content)
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        joined = fold(chunks, choice["index"])
        assert joined["text"] == choice["text"]
        assert joined["logprobs"] == choice["logprobs"]
        assert joined["ends"] == [(choice["finish_reason"], choice["stop_reason"])]


async def test_echo_with_logprobs_covers_prompt_and_output(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    prompt, text = "The 世 fox", " jumps"
    server.engine.will(*say(tokenizer, text))
    body = {"prompt": prompt, "echo": True, "logprobs": 2}
    choice = (await client.post(COMPLETIONS, json=body)).json()["choices"][0]
    assert choice["text"] == prompt + text
    end_id = tokenizer.id_of("<|im_end|>")
    assert end_id is not None
    # The end is a sampled token too: harnesses count on an entry for each of them.
    ids = [*tokenizer.encode(prompt), *tokenizer.encode(text), end_id]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == [tokenizer.token_str(i) for i in ids]
    assert logprobs["token_logprobs"] == [None] + [-0.25] * (len(ids) - 1)
    assert logprobs["top_logprobs"][0] is None
    for token, top in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert top[token] == -0.25
        assert 1 <= len(top) <= 3
    offsets = logprobs["text_offset"]
    assert offsets == sorted(offsets)
    num_prompt = len(tokenizer.encode(prompt))
    assert offsets[num_prompt] == len(prompt)
    for i, offset in enumerate(offsets):
        assert choice["text"].startswith(tokenizer.decode(ids[:i]).rstrip("\ufffd"))
        assert offset == len(tokenizer.decode(ids[:i]).rstrip("\ufffd"))


async def test_echo_with_logprobs_is_the_text_that_the_tokens_say(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    """Where the tokenizer normalises: an e and its accent are one character."""
    before, tokenizer._backend.normalizer = tokenizer._backend.normalizer, NFC()
    prompt, said = "cafe\u0301 world", "caf\u00e9 world"
    server.engine.will(*say(tokenizer, " ok"))
    body = {"prompt": prompt, "echo": True, "logprobs": 0}
    try:
        choice = (await client.post(COMPLETIONS, json=body)).json()["choices"][0]
    finally:
        tokenizer._backend.normalizer = before
    assert choice["text"] == said + " ok"
    logprobs = choice["logprobs"]
    num_prompt = len(tokenizer.encode(said))
    assert logprobs["text_offset"][num_prompt] == len(said)
    ends = [*logprobs["text_offset"][1:], len(choice["text"])]
    for token, begin, end in zip(logprobs["tokens"], logprobs["text_offset"], ends, strict=True):
        if token.isascii() and begin < end:
            assert choice["text"][begin:end] == token


async def test_echo_without_tokens_scores_only(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will((), finish=FinishReason.LENGTH)
    body = {"prompt": "The quick", "echo": True, "max_tokens": 0, "logprobs": 1}
    answer = (await client.post(COMPLETIONS, json=body)).json()
    assert server.engine.submitted[0].sampling.max_tokens == 0
    choice = answer["choices"][0]
    assert choice["text"] == "The quick"
    assert len(choice["logprobs"]["tokens"]) == len(tokenizer.encode("The quick"))
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


async def test_a_stop_token_id_is_the_stop_reason(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("ab")
    server.engine.will(*[(i,) for i in ids])
    body = {"prompt": "The", "stop_token_ids": [ids[-1]]}
    choice = (await client.post(COMPLETIONS, json=body)).json()["choices"][0]
    assert choice["text"] == "a"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[-1])


async def test_a_matched_stop_string_cancels_the_engine_request(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "abc", end=None), finish=None)  # would go on for ever
    answer = await client.post(COMPLETIONS, json={"prompt": "The", "stop": "b"})
    choice = answer.json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("a", "stop", "b")
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert server.engine.cancelled == [server.engine.submitted[0].id]
