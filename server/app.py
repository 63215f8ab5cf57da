"""The ASGI application: FastAPI's routes inside a shell that all answers pass.

For each request the shell makes an `Exchange`, checks the key on the raw path before anything else
looks at it, lets FastAPI find and run the route, and turns whatever was raised into an error
answer, one log line and one outcome in the metrics. Routes answer through the exchange, never
through FastAPI: the order of status, first token, error and disconnect is ours to keep.

Log lines hold ids, lengths and times; never text, paths as sent, or exception messages.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from engine import EngineClient
from server.auth import PROBES, Keyring
from server.constraints import GrammarQueue
from server.errors import BadRequest, ClientGone, WrongMethod, answer_to
from server.exchange import Receive, Scope, Send
from server.fault_log import log_fault
from server.lifecycle import Lifecycle
from server.limits import Limits
from server.media_wait import MediaSource
from server.messages.fault import exchange_for
from server.messages.routes import add_message_routes
from server.metrics import Metrics
from server.openapi import openapi_document
from server.responses import ResponseKeeper, ResponseStore, add_response_routes
from server.routes import add_fact_routes, add_model_routes
from server.site import EXCHANGE, FAULT, Sent, Site
from server.tokenizer import Tokenizer
from server.validate import Validator

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

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
    limits: Limits | None = None,
    media: MediaSource | None = None,
    grammars: GrammarQueue | None = None,
    responses: ResponseKeeper | None = None,
    scrape: Callable[[], Awaitable[bytes]] | None = None,
    created: int | None = None,
) -> "App":
    """The application; `served_names[0]` is what answers call the model by default.

    `media` loads images and videos; without it `validator.serves_media` has to stay False.
    `grammars` compiles what `validator` does not know; without it the validator waits itself.
    `responses`, `scrape` (the text of `/metrics`) and `created` (the time at which the server
    started) are for one of several processes that together are the server.
    """
    site = Site(
        engine=engine,
        validator=validator,
        tokenizer=tokenizer,
        served_names=tuple(served_names),
        model_root=model_root,
        version=version,
        lifecycle=lifecycle,
        metrics=metrics,
        limits=limits or Limits(),
        media=media,
        grammars=grammars,
        scrape=scrape,
        created=int(time.time()) if created is None else created,
    )
    api = _create_api(
        site, responses or ResponseStore(), has_keys=bool(api_keys), open_metrics=open_metrics
    )
    return App(api, Keyring(api_keys, open_metrics=open_metrics), metrics)


def _create_api(
    site: Site, responses: ResponseKeeper, *, has_keys: bool, open_metrics: bool
) -> FastAPI:
    """The routes. FastAPI's own pages are off: they would load scripts from elsewhere."""
    api = FastAPI(
        title="deltaserve",
        version=site.version,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _note_refusal},
    )
    api.openapi = lambda: openapi_document(
        site.version, has_keys=has_keys, open_metrics=open_metrics, limits=site.limits
    )
    add_model_routes(api, site)
    add_response_routes(api, site, responses, has_keys=has_keys)
    add_message_routes(api, site)
    add_fact_routes(api, site)
    return api


async def _note_refusal(request: Request, error: Exception) -> Response:
    """FastAPI found no route, or not for this method: the shell says so in our words."""
    assert isinstance(error, HTTPException)
    allow = (error.headers or {}).get("Allow")
    if error.status_code == 405 and allow is not None:
        request.scope[FAULT].append(WrongMethod(", ".join(sorted(allow.split(", ")))))
    else:
        request.scope[FAULT].append(BadRequest("There is no such route.", status=404))
    return Sent()


class App:
    """The shell around the routes."""

    def __init__(self, api: FastAPI, keyring: Keyring, metrics: Metrics) -> None:
        self._api = api
        self._keyring = keyring
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} is served here")
        started = time.monotonic()
        exchange = exchange_for(scope, receive, send)
        raw_path: bytes = scope.get("raw_path") or exchange.path.encode()
        is_probe = raw_path in PROBES
        faults: list[Exception] = []
        scope = {**scope, EXCHANGE: exchange, FAULT: faults}
        try:
            self._keyring.check(raw_path, exchange)
            await self._api(scope, receive, send)
            if faults:
                raise faults[0]
        except ClientGone:
            self._metrics.count_abort()
            exchange.status = 499
        except Exception as error:  # whatever went wrong, the client gets an answer, we a line
            answer = answer_to(error)
            if answer.status == 500:
                log_fault(exchange.request_id, error)
            if not is_probe:
                self._metrics.count_error(answer)
            await exchange.fail(answer)
        route = scope.get("route")
        _log.log(
            logging.DEBUG if is_probe else logging.INFO,
            "%s %s %s %d, %d + %d tokens, %.3f s%s",
            exchange.request_id,
            exchange.method if exchange.method in _METHODS else "?",
            getattr(route, "path", "?"),
            exchange.status,
            exchange.num_prompt_tokens,
            exchange.num_completion_tokens,
            time.monotonic() - started,
            f", {exchange.error.code or exchange.error.type}" if exchange.error else "",
        )


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing starts or stops with the application: `serving` does that."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
