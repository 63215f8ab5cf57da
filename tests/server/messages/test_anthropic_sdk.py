"""The Anthropic SDK, sync and async, against the served application."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from engine import FinishReason, QueueFull, RequestFailed
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import build_server
from tests.server.http.asking import PARIS_CALL, ROME_CALL, say
from tests.server.http.live import Live, serving
from tests.server.messages.asking import WEATHER, script

pytestmark = pytest.mark.anyio

KEY = "sk-test"
TURNS: list[Any] = [{"role": "user", "content": "What is the weather?"}]
ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 400, "messages": TURNS}
PLAIN: dict[str, Any] = {**ASK, "thinking": {"type": "disabled"}}
TOOLS: list[Any] = [WEATHER]


@pytest.fixture
async def live(validator: Validator, tokenizer: Tokenizer) -> AsyncIterator[Live]:
    async with serving(build_server(validator, tokenizer, api_keys=(KEY,))) as live:
        yield live


@pytest.fixture
async def sdk(live: Live) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=live.url, api_key=KEY, max_retries=0) as client:
        yield client


async def test_create(live: Live, sdk: anthropic.AsyncAnthropic, tokenizer: Tokenizer) -> None:
    live.server.engine.will(*say(tokenizer, "Hm.\n</think>\n\nSunny."), num_cached_tokens=4)
    answer = await sdk.messages.create(
        **ASK,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        thinking={"type": "enabled", "budget_tokens": 1024},
        stop_sequences=["zzz"],
        metadata={"user_id": "somebody"},
        extra_body={"temperature": 0.5, "top_k": 5},
    )
    assert [block.type for block in answer.content] == ["thinking", "text"]
    thought, said = answer.content
    assert thought.type == "thinking"
    assert thought.thinking == "Hm."
    assert thought.signature
    assert said.type == "text"
    assert said.text == "Sunny."
    assert answer.stop_reason == "end_turn"
    assert answer.usage.cache_read_input_tokens == 4
    assert answer._request_id
    sampling = live.server.engine.submitted[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.5, 5, 400)


async def test_a_round_of_tools(
    live: Live, sdk: anthropic.AsyncAnthropic, tokenizer: Tokenizer
) -> None:
    script(live.server, tokenizer, f"Hm.\n</think>\n\nI look.\n\n{PARIS_CALL}\n{ROME_CALL}")
    answer = await sdk.messages.create(**ASK, tools=TOOLS)
    assert answer.stop_reason == "tool_use"
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert [call.input for call in calls] == [
        {"city": "Paris", "days": 3},
        {"city": "Rome", "days": 3},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"Sunny {i}."}
        for i, call in enumerate(calls)
    ]
    script(live.server, tokenizer, "Sunny in both.")
    history: list[Any] = [*TURNS, answer.to_param(), {"role": "user", "content": results}]
    answer = await sdk.messages.create(**{**PLAIN, "messages": history}, tools=TOOLS)
    assert answer.content[0].type == "text"
    prompt = tokenizer.decode(live.server.engine.submitted[1].prompt_ids)
    parts = ["<think>\nHm.\n</think>", "I look.", "Paris", "Rome", "Sunny 0.", "Sunny 1."]
    places = [prompt.rindex(part) for part in parts]
    assert places == sorted(places)


async def test_the_stream_helper_adds_up_to_the_whole_message(
    live: Live, sdk: anthropic.AsyncAnthropic, tokenizer: Tokenizer
) -> None:
    text = f"Hm.\n</think>\n\nI look.\n\n{PARIS_CALL}\n{ROME_CALL}"
    script(live.server, tokenizer, text)
    script(live.server, tokenizer, text)
    whole = await sdk.messages.create(**ASK, tools=TOOLS)
    kinds: set[str] = set()
    async with sdk.messages.stream(**ASK, tools=TOOLS) as stream:
        async for event in stream:
            kinds.add(event.type)
        streamed = await stream.get_final_message()
    assert kinds >= {"thinking", "signature", "text", "input_json", "message_stop"}
    assert comparable(streamed) == comparable(whole)


async def test_a_call_cut_at_the_limit_is_the_same_for_the_helper(
    live: Live, sdk: anthropic.AsyncAnthropic, tokenizer: Tokenizer
) -> None:
    for end in (70, 80, 90, 100, len(PARIS_CALL)):
        cut = PARIS_CALL[:end]
        script(live.server, tokenizer, cut, FinishReason.LENGTH)
        script(live.server, tokenizer, cut, FinishReason.LENGTH)
        whole = await sdk.messages.create(**PLAIN, tools=TOOLS)
        async with sdk.messages.stream(**PLAIN, tools=TOOLS) as stream:
            streamed = await stream.get_final_message()
        assert comparable(streamed) == comparable(whole)
        assert whole.stop_reason == "max_tokens"


def comparable(message: Any) -> dict[str, Any]:
    """A message without what is new for each request."""
    found = message.to_dict(exclude_none=True)
    del found["id"]
    for block in found["content"]:
        block.pop("id", None)
    return found


async def test_raw_stream(live: Live, sdk: anthropic.AsyncAnthropic, tokenizer: Tokenizer) -> None:
    script(live.server, tokenizer, "A sunny day.")
    stream = await sdk.messages.create(**PLAIN, stop_sequences=["day"], stream=True)
    text, reasons = "", []
    async for event in stream:
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            text += event.delta.text
        if event.type == "message_delta":
            reasons.append((event.delta.stop_reason, event.delta.stop_sequence))
    assert text == "A sunny "
    assert reasons == [("stop_sequence", "day")]


async def test_count_tokens(
    live: Live, sdk: anthropic.AsyncAnthropic, tokenizer: Tokenizer
) -> None:
    counted = await sdk.messages.count_tokens(model="tiny", messages=TURNS, tools=TOOLS, system="x")
    live.server.engine.will(*say(tokenizer, "Fine."), num_cached_tokens=7)
    usage = (await sdk.messages.create(**ASK, tools=TOOLS, system="x")).usage
    assert usage.cache_read_input_tokens == 7
    assert counted.input_tokens == usage.input_tokens + 7


async def test_errors_become_the_sdks_classes(
    live: Live, sdk: anthropic.AsyncAnthropic, tokenizer: Tokenizer
) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        await sdk.messages.create(**{**ASK, "model": "claude"})
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError) as refused:
        await sdk.messages.create(**{**ASK, "max_tokens": 0})
    assert refused.value.type == "invalid_request_error"
    assert refused.value.api_message == "max_tokens must be at least 1"
    with pytest.raises(anthropic.AuthenticationError):
        await sdk.with_options(api_key="wrong").messages.create(**ASK)
    live.server.engine.will(QueueFull("x"))
    with pytest.raises(anthropic.RateLimitError) as full:
        await sdk.messages.create(**ASK, stream=True)
    assert full.value.type == "overloaded_error"
    live.server.engine.will(*say(tokenizer, "abc", end=None), RequestFailed("x"), finish=None)
    with pytest.raises(anthropic.APIStatusError) as fault:
        async with sdk.messages.stream(**PLAIN) as stream:
            await stream.get_final_message()
    assert fault.value.type == "api_error"


async def test_closing_a_stream_cancels(
    live: Live, sdk: anthropic.AsyncAnthropic, tokenizer: Tokenizer
) -> None:
    engine = live.server.engine
    engine.will(*say(tokenizer, "abc", end=None), finish=None)
    async with sdk.messages.stream(**PLAIN) as stream:
        async for _ in stream:
            break
    async with asyncio.timeout(5):
        while engine.num_active:
            await asyncio.sleep(0.005)
    assert len(engine.cancelled) == 1


async def test_the_sync_client(live: Live, tokenizer: Tokenizer) -> None:
    script(live.server, tokenizer, "It is sunny.")
    script(live.server, tokenizer, f"I look.\n\n{PARIS_CALL}")

    def ask() -> tuple[str, str, int]:
        with anthropic.Anthropic(base_url=live.url, auth_token=KEY, max_retries=0) as client:
            said = client.messages.create(**PLAIN).content[0]
            assert said.type == "text"
            with client.messages.stream(**PLAIN, tools=TOOLS) as stream:
                shown = "".join(stream.text_stream)
                call = stream.get_final_message().content[1]
            assert call.type == "tool_use"
            counted = client.messages.count_tokens(model="tiny", messages=TURNS)
            return said.text, shown + json.dumps(call.input), counted.input_tokens

    said, streamed, num_tokens = await asyncio.to_thread(ask)
    assert said == "It is sunny."
    assert streamed == 'I look.{"city": "Paris", "days": 3}'
    assert num_tokens > 5


async def test_the_tool_runner_runs_two_steps_and_goes_on_without_a_thread(
    live: Live, sdk: anthropic.AsyncAnthropic, tokenizer: Tokenizer
) -> None:
    asked: list[tuple[str, int]] = []

    @anthropic.beta_async_tool
    async def get_weather(city: str, days: int = 3) -> str:
        """The weather of the next days."""
        asked.append((city, days))
        return f"Sunny in {city}."

    script(live.server, tokenizer, f"Hm.\n</think>\n\n{PARIS_CALL}")
    script(live.server, tokenizer, f"And there.\n</think>\n\n{ROME_CALL}")
    script(live.server, tokenizer, "Done.\n</think>\n\nSunny in both.")
    runner = sdk.beta.messages.tool_runner(**ASK, tools=[get_weather])
    answer = await runner.until_done()
    assert asked == [("Paris", 3), ("Rome", 3)]
    assert answer.stop_reason == "end_turn"
    assert [block.text for block in answer.content if block.type == "text"] == ["Sunny in both."]
    prompt = tokenizer.decode(live.server.engine.submitted[-1].prompt_ids)
    assert prompt.index("What is the weather?") < prompt.index("Sunny in Paris.")
    assert prompt.index("Sunny in Paris.") < prompt.index("Sunny in Rome.")
    assert len(live.server.engine.submitted) == 3


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_thread_is_refused_in_words_that_clients_know(
    live: Live, sdk: anthropic.AsyncAnthropic, path: str
) -> None:
    body = {**ASK, "thread": {"type": "new"}}
    with pytest.raises(anthropic.BadRequestError) as caught:
        await sdk.post(path, body=body, cast_to=object)
    error: Any = caught.value.body
    assert error["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert "thread" in error["error"]["message"]
