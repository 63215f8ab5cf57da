"""An agent framework runs its tool loop through the server: pydantic-ai, over real HTTP.

The model is a script that reads its prompt: without a tool's answer in it, it calls the tool in the
model's XML form; with one, it says that answer. So an agent ends with the right words only if its
Python function ran with the right arguments and what it returned came back in the next prompt.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Strict
from pydantic_ai import Agent, ModelRetry, NativeOutput
from pydantic_ai.messages import ModelMessage, ThinkingPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models import Model
from pydantic_ai.models.openai import (
    OpenAIChatModel,
    OpenAIResponsesModel,
    OpenAIResponsesModelSettings,
)
from pydantic_ai.providers.openai import OpenAIProvider

from engine import FinishReason, Request
from server.tokenizer import Tokenizer
from server.validate import Validator
from tests.fakes import Script, build_server
from tests.server.conftest import checker, reader  # noqa: F401
from tests.server.http.asking import say
from tests.server.http.conftest import (  # noqa: F401
    anyio_backend,
    checkpoint,
    model_config,
    tokenizer,
    validator,
)
from tests.server.http.live import Live, serving

pytestmark = pytest.mark.anyio

KEY = "sk-test"
QUESTION = "What is the weather in Paris?"
THOUGHT = "I have to look."
CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n<parameter=unit>\ncelsius\n</parameter>\n"
    "<parameter=at>\n[48.5, 2]\n</parameter>\n</function>\n</tool_call>"
)
FINAL_CALL = (
    "<tool_call>\n<function=final_result>\n<parameter=city>\nParis\n</parameter>\n"
    "<parameter=degrees>\n{degrees}\n</parameter>\n</function>\n</tool_call>"
)
ARGUMENTS = {"city": "Paris", "days": 3, "unit": "celsius", "at": [48.5, 2]}
_RESULT = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)


class Forecast(BaseModel):
    city: str
    degrees: int


@dataclass
class Weather:
    """The tools of an agent, and what they were called with."""

    seen: list[tuple[Any, ...]] = field(default_factory=list)
    num_refusals: int = 0  # how many calls are to be tried again

    def agent(self, model: Model, **options: Any) -> Agent[None, Any]:
        agent: Agent[None, Any] = Agent(model, instructions="Be brief.", retries=2, **options)

        @agent.tool_plain
        def get_weather(
            city: str,
            days: Annotated[int, Strict()],
            unit: Literal["celsius", "kelvin"],
            at: list[float],
        ) -> str:
            """Tell the weather of a city, `days` from now."""
            self.seen.append((city, days, unit, at))
            if len(self.seen) <= self.num_refusals:
                raise ModelRetry("the station is silent")
            return f"{city} in {days} days: 21 degrees"

        return agent


@dataclass
class Served:
    """A live server whose model is a script, and the prompts that the model saw."""

    live: Live
    tokenizer: Tokenizer
    prompts: list[str] = field(default_factory=list)
    clients: list[openai.AsyncOpenAI] = field(default_factory=list)
    says: Callable[[str], str] = lambda result: f"I was told: {result}."

    def script(self, request: Request) -> Script:
        prompt = self.tokenizer.decode(request.prompt_ids)
        self.prompts.append(prompt)
        results = _RESULT.findall(prompt)
        # A refused tool is called again; its answer is what the last one said.
        text = self.says(results[-1]) if results and "silent" not in results[-1] else CALL
        thought = f"{THOUGHT}\n</think>\n\n" if prompt.endswith("<think>\n") else ""
        return Script(say(self.tokenizer, thought + text), FinishReason.STOP)

    def provider(self) -> OpenAIProvider:
        client = openai.AsyncOpenAI(base_url=f"{self.live.url}/v1", api_key=KEY, max_retries=0)
        self.clients.append(client)
        return OpenAIProvider(openai_client=client)

    async def close(self) -> None:
        """To be awaited on the loop that used the models."""
        while self.clients:
            await self.clients.pop().close()

    def model(self, api: str) -> Model:
        if api == "chat":
            return OpenAIChatModel("tiny", provider=self.provider())
        chained = api == "responses, chained"
        settings = OpenAIResponsesModelSettings(openai_previous_response_id="auto")
        return OpenAIResponsesModel(
            "tiny", provider=self.provider(), settings=settings if chained else None
        )


APIS = pytest.mark.parametrize("api", ["chat", "responses", "responses, chained"])


@pytest.fixture
async def served(
    validator: Validator,  # noqa: F811
    tokenizer: Tokenizer,  # noqa: F811
) -> AsyncIterator[Served]:
    async with serving(build_server(validator, tokenizer, api_keys=(KEY,))) as live:
        served = Served(live, tokenizer)
        live.server.engine.default = served.script
        yield served
        await served.close()
        assert live.server.engine.num_active == 0


def parts(messages: list[ModelMessage], kind: type[Any]) -> list[Any]:
    return [part for message in messages for part in message.parts if isinstance(part, kind)]


def check(served: Served, weather: Weather, messages: list[ModelMessage], answer: str) -> None:
    """Two steps: a call with typed arguments, then words made of what the function returned."""
    assert weather.seen == [("Paris", 3, "celsius", [48.5, 2.0])]
    assert answer == "I was told: Paris in 3 days: 21 degrees."
    first, second = served.prompts
    assert QUESTION in first
    assert "<tool_response>" not in first
    assert "<tool_response>\nParis in 3 days: 21 degrees\n</tool_response>" in second
    assert second.count(CALL) == 1  # the history holds the call as the model made it
    assert second.startswith(first.removesuffix("<think>\n"))  # nothing before it was changed
    (call,) = parts(messages, ToolCallPart)
    (returned,) = parts(messages, ToolReturnPart)
    assert (call.tool_name, call.args_as_dict()) == ("get_weather", ARGUMENTS)
    assert returned.tool_call_id == call.tool_call_id
    assert f"<think>\n{THOUGHT}\n</think>" in second
    assert list(map(thought, parts(messages, ThinkingPart))) == [THOUGHT, THOUGHT]


def thought(part: ThinkingPart) -> str:
    """Responses' reasoning text is kept apart from its summary, of which there is none."""
    return part.content or "".join((part.provider_details or {})["raw_content"])


@APIS
async def test_tool_loop(served: Served, api: str) -> None:
    weather = Weather()
    result = await weather.agent(served.model(api)).run(QUESTION)
    check(served, weather, result.all_messages(), result.output)
    assert result.usage.requests == 2
    assert result.usage.tool_calls == 1
    assert result.usage.input_tokens > 0


@APIS
async def test_streamed_tool_loop(served: Served, api: str) -> None:
    weather = Weather()
    async with weather.agent(served.model(api)).run_stream(QUESTION) as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 3
    check(served, weather, result.all_messages(), "".join(pieces))


@APIS
async def test_sync_tool_loop(served: Served, api: str) -> None:
    weather = Weather()

    def ask() -> tuple[list[ModelMessage], str]:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)  # the one that `run_sync` takes
        try:
            result = weather.agent(served.model(api)).run_sync(QUESTION)
            loop.run_until_complete(served.close())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
        return result.all_messages(), result.output

    check(served, weather, *await asyncio.to_thread(ask))


@APIS
async def test_a_tool_that_asks_to_be_called_again(served: Served, api: str) -> None:
    weather = Weather(num_refusals=1)
    result = await weather.agent(served.model(api)).run(QUESTION)
    assert result.output == "I was told: Paris in 3 days: 21 degrees."
    assert len(weather.seen) == 2
    assert served.prompts[2].count(CALL) == 2
    assert "the station is silent" in served.prompts[2]
    ids = [call.tool_call_id for call in parts(result.all_messages(), ToolCallPart)]
    assert len(set(ids)) == 2


@APIS
async def test_a_second_turn_knows_the_first(served: Served, api: str) -> None:
    agent = Weather().agent(served.model(api))
    first = await agent.run(QUESTION)
    second = await agent.run("And tomorrow?", message_history=first.all_messages())
    assert second.output == first.output
    last = served.prompts[-1]
    assert last.count(CALL) == 1
    assert first.output in last
    assert last.index(QUESTION) < last.index(first.output) < last.index("And tomorrow?")


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_an_answer_that_is_a_tool_call(served: Served, api: str) -> None:
    """pydantic-ai's default for typed answers: a tool of its own, and `tool_choice: required`."""
    served.says = lambda result: FINAL_CALL.format(degrees=result.split()[-2])
    weather = Weather()
    result = await weather.agent(served.model(api), output_type=Forecast).run(QUESTION)
    assert result.output == Forecast(city="Paris", degrees=21)
    assert len(weather.seen) == 1
    for request in served.live.server.engine.submitted:
        assert request.sampling.grammar is not None  # the call is not left to the model's mood


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_an_answer_that_is_json(served: Served, api: str) -> None:
    """Typed answers by a schema for the content."""
    served.says = lambda result: f'{{"city":"Paris","degrees":{result.split()[-2]}}}'
    weather = Weather()
    agent = weather.agent(served.model(api), output_type=NativeOutput(Forecast))
    result = await agent.run(QUESTION)
    assert result.output == Forecast(city="Paris", degrees=21)
    assert len(weather.seen) == 1
    assert all(r.sampling.grammar is not None for r in served.live.server.engine.submitted)
