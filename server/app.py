"""The ASGI application: routes, who may use them, and what every answer has in common.

One table of routes; no framework between a request and its handler. For each request: make an
`Exchange`, check the key on the raw path, find the handler, run it, and turn whatever it raises
into an error answer, one log line and one outcome in the metrics. Model work (the POST routes) is
a `Flight`: it can be drained, timed out, and ends when its client goes away. JSON, templates and
tokenizing run in a small thread pool, so the loop and the probes stay quick.

Log lines hold ids, lengths and times; never text, paths as sent, or exception messages.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from engine import EngineClient
from server.answer import Answer, Draft
from server.auth import PROBES, Keyring
from server.body import check_json_headers, read_body
from server.chat import draft_chat
from server.completions import draft_completion
from server.errors import BadRequest, ClientGone, WrongMethod, answer_to
from server.exchange import Exchange, Receive, Scope, Send
from server.http_limits import HttpLimits
from server.json_body import decode_json
from server.lifecycle import Lifecycle
from server.metrics import CONTENT_TYPE, Metrics
from server.openapi import openapi_document
from server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    parse_wire,
)
from server.tokenizer import Tokenizer
from server.validate import Validator

NUM_VALIDATION_THREADS = 4
MODEL_PREFIX = "/v1/models/"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OK = b'{"status":"ok"}'

Handler = Callable[[Exchange], Awaitable[None]]

_log = logging.getLogger("deltaserve.http")


def create_app(
    engine: EngineClient,
    validator: Validator,
    tokenizer: Tokenizer,
    *,
    served_names: Sequence[str],
    model_root: str,
    version: str,
    lifecycle: Lifecycle,
    metrics: Metrics,
    api_keys: Sequence[str] = (),
    open_metrics: bool = False,
    limits: HttpLimits | None = None,
) -> "App":
    """The application; `served_names[0]` is what answers call the model by default."""
    return App(
        engine,
        validator,
        tokenizer,
        served_names=tuple(served_names),
        model_root=model_root,
        version=version,
        lifecycle=lifecycle,
        metrics=metrics,
        keyring=Keyring(api_keys, open_metrics=open_metrics),
        limits=limits or HttpLimits(),
    )


class App:
    def __init__(
        self,
        engine: EngineClient,
        validator: Validator,
        tokenizer: Tokenizer,
        *,
        served_names: tuple[str, ...],
        model_root: str,
        version: str,
        lifecycle: Lifecycle,
        metrics: Metrics,
        keyring: Keyring,
        limits: HttpLimits,
    ) -> None:
        self._engine = engine
        self._validator = validator
        self._tokenizer = tokenizer
        self._served_names = served_names
        self._model_root = model_root
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._keyring = keyring
        self._limits = limits
        self._created = int(time.time())
        self._version = version
        self._fingerprint = f"deltaserve-{self._version}"
        self._pool = ThreadPoolExecutor(NUM_VALIDATION_THREADS, thread_name_prefix="validate")
        probe: dict[str, Handler] = {"GET": self._health, "HEAD": self._health}
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._completions},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/v1/models": {"GET": self._models},
            "/version": {"GET": self._get_version},
            "/live": {"GET": self._live, "HEAD": self._live},
            "/ready": probe,
            "/health": probe,
            "/ping": probe,
            "/metrics": {"GET": self._get_metrics},
            "/openapi.json": {"GET": self._get_openapi},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} is served here")
        started = time.monotonic()
        exchange = Exchange(scope, receive, send)
        raw_path: bytes = scope.get("raw_path") or exchange.path.encode()
        is_probe = raw_path in PROBES
        try:
            self._keyring.check(raw_path, exchange)
            await self._handler(exchange)(exchange)
        except ClientGone:
            self._metrics.count_abort()
            exchange.status = 499
        except Exception as error:  # whatever went wrong, the client gets an answer, we a line
            answer = answer_to(error)
            if answer.status == 500:
                _log_fault(exchange, error)
            if not is_probe:
                self._metrics.count_error(answer)
            await exchange.fail(answer)
        _log.log(
            logging.DEBUG if is_probe else logging.INFO,
            "%s %s: %s %d, %d + %d tokens, %.3f s%s",
            exchange.request_id,
            exchange.method if exchange.method in _METHODS else "?",
            exchange.path if exchange.path in self._routes else "?",
            exchange.status,
            exchange.num_prompt_tokens,
            exchange.num_completion_tokens,
            time.monotonic() - started,
            f", {exchange.error.code or exchange.error.type}" if exchange.error else "",
        )

    def _handler(self, exchange: Exchange) -> Handler:
        methods = self._routes.get(exchange.path)
        if methods is None and exchange.path.startswith(MODEL_PREFIX):
            methods = {"GET": self._model}
        if methods is None:
            raise BadRequest("There is no such route.", status=404)
        handler = methods.get(exchange.method)
        if handler is None:
            raise WrongMethod(", ".join(methods))
        return handler

    # Model work

    async def _chat(self, exchange: Exchange) -> None:
        def read(body: bytes) -> Draft:
            request = parse_wire(ChatCompletionRequest, decode_json(body))
            valid = self._validator.chat(request)
            return draft_chat(
                valid,
                self._tokenizer,
                model=request.model or self._served_names[0],
                system_fingerprint=self._fingerprint,
            )

        await self._work(exchange, read)

    async def _completions(self, exchange: Exchange) -> None:
        def read(body: bytes) -> Draft:
            request = parse_wire(CompletionRequest, decode_json(body))
            valid = self._validator.completion(request)
            return draft_completion(
                valid,
                self._tokenizer,
                model=request.model or self._served_names[0],
                system_fingerprint=self._fingerprint,
            )

        await self._work(exchange, read)

    async def _tokenize(self, exchange: Exchange) -> None:
        def read(body: bytes) -> bytes:
            request = parse_wire(TokenizeRequest, decode_json(body))
            return msgspec.json.encode(self._validator.tokenize(request))

        await self._work(exchange, read)

    async def _detokenize(self, exchange: Exchange) -> None:
        def read(body: bytes) -> bytes:
            request = parse_wire(DetokenizeRequest, decode_json(body))
            return msgspec.json.encode(self._validator.detokenize(request))

        await self._work(exchange, read)

    async def _work(self, exchange: Exchange, read: Callable[[bytes], Draft | bytes]) -> None:
        """Take one request from its headers to the end of its answer. `read` runs in a thread."""
        arrived = time.monotonic()
        self._lifecycle.check_ready()
        check_json_headers(exchange, max_bytes=self._limits.max_body_bytes)
        async with self._lifecycle.flight(exchange) as flight:
            body = await read_body(
                exchange,
                max_bytes=self._limits.max_body_bytes,
                pause_s=self._limits.body_pause_s,
            )
            flight.watch()
            work = await asyncio.get_running_loop().run_in_executor(self._pool, read, body)
            if isinstance(work, bytes):
                await exchange.reply(work)
            else:
                answer = Answer(work, exchange, self._engine, self._metrics, arrived=arrived)
                await answer.run()
        self._metrics.count_ok()

    # Facts

    async def _live(self, exchange: Exchange) -> None:
        await exchange.reply(_OK)

    async def _health(self, exchange: Exchange) -> None:
        self._lifecycle.check_ready()
        await exchange.reply(_OK)

    async def _get_version(self, exchange: Exchange) -> None:
        await exchange.reply(msgspec.json.encode({"version": self._version}))

    async def _models(self, exchange: Exchange) -> None:
        cards = [self._card(name) for name in self._served_names]
        await exchange.reply(msgspec.json.encode({"object": "list", "data": cards}))

    async def _model(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix(MODEL_PREFIX)
        if name not in self._served_names:
            raise BadRequest(
                "There is no such model; GET /v1/models lists the names.",
                param="model",
                status=404,
                code="model_not_found",
            )
        await exchange.reply(msgspec.json.encode(self._card(name)))

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "deltaserve",
            "root": self._model_root,
            "max_model_len": self._validator.max_model_len,
        }

    async def _get_metrics(self, exchange: Exchange) -> None:
        await exchange.reply(self._metrics.render(), content_type=CONTENT_TYPE)

    async def _get_openapi(self, exchange: Exchange) -> None:
        await exchange.reply(msgspec.json.encode(openapi_document(self._version)))


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing starts or stops with the application: `serving` does that."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _log_fault(exchange: Exchange, error: Exception) -> None:
    """Log where it happened. The exception's own text may quote the request, so it stays out."""
    where = "".join(traceback.format_tb(error.__traceback__))
    kind = type(error).__name__
    _log.error("request %s failed with %s\n%s", exchange.request_id, kind, where)
