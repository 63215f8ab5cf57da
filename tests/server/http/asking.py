"""How the tests ask: token steps from text, request bodies, streams read back, ASGI by hand."""

import asyncio
import json
from typing import Any

from server.app import App
from server.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
PARIS_CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)
ROME_CALL = PARIS_CALL.replace("Paris", "Rome")


def say(tokenizer: Tokenizer, text: str, *, end: str | None = "<|im_end|>") -> list[tuple[int]]:
    """One step per token of `text`, then the end token if any."""
    ids = tokenizer.encode(text)
    if end is not None:
        end_id = tokenizer.id_of(end)
        assert end_id is not None
        ids.append(end_id)
    return [(token_id,) for token_id in ids]


def chat(
    content: str | list[dict[str, Any]] = "What is the weather?", **fields: Any
) -> dict[str, Any]:
    """A chat request, thinking off unless asked for."""
    fields.setdefault("chat_template_kwargs", {"enable_thinking": False})
    return {"messages": [{"role": "user", "content": content}], **fields}


def thinking(content: str = "What is the weather?", **fields: Any) -> dict[str, Any]:
    return chat(content, chat_template_kwargs={"enable_thinking": True}, **fields)


def events(stream: bytes) -> list[dict[str, Any]]:
    """The events of a whole stream; it must be framed exactly and end with [DONE]."""
    parts = stream.split(b"\n\n")
    assert parts[-2:] == [b"data: [DONE]", b""], parts[-2:]
    assert all(part.startswith(b"data: {") and b"\n" not in part for part in parts[:-2])
    return [json.loads(part.removeprefix(b"data: ")) for part in parts[:-2]]


def fold(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """What a client makes of the chunks of one chat choice."""
    text: dict[str, str] = {"content": "", "reasoning": "", "reasoning_content": ""}
    calls: dict[int, dict[str, Any]] = {}
    logprobs: list[dict[str, Any]] = []
    reasons: list[str] = []
    stop_reason = None
    roles = 0
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            assert not reasons, "a chunk after the finish reason"
            delta = choice["delta"]
            roles += "role" in delta
            for kind in text:
                text[kind] += delta.get(kind) or ""
            for part in delta.get("tool_calls", ()):
                if part["index"] not in calls:
                    assert set(part) == {"index", "id", "type", "function"}
                    assert part["type"] == "function"
                    calls[part["index"]] = {
                        "id": part["id"],
                        "type": "function",
                        "function": dict(part["function"]),
                    }
                else:
                    assert set(part) == {"index", "function"}
                    assert set(part["function"]) == {"arguments"}
                    arguments = part["function"]["arguments"]
                    calls[part["index"]]["function"]["arguments"] += arguments
            if choice["logprobs"]:
                logprobs += choice["logprobs"]["content"]
            if choice["finish_reason"] is not None:
                reasons.append(choice["finish_reason"])
                stop_reason = choice["stop_reason"]
    assert roles == 1
    assert list(calls) == list(range(len(calls)))
    return {
        **text,
        "tool_calls": list(calls.values()),
        "logprobs": logprobs,
        "finish_reason": reasons[0],
        "stop_reason": stop_reason,
    }


class Call:
    """One request driven by hand through the ASGI application."""

    def __init__(
        self,
        app: App,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        method: str = "POST",
        headers: list[tuple[bytes, bytes]] | None = None,
        raw_path: bytes | None = None,
    ) -> None:
        self.sent: list[dict[str, Any]] = []
        self.has_sent = asyncio.Event()
        self.gate: asyncio.Event | None = None  # set: `send` waits for it, as for a slow reader
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        if body is not None:
            self.put(json.dumps(body).encode())
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": raw_path or path.encode(),
            "query_string": b"",
            "headers": headers if headers is not None else [(b"content-type", b"application/json")],
        }
        self.task = asyncio.create_task(app(scope, self._inbox.get, self._send))

    def put(self, body: bytes, *, more: bool = False) -> None:
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def disconnect(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def until_sent(self, count: int) -> None:
        """Wait until `count` ASGI messages were sent."""
        while len(self.sent) < count:
            self.has_sent.clear()
            await asyncio.wait_for(self.has_sent.wait(), 10)

    async def done(self) -> None:
        await asyncio.wait_for(self.task, 10)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def header(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def error(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert set(found) == {"error"}
        assert set(found["error"]) == {"message", "type", "param", "code"}
        return found["error"]

    async def _send(self, message: Any) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.sent.append(message)
        self.has_sent.set()
