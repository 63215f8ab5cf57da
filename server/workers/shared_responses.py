"""Stored responses that all workers share: the store is the parent's, and the workers ask for it.

A response crosses with the items of all turns before it in one list. A worker that continues a
response sends back its id; only where that was deleted or had to go in the meantime are the items
sent back too, and kept as one turn that nobody finds by id.
"""

from collections.abc import Callable

from server.responses import ResponseStore, StoredItem, StoredResponse
from server.workers.messages import (
    AddResponse,
    Ask,
    DeleteResponse,
    Done,
    FoundResponse,
    GetItem,
    GetResponse,
    ResponseRecord,
    Result,
    RunsResponse,
    Text,
)

ResponseAsk = GetResponse | GetItem | DeleteResponse | AddResponse


class SharedResponses:
    """The worker's side: implements `ResponseKeeper`."""

    def __init__(self, call: Callable[[Ask], Result]) -> None:
        """`call` asks the parent and waits for what it says."""
        self._call = call

    def add(self, response: StoredResponse) -> None:
        record = _record(response)
        previous = response.previous
        if self._call(AddResponse(record, previous.id if previous else None)) == Done(found=False):
            assert previous is not None
            self._call(AddResponse(record, previous.id, _all_items(previous)))

    def get(self, owner: bytes, response_id: str) -> StoredResponse | None:
        found = self._call(GetResponse(owner, response_id))
        if not isinstance(found, FoundResponse):
            return None
        return _stored(found.response, _turns_before(owner, found.earlier))

    def item(self, owner: bytes, item_id: str) -> bytes | None:
        found = self._call(GetItem(owner, item_id))
        return found.text if isinstance(found, Text) else None

    def delete(self, owner: bytes, response_id: str) -> bool:
        return self._call(DeleteResponse(owner, response_id)) == Done(found=True)

    def began(self, response_id: str) -> None:
        self._call(RunsResponse(response_id))


def answer_from(store: ResponseStore, ask: ResponseAsk) -> Result:
    """The parent's side."""
    match ask:
        case GetResponse(owner, response_id):
            response = store.get(owner, response_id)
            if response is None:
                return Done(found=False)
            previous = response.previous
            record = _record(response)
            return FoundResponse(record, _all_items(previous) if previous else None)
        case GetItem(owner, item_id):
            json = store.item(owner, item_id)
            return Done(found=False) if json is None else Text(json)
        case DeleteResponse(owner, response_id):
            return Done(found=store.delete(owner, response_id))
        case AddResponse(record, previous_id, earlier):
            previous = store.get(record.owner, previous_id) if previous_id is not None else None
            if previous is None and previous_id is not None:
                if earlier is None:
                    return Done(found=False)
                previous = _turns_before(record.owner, earlier)
            store.add(_stored(record, previous))
            return Done(found=True)


def _record(response: StoredResponse) -> ResponseRecord:
    return ResponseRecord(
        response.id,
        response.owner,
        response.body,
        response.input_items,
        response.output_items,
    )


def _stored(record: ResponseRecord, previous: StoredResponse | None) -> StoredResponse:
    return StoredResponse(
        record.id,
        record.owner,
        body=record.body,
        input_items=record.input_items,
        output_items=record.output_items,
        previous=previous,
    )


def _turns_before(owner: bytes, items: tuple[StoredItem, ...] | None) -> StoredResponse | None:
    """Earlier turns as one, which has no id to be found by."""
    if items is None:
        return None
    return StoredResponse("", owner, body=b"", input_items=items, output_items=(), previous=None)


def _all_items(response: StoredResponse) -> tuple[StoredItem, ...]:
    return (*response.context(), *response.output_items)
