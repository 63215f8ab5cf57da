"""The routes under /v1/responses.

The shell around the application checks the key before any of this runs. With keys, each is an owner
of its own: a response is found only with the key it was created with. Without keys all clients are
one owner.

Creating a response is model work: a flight, as for chat; so is following one that runs in the
background. The other routes only look into the store and at what runs, so they need neither the
engine nor a body.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

import msgspec
from fastapi import FastAPI, Request, Response

from server.errors import BadRequest
from server.exchange import Exchange
from server.media_wait import AwaitsMedia
from server.responses.answer import ResponseAnswer
from server.responses.background import BackgroundJobs, Job, follow
from server.responses.read import ResponseDraft, ResponseReader
from server.responses.store import ResponseKeeper, StoredResponse, off_loop
from server.site import EXCHANGE, FAULT, Sent, Site, add_route

PATH = "/v1/responses"
MAX_LISTED = 100
NUM_LISTED = 20  # unless `limit` says otherwise

Handler = Callable[[Exchange, Request], Awaitable[None]]


def add_response_routes(
    api: FastAPI, site: Site, store: ResponseKeeper | None, *, has_keys: bool
) -> None:
    """Without a store, responses are neither kept nor continued."""
    routes = _Routes(site, store, has_keys)
    add_route(api, PATH, routes.create, "POST")
    one = f"{PATH}/{{response_id}}"
    _add_store_route(api, one, {"GET": routes.retrieve, "DELETE": routes.delete})
    _add_store_route(api, f"{one}/cancel", {"POST": routes.cancel})
    _add_store_route(api, f"{one}/input_items", {"GET": routes.list_input})


def _add_store_route(api: FastAPI, path: str, handlers: Mapping[str, Handler]) -> None:
    """As `add_route`, for handlers that need what the path and the query say."""

    async def endpoint(request: Request) -> Response:
        try:
            await handlers[request.method](request.scope[EXCHANGE], request)
        except Exception as error:  # the shell answers it
            request.scope[FAULT].append(error)
        return Sent()

    api.add_api_route(path, endpoint, methods=list(handlers), response_class=Sent)


class _Routes:
    def __init__(self, site: Site, store: ResponseKeeper | None, has_keys: bool) -> None:
        self._site = site
        self._store = store
        self._has_keys = has_keys
        self._reader = ResponseReader(
            site.validator,
            site.tokenizer,
            store,
            default_model=site.served_names[0],
        )
        self._jobs = BackgroundJobs(
            site.engine,
            site.lifecycle,
            site.metrics,
            max_running=site.limits.max_background,
        )

    async def create(self, exchange: Exchange) -> None:
        owner = self._owner(exchange)

        def read(body: bytes) -> ResponseDraft | AwaitsMedia[ResponseDraft]:
            return self._reader.read(body, owner)

        async def answer(draft: ResponseDraft, arrived: float, held: AsyncExitStack) -> None:
            site = self._site
            if not draft.background:
                whole = ResponseAnswer(draft, exchange, site.engine, site.metrics, arrived=arrived)
                await whole.run()
                return
            job = self._jobs.start(draft, arrived=arrived, held=held)
            queued = job.stored().body
            if self._store is not None:
                await off_loop(self._store, self._store.began, job.id)
            if job.log is None:
                await exchange.reply(queued)
            else:
                await follow(job, 0, exchange)

        await self._site.work(exchange, read, answer)

    async def retrieve(self, exchange: Exchange, request: Request) -> None:
        response = await self._found(exchange, request)
        stream = request.query_params.get("stream", "false")
        if stream not in ("true", "1", "false", "0"):
            raise BadRequest("stream must be true or false", param="stream")
        after = request.query_params.get("starting_after")
        if after is not None and not _is_number(after):
            raise BadRequest(
                "starting_after must be the sequence number of an event", param="starting_after"
            )
        if stream in ("true", "1"):
            await self._follow(exchange, request, start=0 if after is None else int(after) + 1)
        else:
            await exchange.reply(response.body)

    async def _follow(self, exchange: Exchange, request: Request, *, start: int) -> None:
        """Stream a response once more, from event number `start` on."""
        job = self._job(exchange, request)
        if job is None or job.log is None:
            raise BadRequest(
                "stream: only a response that was created with background and stream can be "
                "streamed again, until a while after its end",
                param="stream",
            )
        if start < job.log.start:
            raise BadRequest(
                f"starting_after must be at least {job.log.start - 1}: earlier events are not kept",
                param="starting_after",
            )
        async with self._site.lifecycle.flight(exchange) as flight:
            flight.watch()
            await follow(job, start, exchange)
        self._site.metrics.count_ok()

    async def delete(self, exchange: Exchange, request: Request) -> None:
        response_id = request.path_params["response_id"]
        owner = self._owner(exchange)
        job = self._job(exchange, request)
        if job is not None:
            await self._jobs.forget(job)
        is_gone = self._store is not None and await off_loop(
            self._store, self._store.delete, owner, response_id
        )
        if not is_gone and job is None:
            raise _no_response()
        gone = {"id": response_id, "object": "response", "deleted": True}
        await exchange.reply(msgspec.json.encode(gone))

    async def cancel(self, exchange: Exchange, request: Request) -> None:
        job = self._job(exchange, request)
        if job is not None:
            await self._jobs.cancel(job)
        response = await self._found(exchange, request)
        if msgspec.json.decode(response.body)["background"]:  # ended is ended, however often
            await exchange.reply(response.body)
            return
        raise BadRequest(
            "Only a response that was created with background can be cancelled; "
            "to cancel another, close its connection."
        )

    async def list_input(self, exchange: Exchange, request: Request) -> None:
        response = await self._found(exchange, request)
        await exchange.reply(_listed(response, request.query_params))

    def _job(self, exchange: Exchange, request: Request) -> Job | None:
        return self._jobs.find(self._owner(exchange), request.path_params["response_id"])

    async def _found(self, exchange: Exchange, request: Request) -> StoredResponse:
        """A response as it stands: one that runs or ran in the background, or a stored one."""
        job = self._job(exchange, request)
        if job is not None:
            await self._jobs.settle(job)
            return job.stored()
        if self._store is not None:
            response_id = request.path_params["response_id"]
            owner = self._owner(exchange)
            response = await off_loop(self._store, self._store.get, owner, response_id)
            if response is not None:
                return response
        raise _no_response()

    def _owner(self, exchange: Exchange) -> bytes:
        """Whose request it is; the key, which was checked, is not kept."""
        if not self._has_keys:
            return b""
        _, _, key = exchange.header(b"authorization")[0].partition(b" ")
        return hashlib.sha256(key.strip()).digest()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _no_response() -> BadRequest:
    return BadRequest("No such response is stored.", param="response_id", status=404)


def _listed(response: StoredResponse, query: Mapping[str, str]) -> bytes:
    """One page of the items the model saw."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest('order must be "asc" or "desc"', param="order")
    limit = query.get("limit", str(NUM_LISTED))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3):
        limit = "0"
    if not 1 <= int(limit) <= MAX_LISTED:
        raise BadRequest(f"limit must be an integer from 1 to {MAX_LISTED}", param="limit")
    items = response.context()
    if order == "desc":
        items.reverse()
    after = query.get("after")
    if after is not None:
        ids = [item.id for item in items]
        if after not in ids:
            raise BadRequest("after must be the id of one of the items", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[: int(limit)]
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [msgspec.Raw(item.json) for item in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(items) > len(page),
        }
    )
