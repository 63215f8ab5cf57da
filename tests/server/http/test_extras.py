"""Fields beyond OpenAI's, through the application: what they add to answers, and where."""

from typing import Any

import httpx
import pytest

from engine import FinishReason
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import (
    CHAT,
    COMPLETIONS,
    PARIS_CALL,
    WEATHER_TOOL,
    chat,
    events,
    fold,
    say,
    thinking,
)

pytestmark = pytest.mark.anyio

RENDER = "/v1/chat/completions/render"
LOOP = {"max_pattern_size": 4, "min_count": 3}


def ids_of(chunks: list[dict[str, Any]], index: int = 0) -> list[int]:
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    assert all("token_ids" in choice for choice in choices)
    return [token_id for choice in choices for token_id in choice["token_ids"]]


async def test_a_whole_chat_with_token_ids_is_these_bytes(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "ab"))
    response = await client.post(CHAT, json=chat(return_token_ids=True))
    answer = response.json()
    prompt = ",".join(map(str, server.engine.submitted[0].prompt_ids))
    output = ",".join(str(step[0]) for step in say(tokenizer, "ab"))
    num_prompt, num_output = prompt.count(",") + 1, output.count(",") + 1
    assert response.text == (
        f'{{"id":"{answer["id"]}","object":"chat.completion","created":{answer["created"]},'
        '"model":"tiny","system_fingerprint":"deltaserve-1.2.3","choices":[{"index":0,'
        '"message":{"role":"assistant","content":"ab","reasoning_content":null,'
        '"reasoning":null},"logprobs":null,"finish_reason":"stop","stop_reason":null,'
        f'"token_ids":[{output}]}}],"usage":{{"prompt_tokens":{num_prompt},'
        f'"completion_tokens":{num_output},"total_tokens":{num_prompt + num_output},'
        '"prompt_tokens_details":{"cached_tokens":0},'
        '"completion_tokens_details":{"reasoning_tokens":0}},'
        f'"prompt_token_ids":[{prompt}]}}'
    )


async def test_a_streamed_chat_with_token_ids_is_these_bytes(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "ab"))
    options = {"include_usage": True}
    response = await client.post(
        CHAT, json=chat(stream=True, return_token_ids=True, stream_options=options)
    )
    first = events(response.content)[0]
    prompt = ",".join(map(str, server.engine.submitted[0].prompt_ids))
    a, b, end = (step[0] for step in say(tokenizer, "ab"))
    head = (
        f'data: {{"id":"{first["id"]}","object":"chat.completion.chunk",'
        f'"created":{first["created"]},"model":"tiny",'
        '"system_fingerprint":"deltaserve-1.2.3","choices":['
    )
    middle = '},"logprobs":null,"finish_reason":'
    rest = 'null,"stop_reason":null,"token_ids":'
    text = response.text
    assert text.startswith(
        f'{head}{{"index":0,"delta":{{"role":"assistant","content":"a"{middle}{rest}[{a}]}}],'
        f'"prompt_token_ids":[{prompt}],"usage":null}}\n\n'
        f'{head}{{"index":0,"delta":{{"content":"b"{middle}{rest}[{b}]}}],"usage":null}}\n\n'
        f'{head}{{"index":0,"delta":{{{middle}"stop","stop_reason":null,"token_ids":[{end}]}}],'
        '"usage":null}\n\n'
        f'{head}],"usage":{{"prompt_tokens":'
    )


CASES: dict[str, tuple[str, dict[str, Any], str, FinishReason]] = {
    "chat": (CHAT, chat(), "Hello, 世界 😀!", FinishReason.STOP),
    "cut chat": (CHAT, chat(), "Hello, 世", FinishReason.LENGTH),
    "reasoning": (CHAT, thinking(), "I think.\n</think>\n\nSunny.", FinishReason.STOP),
    "hidden reasoning": (
        CHAT,
        thinking(include_reasoning=False),
        "I think.\n</think>\n\nSunny.",
        FinishReason.STOP,
    ),
    "call": (CHAT, chat(tools=[WEATHER_TOOL]), f"I look.\n{PARIS_CALL}", FinishReason.STOP),
    "stop string": (CHAT, chat(stop=["sunny"]), "It is sunny today.", FinishReason.STOP),
    "completion": (COMPLETIONS, {"prompt": "The"}, " lazy 世 dog", FinishReason.STOP),
    "cut completion": (COMPLETIONS, {"prompt": "The"}, " lazy 世", FinishReason.LENGTH),
    "echo": (COMPLETIONS, {"prompt": "The", "echo": True}, " dog", FinishReason.STOP),
    "stopped completion": (COMPLETIONS, {"prompt": "A", "stop": "zy"}, "lazy", FinishReason.STOP),
    "loop": (
        CHAT,
        chat(repetition_detection=LOOP),
        "It is" + " sea shells" * 9,
        FinishReason.STOP,
    ),
    "loop in thinking": (
        CHAT,
        thinking(repetition_detection=LOOP),
        "I" + " the dog" * 9 + "\n</think>\n\nDog.",
        FinishReason.STOP,
    ),
    "loop in a call": (
        CHAT,
        chat(tools=[WEATHER_TOOL], repetition_detection=LOOP),
        PARIS_CALL.replace("Paris", "Paris" + " sea shells" * 9),
        FinishReason.STOP,
    ),
}


@pytest.mark.parametrize("group", [1, 3, 1000])
@pytest.mark.parametrize("name", CASES)
async def test_streamed_and_whole_are_equal(
    name: str, group: int, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    """Token ids above all: those that the engine sampled, up to the one that ended the choice."""
    path, body, text, finish = CASES[name]
    body = {
        "max_tokens": 1000,
        **body,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    body |= {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
    end = "<|im_end|>" if finish is FinishReason.STOP else None
    ids = [token_id for step in say(tokenizer, text, end=end) for token_id in step]
    for size in (1, group):
        server.engine.will(
            *[tuple(ids[i : i + size]) for i in range(0, len(ids), size)], finish=finish
        )
    whole = (await client.post(path, json=body)).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events((await client.post(path, json={**body, **options})).content)
    choice = whole["choices"][0]
    assert ids_of(chunks) == choice["token_ids"]
    assert len(choice["token_ids"]) == whole["usage"]["completion_tokens"]
    assert choice["token_ids"] == ids[: len(choice["token_ids"])]
    assert chunks[-1]["usage"] == whole["usage"]
    prompt_ids = list(server.engine.submitted[0].prompt_ids)
    if path == CHAT:
        assert whole["prompt_token_ids"] == chunks[0]["prompt_token_ids"] == prompt_ids
        assert all("prompt_token_ids" not in chunk for chunk in chunks[1:])
        joined = fold(chunks)
        assert joined["logprobs"] == choice["logprobs"]["content"]
        assert joined["content"] == (choice["message"]["content"] or "")
        assert joined["reasoning"] == (choice["message"]["reasoning"] or "")
        ends = (joined["finish_reason"], joined["stop_reason"])
    else:
        assert choice["prompt_token_ids"] == prompt_ids
        assert [c["choices"][0].get("prompt_token_ids") for c in chunks[:-1]] == [
            prompt_ids,
            *[None] * (len(chunks) - 2),
        ]
        assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == choice["text"]
        ends = tuple(chunks[-2]["choices"][0][name] for name in ("finish_reason", "stop_reason"))
    assert ends == (choice["finish_reason"], choice["stop_reason"])


async def test_token_ids_of_several_choices_and_prompts(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    texts = ["one", "two", "three", "four"]
    for _ in range(2):
        for text in texts:
            server.engine.will(*say(tokenizer, text))
    expected = [[step[0] for step in say(tokenizer, text)] for text in texts]
    prompts = [tokenizer.encode(text) for text in ("The", "The", "A dog", "A dog")]
    body = {"prompt": ["The", "A dog"], "n": 2, "return_token_ids": True}
    choices = (await client.post(COMPLETIONS, json=body)).json()["choices"]
    assert [choice["token_ids"] for choice in choices] == expected
    assert [choice["prompt_token_ids"] for choice in choices] == prompts
    chunks = events((await client.post(COMPLETIONS, json={**body, "stream": True})).content)
    for index in range(4):
        assert ids_of(chunks, index) == expected[index]
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert [c.get("prompt_token_ids") for c in mine] == [
            prompts[index],
            *[None] * (len(mine) - 1),
        ]


async def test_without_them_no_answer_has_their_keys(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    for path, body in ((CHAT, chat()), (COMPLETIONS, {"prompt": "The"})):
        server.engine.will(*say(tokenizer, "x"))
        answer = (await client.post(path, json=body)).json()
        keys = set(answer) | set(answer["choices"][0])
        assert not keys & {
            "token_ids",
            "prompt_token_ids",
            "prompt_logprobs",
            "timings",
        }


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_prompt_logprobs(
    path: str, server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "x"))
    body = chat() if path == CHAT else {"prompt": "The lazy dog"}
    answer = (await client.post(path, json={**body, "prompt_logprobs": 2})).json()
    scores = (answer if path == CHAT else answer["choices"][0])["prompt_logprobs"]
    prompt_ids = server.engine.submitted[0].prompt_ids
    assert server.engine.submitted[0].sampling.num_prompt_logprobs == 2
    assert scores == [None] + [
        {
            str(i): {"logprob": -0.25, "rank": 1, "decoded_token": tokenizer.token_str(i)},
            str(i + 1): {"logprob": -1.25, "rank": 2, "decoded_token": tokenizer.token_str(i + 1)},
        }
        for i in prompt_ids[1:]
    ]
    assert answer["choices"][0]["logprobs"] is None


async def test_prompt_logprobs_zero_and_beside_echo(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    server.engine.will(*say(tokenizer, "x"))
    body = {"prompt": "The dog", "echo": True, "logprobs": 3, "prompt_logprobs": 0}
    choice = (await client.post(COMPLETIONS, json=body)).json()["choices"][0]
    ids = tokenizer.encode("The dog")
    assert [list(entry) for entry in choice["prompt_logprobs"][1:]] == [[str(i)] for i in ids[1:]]
    assert len(choice["logprobs"]["top_logprobs"][1]) == 3
    server.engine.will(*say(tokenizer, "x"))
    body |= {"logprobs": 0, "prompt_logprobs": 4}
    choice = (await client.post(COMPLETIONS, json=body)).json()["choices"][0]
    assert all(len(entry) == 4 for entry in choice["prompt_logprobs"][1:])
    assert all(len(entry) == 1 for entry in choice["logprobs"]["top_logprobs"][1:])


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (COMPLETIONS, {"prompt": "x"})])
async def test_prompt_logprobs_are_not_streamed(
    path: str, body: dict[str, Any], client: httpx.AsyncClient
) -> None:
    response = await client.post(path, json={**body, "prompt_logprobs": 1, "stream": True})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt_logprobs"


async def test_tokens_as_token_ids(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    text = "é世"
    ids = tokenizer.encode(text)
    server.engine.will(*say(tokenizer, text))
    body = chat(logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True)
    entries = (await client.post(CHAT, json=body)).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == [f"token_id:{i}" for i in ids]
    assert [[top["token"] for top in entry["top_logprobs"]] for entry in entries] == [
        [f"token_id:{i}", f"token_id:{i + 1}"] for i in ids
    ]
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == text.encode()
    server.engine.will(*say(tokenizer, text))
    body = {"prompt": [5, 6], "logprobs": 2, "echo": True, "return_tokens_as_token_ids": True}
    logprobs = (await client.post(COMPLETIONS, json=body)).json()["choices"][0]["logprobs"]
    sampled = (*ids, tokenizer.id_of("<|im_end|>"))
    assert logprobs["tokens"] == [f"token_id:{i}" for i in (5, 6, *sampled)]
    assert [
        top[f"token_id:{i}"] for i, top in zip(sampled, logprobs["top_logprobs"][2:], strict=True)
    ] == [-0.25] * len(sampled)
    assert logprobs["top_logprobs"][1:-1] == [
        {f"token_id:{i}": -0.25, f"token_id:{i + 1}": -1.25} for i in (6, *ids)
    ]


async def test_a_loop_ends_the_answer_and_the_engine_request(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("ab")
    server.engine.will(*[(i,) for i in ids * 9], finish=None)  # would go on for ever
    body = chat(repetition_detection={"max_pattern_size": 3, "min_pattern_size": 2, "min_count": 3})
    answer = (await client.post(CHAT, json=body)).json()
    choice = answer["choices"][0]
    assert choice["message"]["content"] == "ababab"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "repetition_detected")
    assert answer["usage"]["completion_tokens"] == 3 * len(ids)
    assert server.engine.cancelled == [server.engine.submitted[0].id]


async def test_a_loop_waits_for_min_tokens_and_yields_to_other_ends(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    (a,) = tokenizer.encode("a")

    async def ask(finish: FinishReason | None, num: int, **fields: Any) -> tuple[str, Any, Any]:
        server.engine.will(*[(a,)] * num, finish=finish)
        body = {"prompt": "x", "repetition_detection": LOOP, "max_tokens": 99, **fields}
        choice = (await client.post(COMPLETIONS, json=body)).json()["choices"][0]
        return choice["text"], choice["finish_reason"], choice["stop_reason"]

    assert await ask(None, 9) == ("aaa", "stop", "repetition_detected")
    assert await ask(None, 9, min_tokens=5) == ("aaaaa", "stop", "repetition_detected")
    assert await ask(FinishReason.LENGTH, 3) == ("aaa", "length", None)
    assert await ask(FinishReason.LENGTH, 4) == ("aaa", "stop", "repetition_detected")
    assert await ask(None, 9, stop="aaa") == ("", "stop", "aaa")
    assert await ask(None, 9, stop="aaab") == ("aaa", "stop", "repetition_detected")
    assert await ask(FinishReason.STOP, 3, stop_token_ids=[a]) == ("aa", "stop", a)


async def test_a_loop_leaves_a_call_open(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    text = PARIS_CALL.replace("Paris", "Paris" + " sea shells" * 9)
    server.engine.will(*say(tokenizer, text))
    body = chat(tools=[WEATHER_TOOL], repetition_detection=LOOP)
    choice = (await client.post(CHAT, json=body)).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "repetition_detected")
    arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
    assert arguments == '{"city": "Paris' + " sea shells" * 3


TIMING_KEYS = [
    "queue_ms",
    "prefill_ms",
    "decode_ms",
    "total_ms",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
]


def check_timings(timings: dict[str, Any], usage: dict[str, Any]) -> None:
    assert list(timings) == TIMING_KEYS
    assert timings["prompt_tokens"] == usage["prompt_tokens"]
    assert timings["completion_tokens"] == usage["completion_tokens"]
    assert timings["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    times = [timings[name] for name in ("queue_ms", "prefill_ms", "decode_ms")]
    assert all(time >= 0 for time in times)
    assert 0 < sum(times) <= timings["total_ms"] + 0.003


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (COMPLETIONS, {"prompt": "The dog"})])
async def test_timings(
    path: str,
    body: dict[str, Any],
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
) -> None:
    body = {**body, "timings": True}
    for _ in range(3):
        server.engine.will(*say(tokenizer, "It is sunny."), num_cached_tokens=1)
    whole = (await client.post(path, json=body)).json()
    check_timings(whole["timings"], whole["usage"])
    options = {"include_usage": True}
    response = await client.post(path, json={**body, "stream": True, "stream_options": options})
    *chunks, last = events(response.content)
    assert all("timings" not in chunk for chunk in chunks)
    assert last["choices"] == []
    check_timings(last["timings"], last["usage"])
    response = await client.post(path, json={**body, "stream": True})
    *chunks, last = events(response.content)
    assert "usage" not in last
    check_timings(last["timings"], whole["usage"])
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


async def test_render_is_what_would_run(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = thinking("Weather?", tools=[WEATHER_TOOL], max_tokens=7)
    response = await client.post(RENDER, json=body)
    rendered = response.json()
    assert response.headers["content-type"] == "application/json"
    assert list(rendered) == ["model", "prompt", "token_ids", "count", "max_model_len"]
    assert server.engine.submitted == []
    server.engine.will(*say(tokenizer, "x"))
    await client.post(CHAT, json=body)
    assert tuple(rendered["token_ids"]) == server.engine.submitted[0].prompt_ids
    assert rendered["prompt"] == tokenizer.decode(rendered["token_ids"])
    assert rendered["count"] == len(rendered["token_ids"])
    counted = {name: body[name] for name in ("messages", "tools", "chat_template_kwargs")}
    assert (await client.post("/tokenize", json=counted)).json()["count"] == rendered["count"]


@pytest.mark.parametrize(
    ("fields", "status"), [({"temperature": 9}, 400), ({"tools": []}, 400), ({"model": "no"}, 404)]
)
async def test_render_refuses_what_chat_refuses(
    fields: dict[str, Any], status: int, client: httpx.AsyncClient
) -> None:
    rendered = await client.post(RENDER, json=chat(**fields))
    asked = await client.post(CHAT, json=chat(**fields))
    assert rendered.status_code == asked.status_code == status
    assert rendered.json() == asked.json()
    assert (await client.get(RENDER)).status_code == 405


async def test_stop_strings_and_ids_are_kept_when_asked_for(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("abc")
    for path, body in ((CHAT, chat()), (COMPLETIONS, {"prompt": "x"})):
        for keeps in (True, False):
            fields = {**body, "include_stop_str_in_output": keeps}
            server.engine.will(*say(tokenizer, "abcd", end=None), finish=None)
            by_text = await client.post(path, json={**fields, "stop": ["bc", "q"]})
            server.engine.will(*[(i,) for i in ids])
            by_id = await client.post(path, json={**fields, "stop_token_ids": [ids[-1]]})
            assert ids[-1] in server.engine.submitted[-1].sampling.stop_token_ids
            for response, stop_reason, kept in ((by_text, "bc", "a"), (by_id, ids[-1], "ab")):
                choice = response.json()["choices"][0]
                text = choice["message"]["content"] if path == CHAT else choice["text"]
                assert text == ("abc" if keeps else kept)
                assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop_reason)


async def test_truncation_priority_and_salts_reach_the_engine(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    for path, body in ((CHAT, chat()), (COMPLETIONS, {"prompt": "The quick brown fox"})):
        for fields in ({}, {"truncate_prompt_tokens": 2, "priority": -7, "cache_salt": "tenant"}):
            server.engine.will(*say(tokenizer, "x"))
            response = await client.post(path, json={**body, **fields, "return_token_ids": True})
            assert response.status_code == 200
        whole, cut = server.engine.submitted[-2:]
        assert cut.prompt_ids == whole.prompt_ids[-2:]
        assert (whole.priority, cut.priority) == (0, -7)
        answer = response.json()
        assert answer["usage"]["prompt_tokens"] == 2
        told = answer if path == CHAT else answer["choices"][0]
        assert tuple(told["prompt_token_ids"]) == cut.prompt_ids
        for wrong in ({"truncate_prompt_tokens": 0}, {"priority": "high"}, {"cache_salt": ""}):
            refused = await client.post(path, json={**body, **wrong})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == next(iter(wrong))


async def test_a_final_message_is_continued(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    messages = [
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": "It is"},
    ]
    server.engine.will(*say(tokenizer, " sunny."))
    body = {"messages": messages, "continue_final_message": True}
    answer = (await client.post(CHAT, json=body)).json()
    assert answer["choices"][0]["message"]["content"] == " sunny."
    prompt = tokenizer.decode(server.engine.submitted[0].prompt_ids)
    assert prompt.endswith("It is")
    rendered = (await client.post(RENDER, json=body)).json()
    assert rendered["prompt"] == prompt
    messages[1] = {"role": "assistant", "content": "", "reasoning_content": "They want"}
    server.engine.will(*say(tokenizer, " rain.\n</think>\n\nRain."))
    body |= {"thinking_token_budget": 50}
    message = (await client.post(CHAT, json=body)).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (" rain.", "Rain.")
    assert server.engine.submitted[-1].sampling.thinking_budget == 50
    both = {**body, "add_generation_prompt": True}
    refused = (await client.post(CHAT, json=both)).json()["error"]
    assert refused["param"] == "continue_final_message"


async def test_harness_requests_are_scored(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    """lm-evaluation-harness: prompts as ids, one token generated, which the harness cuts off."""
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    for _ in prompts:
        server.engine.will((42,), finish=FinishReason.LENGTH)
    body = {
        "prompt": prompts,
        "echo": True,
        "max_tokens": 1,
        "logprobs": 1,
        "temperature": 0,
        "seed": 1234,
    }
    choices = (await client.post(COMPLETIONS, json=body)).json()["choices"]
    for prompt, choice in zip(prompts, choices, strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(prompt) + 1
        scored = logprobs["token_logprobs"][2:-1]
        assert sum(scored) == -0.25 * (len(prompt) - 2)
        tops = logprobs["top_logprobs"][2:-1]
        assert all(score == max(top.values()) for score, top in zip(scored, tops, strict=True))
