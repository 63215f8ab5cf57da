"""`include: ["message.output_text.logprobs"]`: of the text of messages, streamed and whole."""

import itertools
from typing import Any

import httpx
import openai
import pytest

from engine import FinishReason
from server.tokenizer import Tokenizer
from tests.fakes import FakeServer
from tests.server.http.asking import PARIS_CALL
from tests.server.responses.asking import ON, RESPONSES, WEATHER, ask, events, will_say

pytestmark = pytest.mark.anyio

LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


def text_of(logprobs: list[dict[str, Any]]) -> str:
    return bytes(itertools.chain.from_iterable(entry["bytes"] for entry in logprobs)).decode()


def deltas(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in found if event["type"] == "response.output_text.delta"]


@pytest.mark.parametrize("group", [1, 3, 1000])
@pytest.mark.parametrize(
    ("said", "texts"),
    [
        ("Hello there, it is < 3 °C.", ["Hello there, it is < 3 °C."]),
        ("Hm.\n</think>\n\nHello <b>there</b>.", ["Hello <b>there</b>."]),
        ("Hm.\n</think>\n\nI look.\n\n" + PARIS_CALL, ["I look."]),
        (PARIS_CALL + "\nAnd so on.", ["And so on."]),
    ],
)
async def test_each_token_of_a_message_has_one_and_no_other(
    server: FakeServer,
    client: httpx.AsyncClient,
    tokenizer: Tokenizer,
    said: str,
    texts: list[str],
    group: int,
) -> None:
    fields: dict[str, Any] = {**LOGPROBS, "tools": [WEATHER], **(ON if "</think>" in said else {})}
    will_say(server, tokenizer, said, group=group)
    found = events((await client.post(RESPONSES, json=ask(stream=True, **fields))).content)
    will_say(server, tokenizer, said, group=group)
    whole = (await client.post(RESPONSES, json=ask(**fields))).json()

    for response in (whole, found[-1]["response"]):
        assert response["top_logprobs"] == 2
        messages = [item for item in response["output"] if item["type"] == "message"]
        parts = [part for message in messages for part in message["content"]]
        assert [part["text"].strip() for part in parts] == texts
        for part in parts:
            if group < 1000:  # else tokens of several parts are told apart by the whole text only
                assert text_of(part["logprobs"]).strip() == part["text"].strip()
            for entry in part["logprobs"]:
                assert entry["logprob"] == -0.25
                assert len(entry["top_logprobs"]) == 2
                assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
    done = [event for event in found if event["type"] == "response.output_text.done"]
    streamed = [entry for event in deltas(found) for entry in event["logprobs"]]
    assert streamed == [entry for event in done for entry in event["logprobs"]]


async def test_a_cut_answer_has_them_too(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    will_say(server, tokenizer, "It is <", FinishReason.LENGTH)
    body = (await client.post(RESPONSES, json=ask(**LOGPROBS))).json()
    (part,) = body["output"][0]["content"]
    assert text_of(part["logprobs"]) == part["text"] == "It is <"


async def test_top_logprobs_alone_ask_for_them(
    server: FakeServer, client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    for fields, num_top in (({"top_logprobs": 3}, 3), ({"include": LOGPROBS["include"]}, 0)):
        will_say(server, tokenizer, "Hi.")
        body = (await client.post(RESPONSES, json=ask(**fields))).json()
        logprobs = body["output"][0]["content"][0]["logprobs"]
        assert text_of(logprobs) == "Hi."
        assert {len(entry["top_logprobs"]) for entry in logprobs} == {num_top}
    will_say(server, tokenizer, "Hi.")
    body = (await client.post(RESPONSES, json=ask(top_logprobs=0))).json()
    assert body["output"][0]["content"][0]["logprobs"] == []


async def test_the_sdk_reads_them(server: FakeServer, tokenizer: Tokenizer) -> None:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(server.app))
    client = openai.AsyncOpenAI(api_key="x", base_url="http://test/v1", http_client=http)
    will_say(server, tokenizer, "Hm.\n</think>\n\nHi.")
    response = await client.responses.create(
        model="tiny", input="Hi", include=["message.output_text.logprobs"], top_logprobs=1
    )
    (part,) = response.output[-1].content
    assert part.logprobs is not None
    assert "".join(entry.token for entry in part.logprobs) == "Hi."
    will_say(server, tokenizer, "Hm.\n</think>\n\nHi.")
    async with client.responses.stream(
        model="tiny", input="Hi", include=["message.output_text.logprobs"], top_logprobs=1
    ) as stream:
        tokens = [
            (entry.token, [top.token for top in entry.top_logprobs or ()])
            async for event in stream
            if event.type == "response.output_text.delta"
            for entry in event.logprobs
        ]
    assert tokens == [
        (entry.token, [top.token for top in entry.top_logprobs]) for entry in part.logprobs
    ]
