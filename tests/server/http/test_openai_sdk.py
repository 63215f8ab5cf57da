"""The OpenAI SDK, sync and async, against the served application."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from engine import FinishReason, QueueFull, Request
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import Script, build_server
from tests.server.http.asking import PARIS_CALL, ROME_CALL, WEATHER_TOOL, say
from tests.server.http.live import Live, serving

pytestmark = pytest.mark.anyio

MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather?"}]
NO_THINKING: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture
async def live(validator: Validator, tokenizer: Tokenizer) -> AsyncIterator[Live]:
    async with serving(build_server(validator, tokenizer, api_keys=("sk-test",))) as live:
        yield live


@pytest.fixture
async def sdk(live: Live) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{live.url}/v1", api_key="sk-test", max_retries=0
    ) as client:
        yield client


async def test_chat(live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer) -> None:
    live.server.engine.will(*say(tokenizer, "Let me see.\n</think>\n\nSunny."))
    answer = await sdk.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    choice = answer.choices[0]
    assert choice.message.content == "Sunny."
    assert choice.message.model_dump()["reasoning_content"] == "Let me see."
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.content
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_chat_stream(live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer) -> None:
    live.server.engine.will(*say(tokenizer, "It is sunny."))
    stream = await sdk.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=NO_THINKING,
    )
    text, usages = "", []
    async for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usages.append(chunk.usage)
    assert text == "It is sunny."
    assert usages[-1] is not None
    assert usages[:-1] == [None] * (len(usages) - 1)


async def test_tools(live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer) -> None:
    live.server.engine.will(*say(tokenizer, f"{PARIS_CALL}\n{ROME_CALL}"))
    answer = await sdk.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=[WEATHER_TOOL], extra_body=NO_THINKING
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    calls: list[Any] = [call.model_dump() for call in choice.message.tool_calls]
    cities = [json.loads(call["function"]["arguments"])["city"] for call in calls]
    assert cities == ["Paris", "Rome"]
    history = [
        *MESSAGES,
        choice.message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call["id"], "content": "Sunny"} for call in calls),
    ]
    live.server.engine.will(*say(tokenizer, "Sunny in both."))
    answer = await sdk.chat.completions.create(
        model="tiny", messages=history, tools=[WEATHER_TOOL], extra_body=NO_THINKING
    )
    assert answer.choices[0].message.content == "Sunny in both."


async def test_the_sdks_own_stream_helper_adds_up(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    live.server.engine.will(*say(tokenizer, f"I look.\n\n{PARIS_CALL}\n{ROME_CALL}"))
    async with sdk.chat.completions.stream(
        model="tiny", messages=MESSAGES, tools=[WEATHER_TOOL], extra_body=NO_THINKING
    ) as stream:
        async for _ in stream:
            pass
        answer = await stream.get_final_completion()
    message = answer.choices[0].message
    assert message.content == "I look."
    assert message.tool_calls is not None
    found = [json.loads(call.function.arguments) for call in message.tool_calls]
    assert found == [{"city": "Paris", "days": 3}, {"city": "Rome", "days": 3}]
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_completions(live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer) -> None:
    live.server.engine.will(*say(tokenizer, " fox"))
    answer = await sdk.completions.create(model="tiny", prompt="The brown", logprobs=1, echo=True)
    assert answer.choices[0].text == "The brown fox"
    assert answer.choices[0].logprobs is not None
    live.server.engine.will(*say(tokenizer, " fox"))
    stream = await sdk.completions.create(model="tiny", prompt="The brown", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == " fox"


async def test_errors_become_the_sdks_classes(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    with pytest.raises(openai.NotFoundError):
        await sdk.chat.completions.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
    assert refused.value.param == "temperature"
    live.server.engine.will(QueueFull("x"))
    with pytest.raises(openai.RateLimitError):
        await sdk.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    with pytest.raises(openai.AuthenticationError):
        await sdk.with_options(api_key="wrong").models.list()
    live.server.engine.will(*say(tokenizer, "abc", end=None), KeyError("x"), finish=None)
    stream = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass


async def test_closing_a_stream_cancels(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    engine = live.server.engine
    engine.will(*say(tokenizer, "abc", end=None), finish=None)
    stream = await sdk.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, extra_body=NO_THINKING
    )
    async for _ in stream:
        break
    await stream.close()
    async with asyncio.timeout(1):
        while engine.num_active:
            await asyncio.sleep(0.005)
    assert len(engine.cancelled) == 1


async def test_the_sync_client(live: Live, tokenizer: Tokenizer) -> None:
    live.server.engine.will(*say(tokenizer, "It is sunny."))

    def ask() -> tuple[list[str], str]:
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="sk-test", max_retries=0) as client:
            stream = client.chat.completions.create(
                model="tiny", messages=MESSAGES, stream=True, extra_body=NO_THINKING
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return [model.id for model in client.models.list()], text

    assert await asyncio.to_thread(ask) == (["tiny", "alias"], "It is sunny.")


async def test_mixed_traffic_disturbs_nobody(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    """Good, invalid and vanishing requests at once: each good one gets its own text."""

    def script(request: Request) -> Script:
        prompt = tokenizer.decode(request.prompt_ids)
        number = prompt.partition("Number ")[2].partition(".")[0]
        return Script(say(tokenizer, f"This is {number}."), FinishReason.STOP)

    live.server.engine.default = script

    async def good(i: int) -> None:
        answer = await sdk.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": f"Number {i}."}],
            extra_body=NO_THINKING,
        )
        assert answer.choices[0].message.content == f"This is {i}."

    async def invalid() -> None:
        with pytest.raises(openai.BadRequestError):
            await sdk.chat.completions.create(model="tiny", messages=[], n=0)

    async def vanishing(i: int) -> None:
        stream = await sdk.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": f"Number {i}."}],
            stream=True,
            extra_body=NO_THINKING,
        )
        await stream.close()

    async with asyncio.TaskGroup() as tasks:
        for i in range(60):
            kind = i % 20
            work = good(i) if kind < 12 else invalid() if kind < 17 else vanishing(i)
            tasks.create_task(work)
    async with asyncio.timeout(2):
        while live.server.engine.num_active or live.server.lifecycle.num_in_flight:
            await asyncio.sleep(0.01)
