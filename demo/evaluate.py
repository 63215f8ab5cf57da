"""Score the demo model through the HTTP API: `python -m demo.evaluate`.

Starts `deltaserve serve MODEL` (by default the bundled one), or asks the server at `--url`. Every
question is held out: its key, and where names matter also the names, occur in no training sample.
Temperature 0, nothing constrained, some of the questions with thinking. Prints a markdown table and
exits with 1 if a goal is missed.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import httpx
from tqdm import tqdm

from demo.sample import Message, Sample, Task, user
from demo.tasks import json_answers, recall, sums, talk, text, tool_calls

SEED = 777
NUM_QUESTIONS = 200
MAX_AT_ONCE = 8
MAX_TOKENS = 400

Judge = Callable[[Sample, Message], bool]


@dataclass(frozen=True, slots=True)
class Exam:
    name: str
    make: Task
    is_right: Judge
    goal: float | None = None
    held_out_by_key: bool = True


def _said(message: Message) -> str:
    return (message.get("content") or "").strip()


def _wanted(sample: Sample) -> Message:
    return sample.messages[-1]


def same_text(sample: Sample, answer: Message) -> bool:
    return _said(answer) == _wanted(sample)["content"] and not answer.get("tool_calls")


def same_number(sample: Sample, answer: Message) -> bool:
    """The last number of the answer is the last number of the right one."""
    numbers = re.findall(r"-?\d+", _said(answer).replace(" - ", " minus "))
    wanted = re.findall(r"-?\d+", _wanted(sample)["content"].replace(" - ", " minus "))
    return bool(numbers) and numbers[-1] == wanted[-1]


def same_calls(sample: Sample, answer: Message) -> bool:
    """Exactly the calls that are right: names, argument names, values and their types."""
    calls = [call["function"] for call in answer.get("tool_calls") or []]
    wanted = [call["function"] for call in _wanted(sample).get("tool_calls") or []]
    try:
        given = [(call["name"], json.loads(call["arguments"])) for call in calls]
    except ValueError:
        return False
    right = [(call["name"], call["arguments"]) for call in wanted]
    return json.dumps(given, sort_keys=True) == json.dumps(right, sort_keys=True)


def fits_schema(sample: Sample, answer: Message) -> bool:
    """Valid JSON of the shape that was asked for; the values are another question."""
    try:
        given = json.loads(_said(answer))
    except ValueError:
        return False
    schema = _schema(sample)
    properties = schema["properties"]
    if not isinstance(given, dict) or not set(given) <= set(properties):
        return False
    if not set(schema.get("required", ())) <= set(given):
        return False
    return all(_fits(properties[name], value) for name, value in given.items())


def _schema(sample: Sample) -> dict[str, Any]:
    """The first JSON object in the prompt."""
    prompt = "\n".join(message["content"] for message in sample.messages[:-1])
    return json.JSONDecoder().raw_decode(prompt[prompt.index("{") :])[0]


def _fits(schema: dict[str, Any], value: Any) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "array":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "boolean":
            return isinstance(value, bool)
        case _:
            return isinstance(value, str)


def same_json(sample: Sample, answer: Message) -> bool:
    try:
        return json.loads(_said(answer)) == json.loads(_wanted(sample)["content"])
    except ValueError:
        return False


def has_passkey(sample: Sample, answer: Message) -> bool:
    return sample.key in re.findall(r"\w+", _said(answer))


def _held_out_call(rng: random.Random) -> Sample:
    """One call by a tool with names that were kept out of training."""
    return tool_calls.one_call(rng, held_out=True, with_result=False)


def _call_result(rng: random.Random) -> Sample:
    return tool_calls.one_call(rng, held_out=True, with_result=True)


def _several(rng: random.Random) -> Sample:
    while len((sample := tool_calls.several_calls(rng)).messages[-1].get("tool_calls", ())) < 2:
        pass
    return sample


def _basic_sum(rng: random.Random) -> Sample:
    return sums.ask(rng, rng.choice("+-*"), rng.randint(0, 99), rng.randint(0, 99))


def _passkey(num_tokens: int, count: Callable[[str], int]) -> Task:
    def make(rng: random.Random) -> Sample:
        secret = str(rng.randint(1000, 99999))
        sentences: list[str] = []
        length = 0
        while length < num_tokens - 24:
            sentences.append(recall.filler(rng))
            length += count(f" {sentences[-1]}")
        sentences.insert(rng.randint(0, len(sentences)), f"The passkey is {secret}.")
        question = user(" ".join(sentences) + "\n\nWhat is the passkey?")
        return Sample("passkey", secret, [question, {"role": "assistant", "content": secret}])

    return make


def exams(count: Callable[[str], int]) -> list[Exam]:
    return [
        Exam("tool call by unseen names", _held_out_call, same_calls, 0.9, False),
        Exam("JSON valid and to the schema", json_answers.json_answer, fits_schema, 0.9),
        Exam("JSON with all values right", json_answers.json_answer, same_json),
        Exam("+, - or * of two numbers below 100", _basic_sum, same_number, 0.9),
        Exam("passkey at 512 tokens", _passkey(512, count), has_passkey, 0.95, False),
        Exam("passkey at 2,048 tokens", _passkey(2048, count), has_passkey, 0.8, False),
        Exam("recall over several turns", recall.memory, same_text, 0.9),
        Exam("answer from a tool's result, unseen names", _call_result, same_text, None, False),
        Exam("two calls in one turn", _several, same_calls),
        Exam("no tool fits: says so, or answers", tool_calls.no_tool, same_text),
        Exam("capital of a country", talk.capital, same_text),
        Exam("copy a text", text.copying, same_text),
        Exam("reverse words", text.reversing, same_text),
        Exam("sort words or numbers", text.sorting, same_text),
        Exam("spell a word", text.spelling, same_text),
        Exam("count", text.counting, same_text),
    ]  # fmt: skip


def questions(exam: Exam, num_questions: int, seed: int = SEED) -> list[Sample]:
    """The same ones every time."""
    rng = random.Random(f"{seed} {exam.name}")
    chosen: list[Sample] = []
    while len(chosen) < num_questions:
        sample = exam.make(rng)
        if sample.messages[-1]["role"] == "assistant" and (
            sample.is_held_out or not exam.held_out_by_key
        ):
            chosen.append(sample)
    return chosen


def _wire(messages: list[Message]) -> list[Message]:
    """As OpenAI clients send them: ids on calls, arguments as JSON text."""
    sent: list[Message] = []
    ids: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            sent.append({**message, "tool_call_id": ids.pop(0)})
            continue
        calls = message.get("tool_calls")
        if not calls:
            sent.append(message)
            continue
        ids = [f"call_{i}" for i in range(len(calls))]
        sent.append(
            {
                **message,
                "tool_calls": [
                    {
                        "id": call_id,
                        "type": "function",
                        "function": {
                            "name": call["function"]["name"],
                            "arguments": json.dumps(call["function"]["arguments"]),
                        },
                    }
                    for call_id, call in zip(ids, calls, strict=True)
                ],
            }
        )
    return sent


async def ask(client: httpx.AsyncClient, model: str, sample: Sample) -> Message:
    body: dict[str, Any] = {
        "model": model,
        "messages": _wire(sample.messages[:-1]),
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "chat_template_kwargs": {"enable_thinking": sample.thinking},
    }
    if sample.tools:
        body["tools"] = sample.tools
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return response.json()["choices"][0]["message"]


async def _score(
    client: httpx.AsyncClient, model: str, exam: Exam, asked: list[Sample], show: int
) -> float:
    gate = asyncio.Semaphore(MAX_AT_ONCE)
    bar = tqdm(total=len(asked), desc=exam.name[:44], leave=False)
    shown = 0

    async def one(sample: Sample) -> bool:
        nonlocal shown
        async with gate:
            answer = await ask(client, model, sample)
        right = exam.is_right(sample, answer)
        bar.update()
        if not right and shown < show:
            shown += 1
            tqdm.write(f"WRONG {exam.name}\n  asked  {sample.messages[-2]['content'][-300:]!r}")
            tqdm.write(f"  wanted {_wanted(sample)}\n  got    {answer}")
        return right

    right = await asyncio.gather(*map(one, asked))
    bar.close()
    return sum(right) / len(asked)


async def evaluate(url: str, num_questions: int, seed: int, show: int) -> bool:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]

        # Passkeys are hidden in a text of so many tokens: about seven to a sentence, measured.
        probe = " ".join(recall.filler(random.Random(SEED)) for _ in range(50))
        tokens = (await client.post("/tokenize", json={"model": model, "prompt": probe})).json()
        per_char = tokens["count"] / len(probe)
        print("| task | goal | score |\n|---|---|---|", flush=True)
        reached = True
        began = time.monotonic()
        for exam in exams(lambda text: round(len(text) * per_char)):
            asked = questions(exam, num_questions, seed)
            score = await _score(client, model, exam, asked, show)
            goal = "" if exam.goal is None else f"{exam.goal:.0%}"
            reached &= exam.goal is None or score >= exam.goal
            tqdm.write(f"| {exam.name} | {goal} | {score:.1%} |")
        print(f"\n{num_questions} questions per task, {time.monotonic() - began:.0f} s")
        return reached


@contextlib.contextmanager
def serving(model: str | None) -> Generator[str]:
    """Our own server on a free port, for as long as the block lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server", "serve", "--log-level", "warning"]
    command += [model] if model else []
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not become ready")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a checkpoint; by default the bundled one")
    parser.add_argument("--url", help="ask this server instead of starting one")
    parser.add_argument("--questions", type=int, default=NUM_QUESTIONS)
    parser.add_argument("--seed", type=int, default=SEED, help="others ask other questions")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print per task")
    arguments = parser.parse_args()
    asked = (arguments.questions, arguments.seed, arguments.show)
    if arguments.url:
        reached = asyncio.run(evaluate(arguments.url, *asked))
    else:
        with serving(arguments.model) as url:
            reached = asyncio.run(evaluate(url, *asked))
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
