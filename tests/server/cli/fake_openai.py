"""A small OpenAI-compatible server on loopback for the load generator: counts and misbehaves."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse


@dataclass
class FakeOpenAI:
    """`behaviours[i]` says how request i answers; requests beyond the list are answered well."""

    behaviours: list[str] = field(default_factory=list[str])
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    keys: list[str | None] = field(default_factory=list[str | None])
    most_open: int = 0
    num_open: int = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models(request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
            self.keys.append(request.headers.get("authorization"))
            return {"object": "list", "data": [{"id": "fake-model", "object": "model"}]}

        @app.post("/v1/completions")
        @app.post("/v1/chat/completions")
        async def generate(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
            body = await request.json()
            behaviour = self.behaviours[len(self.bodies)] if self._is_scripted else "well"
            self.bodies.append(body)
            if behaviour == "full":
                error = {"message": "full", "type": "x", "param": None, "code": "queue_full"}
                return JSONResponse({"error": error}, status_code=429)
            return StreamingResponse(self._stream(body, behaviour), media_type="text/event-stream")

        return app

    @property
    def _is_scripted(self) -> bool:
        return len(self.bodies) < len(self.behaviours)

    async def _stream(self, body: dict[str, Any], behaviour: str):
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            chat = "messages" in body
            for _ in range(body["max_tokens"]):
                await asyncio.sleep(0.002)
                part = {"delta": {"content": "w "}} if chat else {"text": "w "}
                yield event(choices=[{"index": 0, "finish_reason": None, **part}])
            if behaviour == "error":
                yield event(error={"message": "x", "type": "y", "code": "engine_dead"})
                return
            if behaviour == "cut":
                return
            if behaviour == "stuck":
                await asyncio.sleep(60)
            if behaviour == "garbage":
                yield "data: {oops\n\n"
            part = {"delta": {}} if chat else {"text": ""}
            reason = None if behaviour == "unfinished" else "length"
            yield event(choices=[{"index": 0, "finish_reason": reason, **part}])
            if behaviour != "uncounted":
                prompt = body["messages"][0]["content"].split() if chat else body["prompt"]
                num_prompt = len(prompt) * (2 if chat else 1)  # two tokens to the word
                usage = {"prompt_tokens": num_prompt, "completion_tokens": body["max_tokens"]}
                yield event(choices=[], usage=usage)
            yield "data: [DONE]\n\n"
        finally:
            self.num_open -= 1


def event(**content: Any) -> str:
    return f"data: {json.dumps(content)}\n\n"


@contextlib.contextmanager
def running(fake: FakeOpenAI) -> Iterator[str]:
    """Serve `fake` in a thread; yields the base URL."""
    server = uvicorn.Server(
        uvicorn.Config(fake.app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.force_exit = True
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
