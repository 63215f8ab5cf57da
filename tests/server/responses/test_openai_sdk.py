"""The OpenAI SDK's own Responses client, sync and async, against the served application."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from engine import FinishReason
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.server.http.asking import PARIS_CALL, say
from tests.server.http.live import Live, serving
from tests.server.responses.asking import OFF, ON, WEATHER, will_say
from tests.server.responses.wiring import build

pytestmark = pytest.mark.anyio
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOLS: list[Any] = [{**WEATHER, "strict": False}]


@pytest.fixture
async def live(validator: Validator, tokenizer: Tokenizer) -> AsyncIterator[Live]:
    async with serving(build(validator, tokenizer, api_keys=("sk-test", "sk-other"))) as live:
        yield live


@pytest.fixture
async def sdk(live: Live) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{live.url}/v1", api_key="sk-test", max_retries=0
    ) as client:
        yield client


async def test_create_retrieve_list_delete(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    will_say(live.server, tokenizer, "Hm.\n</think>\n\nSunny.")
    created = await sdk.responses.create(
        model="tiny",
        input="Weather?",
        instructions="Be brief.",
        reasoning={"effort": "medium"},
        metadata={"a": "b"},
    )
    assert created.output_text == "Sunny."
    assert [item.type for item in created.output] == ["reasoning", "message"]
    assert created.status == "completed"
    assert created.usage is not None
    assert created.usage.total_tokens == created.usage.input_tokens + created.usage.output_tokens
    assert created.usage.output_tokens_details.reasoning_tokens > 0
    again = await sdk.responses.retrieve(created.id)
    assert again.to_dict() == created.to_dict()
    items = [item async for item in sdk.responses.input_items.list(created.id, limit=1)]
    assert [item.content[0].text for item in items if item.type == "message"] == ["Weather?"]  # type: ignore
    with pytest.raises(openai.BadRequestError):
        await sdk.responses.cancel(created.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.with_options(api_key="sk-other").responses.retrieve(created.id)
    await sdk.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(created.id)


async def test_a_tool_loop_by_id_and_by_items(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    will_say(live.server, tokenizer, f"I look.\n\n{PARIS_CALL}")
    asked: list[Any] = [{"role": "user", "content": "Weather?"}]
    first = await sdk.responses.create(model="tiny", input=asked, tools=TOOLS, extra_body=OFF)
    call = first.output[-1]
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}
    will_say(live.server, tokenizer, "Sunny.")
    second = await sdk.responses.create(
        model="tiny",
        input=[result],
        previous_response_id=first.id,
        tools=TOOLS,
        extra_body=OFF,
    )
    assert second.output_text == "Sunny."
    will_say(live.server, tokenizer, "Sunny.")
    replayed: list[Any] = [*asked, *(item.to_dict() for item in first.output), result]
    await sdk.responses.create(
        model="tiny", input=replayed, tools=TOOLS, store=False, extra_body=OFF
    )
    by_id, by_items = live.server.engine.submitted[1:]
    assert by_id.prompt_ids == by_items.prompt_ids


async def test_each_event_fits_the_sdks_types(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    """Read strictly, where the SDK itself would let anything pass."""
    will_say(live.server, tokenizer, f"Hm.\n</think>\n\nI look.\n\n{PARIS_CALL}")
    stream = await sdk.responses.create(
        model="tiny", input="Weather?", tools=TOOLS, stream=True, extra_body=ON
    )
    seen: list[str] = []
    final: Any = None
    async for event in stream:
        fields = event.to_dict()
        final = fields.get("response")
        EVENT.validate_python(fields)
        seen.append(event.type)
    assert seen[0] == "response.created"
    assert seen[-1] == "response.completed"
    assert {"response.reasoning_text.delta", "response.function_call_arguments.delta"} < set(seen)
    assert [item.type for item in Response.model_validate(final).output] == [
        "reasoning",
        "message",
        "function_call",
    ]


async def test_the_stream_helper_adds_up(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    will_say(live.server, tokenizer, f"I look.\n\n{PARIS_CALL}")
    text = arguments = ""
    async with sdk.responses.stream(
        model="tiny", input="Weather?", tools=TOOLS, extra_body=OFF
    ) as stream:
        async for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
                assert event.snapshot == text
            elif event.type == "response.function_call_arguments.delta":
                arguments += event.delta
                assert event.snapshot == arguments
        final = await stream.get_final_response()
    assert final.output_text == text == "I look."
    call = final.output[-1]
    assert call.type == "function_call"
    assert call.arguments == arguments == '{"city": "Paris", "days": 3}'
    assert (await sdk.responses.retrieve(final.id)).output_text == text


async def test_a_cut_answer_in_the_stream_helper(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    will_say(live.server, tokenizer, "I lo", FinishReason.LENGTH)
    stream = await sdk.responses.create(
        model="tiny", input="Hi", max_output_tokens=16, stream=True, extra_body=OFF
    )
    last = [event async for event in stream][-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output_text == "I lo"


class Weather(BaseModel):
    city: str
    days: int


async def test_parse(live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer) -> None:
    """A schema is bound, or refused by its name in this API where that is not built."""
    will_say(live.server, tokenizer, '{"city": "Paris", "days": 3}')
    try:
        parsed = await sdk.responses.parse(
            model="tiny", input="Weather?", text_format=Weather, extra_body=OFF
        )
    except openai.BadRequestError as refused:
        assert refused.param == "text.format"  # noqa: PT017
    else:
        assert parsed.output_parsed == Weather(city="Paris", days=3)


async def test_errors_become_the_sdks_classes(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.responses.create(model="tiny", input="Hi", temperature=9, stream=True)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.create(model="tiny", input="Hi", previous_response_id="resp_x")
    with pytest.raises(openai.AuthenticationError):
        await sdk.with_options(api_key="wrong").responses.retrieve("resp_x")
    live.server.engine.will(*say(tokenizer, "abc", end=None), KeyError("x"), finish=None)
    stream = await sdk.responses.create(model="tiny", input="Hi", stream=True, extra_body=OFF)
    seen: list[str] = []

    async def read() -> None:
        async for event in stream:
            seen.append(event.type)

    with pytest.raises(openai.APIError) as failed:
        await read()
    assert failed.value.code == "internal_error"
    assert seen[-1] == "response.output_text.delta"


async def test_closing_a_stream_cancels(
    live: Live, sdk: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    engine = live.server.engine
    engine.will(*say(tokenizer, "abc", end=None), finish=None)
    stream = await sdk.responses.create(model="tiny", input="Hi", stream=True, extra_body=OFF)
    async for _ in stream:
        break
    await stream.close()
    async with asyncio.timeout(1):
        while engine.num_active:
            await asyncio.sleep(0.005)
    assert len(engine.cancelled) == 1


async def test_the_sync_client(live: Live, tokenizer: Tokenizer) -> None:
    for _ in range(3):
        will_say(live.server, tokenizer, "It is sunny.")

    def ask() -> list[str]:
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="sk-test", max_retries=0) as client:
            created = client.responses.create(model="tiny", input="Hi", extra_body=OFF)
            text = ""
            for event in client.responses.create(
                model="tiny", input="Hi", stream=True, extra_body=OFF
            ):
                text += event.delta if event.type == "response.output_text.delta" else ""
            with client.responses.stream(
                model="tiny", input="Hi", previous_response_id=created.id, extra_body=OFF
            ) as stream:
                final = stream.get_final_response()
            read = client.responses.retrieve(created.id)
            client.responses.delete(created.id)
            return [created.output_text, text, final.output_text, read.output_text]

    assert await asyncio.to_thread(ask) == ["It is sunny."] * 4
