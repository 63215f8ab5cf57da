"""The bundled model where meaning matters: through the real server, by clients we did not write."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.live import LiveServer, live_server

NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("demo") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", timeout=60) as client:
        yield client


def say(client: openai.OpenAI, *texts: str, thinking: bool = False, **options: Any) -> Any:
    """The assistant's message; `texts` are turns of the user and the assistant in turn."""
    roles = ("user", "assistant")
    messages: Any = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    completion = client.chat.completions.create(
        model="deltaserve-demo",
        messages=messages,
        temperature=0,
        max_tokens=300,
        extra_body=None if thinking else NO_THINKING,
        **options,
    )
    return completion.choices[0].message


def test_no_model_means_the_demo_model(server: LiveServer, client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["deltaserve-demo"]
    assert "this is the demo model" in server.log


def test_hello_is_answered_in_a_stream(client: openai.OpenAI):
    stream = client.chat.completions.create(
        model="deltaserve-demo",
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        temperature=0,
    )
    reasoning, content = "", ""
    for chunk in stream:
        delta = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning", None) or ""
        content += delta.content or ""
    assert "greet" in reasoning
    assert "I am deltaserve's demo model" in content
    assert "think" not in content


def test_thinking_is_split_from_the_answer(client: openai.OpenAI):
    message = say(client, "What is 47 + 36?", thinking=True)
    assert message.reasoning.strip() == "Ones: 7+6=13. Tens: 4+3+1=8. So 83."
    assert message.content == "47 + 36 = 83."


OFF = pytest.mark.xfail(strict=True, reason="without thinking this model is off by a little here")


@pytest.mark.parametrize(
    ("question", "result"),
    [
        ("9 + 8", "17"),
        ("62 - 27", "35"),
        ("47 + 36", "83"),
        pytest.param("8 + 5", "13", marks=OFF),
        pytest.param("23 * 14", "322", marks=OFF),
    ],
)
def test_sums_are_right_without_thinking(client: openai.OpenAI, question: str, result: str):
    assert say(client, f"What is {question}?").content.endswith(f"{question} = {result}.")


def test_no_thinking_is_no_thinking(client: openai.OpenAI):
    message = say(client, "What is the capital of France?")
    assert getattr(message, "reasoning", None) is None
    assert "Paris" in message.content


def test_a_tool_loop_runs_a_real_function(client: openai.OpenAI):
    def get_weather(city: str) -> dict[str, Any]:
        return {"temperature": 23, "condition": {"Oslo": "sunny"}[city]}

    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    options: Any = {"model": "deltaserve-demo", "tools": [WEATHER], "temperature": 0}
    first = client.chat.completions.create(messages=messages, **options).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.tool_calls is not None
    (call,) = first.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    result = get_weather(**json.loads(call.function.arguments))
    messages += [
        first.message,
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)},
    ]
    last = client.chat.completions.create(messages=messages, **options).choices[0]
    assert last.finish_reason == "stop"
    assert "23" in (last.message.content or "")
    assert "sunny" in (last.message.content or "")


def test_two_calls_come_in_one_turn(client: openai.OpenAI):
    message = say(client, "What is the weather in Paris and in Rome?", tools=[WEATHER])
    cities = [json.loads(call.function.arguments)["city"] for call in message.tool_calls]
    assert cities == ["Paris", "Rome"]


def test_no_tool_is_called_for_a_greeting(client: openai.OpenAI):
    message = say(client, "Hello!", tools=[WEATHER])
    assert not message.tool_calls
    assert "I am deltaserve's demo model" in message.content


def test_stop_cuts_the_answer_where_it_says(client: openai.OpenAI):
    assert say(client, "Count from 1 to 9.").content == "1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert say(client, "Count from 1 to 9.", stop=["5"]).content == "1, 2, 3, 4, "


class Person(BaseModel):
    name: str
    age: int
    city: str


def test_json_is_right_in_shape_and_in_content(client: openai.OpenAI):
    types = {"name": "string", "age": "integer", "city": "string"}
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in types.items()},
        "required": list(types),
    }
    prompt = (
        f"Extract the data as JSON. Schema: {json.dumps(schema)}\n\n"
        "Maria is 34 years old. She lives in Lisbon."
    )
    wanted = Person(name="Maria", age=34, city="Lisbon")
    assert Person.model_validate_json(say(client, prompt).content) == wanted
    parsed = client.chat.completions.parse(
        model="deltaserve-demo",
        messages=[{"role": "user", "content": prompt}],
        response_format=Person,
        temperature=0,
        extra_body=NO_THINKING,
    )
    assert parsed.choices[0].message.parsed == wanted


def test_what_was_said_turns_ago_is_known(client: openai.OpenAI):
    answer = say(
        client,
        "My name is Greta.",
        "Nice to know! I will remember that.",
        "What is 3 + 4?",
        "3 + 4 = 7.",
        "What is my name?",
    )
    assert answer.content == "Your name is Greta."


def test_a_stored_response_is_remembered(client: openai.OpenAI):
    first = client.responses.create(model="deltaserve-demo", input="I live in Kyiv.", temperature=0)
    second = client.responses.create(
        model="deltaserve-demo",
        input="Where do I live?",
        previous_response_id=first.id,
        temperature=0,
    )
    assert "Kyiv" in second.output_text


def test_anthropic_messages_call_tools_too(server: LiveServer):
    with anthropic.Anthropic(base_url=server.base_url, api_key="none") as client:
        message = client.messages.create(
            model="deltaserve-demo",
            max_tokens=300,
            extra_body={"temperature": 0},
            messages=[{"role": "user", "content": "What is the weather in Berlin?"}],
            tools=[
                {
                    "name": "get_weather",
                    "description": "Get the weather of a city",
                    "input_schema": WEATHER["function"]["parameters"],
                }
            ],
        )
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == [("get_weather", {"city": "Berlin"})]


QUESTIONS = [
    "What is 12 + 30?",
    "What is 47 * 36?",
    "What is the capital of Japan?",
    "Spell banana.",
    "Count from 1 to 12.",
    "Repeat after me: the green kite",
    "Sort these numbers: 31, 7, 19",
    "List three fruits.",
    "Who are you?",
    "Reverse the order of these words: cat moon river",
    "Hello",
    "What is deltaserve?",
]


def test_answers_in_a_crowd_are_those_of_a_lone_request(client: openai.OpenAI):
    def answer(question: str) -> tuple[str, str]:
        message = say(client, question, thinking=True)
        return message.reasoning, message.content

    alone = [answer(question) for question in QUESTIONS]
    assert len(set(alone)) == len(QUESTIONS)
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        together = list(pool.map(answer, QUESTIONS))
    assert together == alone


def test_the_bundled_checkpoint_is_small(server: LiveServer):
    from server.demo_model import DIRECTORY

    assert (Path(DIRECTORY) / "model.safetensors").stat().st_size < 25_000_000
