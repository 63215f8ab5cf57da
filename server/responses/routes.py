"""The routes under /v1/responses.

The shell around the application checks the key before any of this runs. With keys, each is an owner
of its own: a response is found only with the key it was created with. Without keys all clients are
one owner.

Creating a response is model work: a flight, as for chat. The other routes only look into the store,
so they need neither the engine nor a body.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from fastapi import FastAPI, Request, Response

from server.errors import BadRequest
from server.exchange import Exchange
from server.responses.answer import ResponseAnswer
from server.responses.read import ResponseDraft, ResponseReader
from server.responses.store import ResponseStore, StoredResponse
from server.site import EXCHANGE, FAULT, Sent, Site, add_route

PATH = "/v1/responses"
MAX_LISTED = 100
NUM_LISTED = 20  # unless `limit` says otherwise

Handler = Callable[[Exchange, Request], Awaitable[None]]


def add_response_routes(
    api: FastAPI, site: Site, store: ResponseStore | None, *, has_keys: bool
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
    def __init__(self, site: Site, store: ResponseStore | None, has_keys: bool) -> None:
        self._site = site
        self._store = store
        self._has_keys = has_keys
        self._reader = ResponseReader(
            site.validator, site.tokenizer, store, default_model=site.served_names[0]
        )

    async def create(self, exchange: Exchange) -> None:
        owner = self._owner(exchange)

        def read(body: bytes) -> ResponseDraft:
            return self._reader.read(body, owner)

        await self._site.generate(exchange, read, ResponseAnswer)

    async def retrieve(self, exchange: Exchange, request: Request) -> None:
        response = self._stored(exchange, request)
        stream = request.query_params.get("stream", "false")
        if stream not in ("true", "1", "false", "0"):
            raise BadRequest("stream must be true or false", param="stream")
        if stream in ("true", "1"):
            raise BadRequest(
                "stream: only a response that runs in the background can be streamed again",
                param="stream",
            )
        await exchange.reply(response.body)

    async def delete(self, exchange: Exchange, request: Request) -> None:
        response_id = request.path_params["response_id"]
        if self._store is None or not self._store.delete(self._owner(exchange), response_id):
            raise _no_response()
        gone = {"id": response_id, "object": "response", "deleted": True}
        await exchange.reply(msgspec.json.encode(gone))

    async def cancel(self, exchange: Exchange, request: Request) -> None:
        self._stored(exchange, request)
        raise BadRequest(
            "Only a response that runs in the background can be cancelled; "
            "to cancel another, close its connection."
        )

    async def list_input(self, exchange: Exchange, request: Request) -> None:
        response = self._stored(exchange, request)
        await exchange.reply(_listed(response, request.query_params))

    def _stored(self, exchange: Exchange, request: Request) -> StoredResponse:
        if self._store is not None:
            response_id = request.path_params["response_id"]
            response = self._store.get(self._owner(exchange), response_id)
            if response is not None:
                return response
        raise _no_response()

    def _owner(self, exchange: Exchange) -> bytes:
        """Whose request it is; the key, which was checked, is not kept."""
        if not self._has_keys:
            return b""
        _, _, key = exchange.header(b"authorization")[0].partition(b" ")
        return hashlib.sha256(key.strip()).digest()


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
