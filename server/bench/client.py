"""One streamed request against an OpenAI-compatible server, timed.

A request counts as done only if the stream was whole: a finish reason for its choice, a usage and
`[DONE]`. Everything else is a failure with a short, stable kind, so that failures can be counted.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from server.arguments import BenchArguments
from server.bench.workload import Job

TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")


@dataclass(slots=True)
class Outcome:
    """What became of one job. Times are seconds since the job was due."""

    start_s: float  # since the start of the run
    failure: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft_s: float | None = None  # None: no text came
    e2e_s: float = 0.0
    itl_s: list[float] = field(default_factory=list[float])  # between chunks that carry text

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None with fewer than two tokens."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


class BenchFailure(Exception):
    """The server cannot be measured at all; the message is one line for the user."""


class _Broken(Exception):
    """This request failed; the message is the kind of failure."""


class LoadClient:
    """Sends jobs. Owns nothing but the address: the HTTP pool is the caller's."""

    def __init__(self, http: httpx.AsyncClient, arguments: BenchArguments, model: str) -> None:
        self._http = http
        self._arguments = arguments
        self._model = model
        chat = arguments.endpoint == "chat"
        self._url = "/v1/chat/completions" if chat else "/v1/completions"

    async def send(self, job: Job, *, start_s: float, due_at: float) -> Outcome:
        """Run one job to its end. `due_at` is on the clock of `time.perf_counter`."""
        outcome = Outcome(start_s=start_s)
        try:
            await self._stream(job, outcome, due_at)
        except _Broken as error:
            outcome.failure = str(error)
        except httpx.TimeoutException:
            outcome.failure = "timeout"
        except httpx.TransportError as error:
            outcome.failure = f"connection: {type(error).__name__}"
        outcome.e2e_s = time.perf_counter() - due_at
        return outcome

    async def _stream(self, job: Job, outcome: Outcome, due_at: float) -> None:
        async with self._http.stream("POST", self._url, json=self._body(job)) as response:
            if response.status_code != 200:
                await response.aread()
                raise _Broken(_http_failure(response))
            await self._read(response, outcome, due_at)

    def _body(self, job: Job) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": job.output_tokens,
            "temperature": self._arguments.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._arguments.ignore_eos:
            body["ignore_eos"] = True
        if isinstance(job.prompt, str):
            body["messages"] = [{"role": "user", "content": job.prompt}]
        else:
            body["prompt"] = job.prompt
        return body

    async def _read(self, response: httpx.Response, outcome: Outcome, due_at: float) -> None:
        last_at: float | None = None
        finished = usage_seen = False
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            now = time.perf_counter()
            data = line[5:].strip()
            if data == "[DONE]":
                break
            chunk = _parse(data)
            if _has_text(chunk):
                if last_at is None:
                    outcome.ttft_s = now - due_at
                else:
                    outcome.itl_s.append(now - last_at)
                last_at = now
            finished |= any(choice.get("finish_reason") for choice in chunk.get("choices") or ())
            if usage := chunk.get("usage"):
                usage_seen = True
                outcome.prompt_tokens = usage.get("prompt_tokens", 0)
                outcome.output_tokens = usage.get("completion_tokens", 0)
        else:
            raise _Broken("stream ended early")
        if not finished:
            raise _Broken("no finish reason")
        if not usage_seen:
            raise _Broken("no usage in the stream")


async def find_model(http: httpx.AsyncClient) -> str:
    """The first model the server lists. Raises `BenchFailure`."""
    try:
        response = await http.get("/v1/models")
        response.raise_for_status()
        return response.json()["data"][0]["id"]
    except httpx.HTTPStatusError as error:
        raise BenchFailure(f"/v1/models: {_http_failure(error.response)}") from None
    except httpx.TransportError as error:
        raise BenchFailure(
            f"{http.base_url} cannot be reached: {str(error) or type(error).__name__}"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise BenchFailure("/v1/models lists no model: name one with --model") from None


def _parse(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        raise _Broken("broken chunk") from None
    if not isinstance(chunk, dict):
        raise _Broken("broken chunk")
    if error := chunk.get("error"):
        code = error.get("code") if isinstance(error, dict) else None
        raise _Broken(f"stream error: {code or 'no code'}")
    return chunk


def _has_text(chunk: dict[str, Any]) -> bool:
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or any(delta.get(name) for name in TEXT_FIELDS):
            return True
    return False


def _http_failure(response: httpx.Response) -> str:
    try:
        code = response.json()["error"]["code"]
    except (ValueError, LookupError, TypeError):
        code = None
    return f"HTTP {response.status_code}" + (f" {code}" if code else "")
